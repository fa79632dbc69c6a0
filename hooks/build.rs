//! Generates the clients from the protos under `proto/`, without protoc.

use std::{error::Error, io, path::Path};

/// Messages that `status.dump` holds: they also speak JSON, in the shape of Go's structs.
const STATUS_DUMP: &[&str] = &[
    "ContainerStatus",
    "ContainerMetadata",
    "ContainerResources",
    "ContainerUser",
    "HugepageLimit",
    "IDMapping",
    "ImageSpec",
    "LinuxContainerResources",
    "LinuxContainerUser",
    "Mount",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut protos = Vec::new();
    collect(Path::new("proto"), &mut protos)?;
    protos.sort();
    let descriptors = protox::compile(&protos, ["proto"])?;

    let mut builder = tonic_prost_build::configure()
        .include_file("proto.rs")
        .generate_default_stubs(true)
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]")
        .disable_comments(["."]);
    for message in STATUS_DUMP {
        let path = format!(".runtime.v1.{message}");
        builder = builder
            .type_attribute(
                &path,
                "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default)]",
            )
            .field_attribute(
                &path,
                "#[serde(skip_serializing_if = \"crate::cri::is_default\")]",
            );
    }
    // The only fields whose proto names are not in snake case.
    for field in ["uidMappings", "gidMappings"] {
        builder = builder.field_attribute(
            format!(".runtime.v1.Mount.{field}"),
            format!("#[serde(rename = \"{field}\")]"),
        );
    }
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    builder.compile_fds_with_config(descriptors, config)?;
    Ok(())
}

fn collect(dir: &Path, into: &mut Vec<String>) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, into)?;
        } else if path.extension().is_some_and(|ext| ext == "proto") {
            into.push(path.display().to_string());
        }
    }
    Ok(())
}
