//! Generates the clients from the protos under `proto/`, without protoc.

use std::{error::Error, io, path::Path};

/// Messages that also speak JSON, in the shape of Go's structs: `ContainerStatus`, which
/// `status.dump` holds, and `PodSandboxConfig`, which containerd hands out as text.
const GO_JSON: &[&str] = &[
    "ContainerMetadata",
    "ContainerResources",
    "ContainerStatus",
    "ContainerUser",
    "DNSConfig",
    "HugepageLimit",
    "IDMapping",
    "ImageSpec",
    "Int64Value",
    "LinuxContainerResources",
    "LinuxContainerUser",
    "LinuxPodSandboxConfig",
    "LinuxSandboxSecurityContext",
    "Mount",
    "NamespaceOption",
    "PodSandboxConfig",
    "PodSandboxMetadata",
    "PortMapping",
    "SELinuxOption",
    "SecurityProfile",
    "UserNamespace",
];

/// Go's `omitempty`.
const OMIT_EMPTY: &str = "#[serde(skip_serializing_if = \"crate::cri::is_default\")]";

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
    for message in GO_JSON {
        // Without its leading dot a path means this type and none that is nested in it; with
        // the dot it means everything inside.
        builder = builder.type_attribute(
            format!("runtime.v1.{message}"),
            "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default)]",
        );
        if *message != "SecurityProfile" {
            builder = builder.field_attribute(format!(".runtime.v1.{message}"), OMIT_EMPTY);
        }
    }
    // This one holds an enum, whose variants take no such attribute.
    for field in ["profile_type", "localhost_ref"] {
        builder =
            builder.field_attribute(format!(".runtime.v1.SecurityProfile.{field}"), OMIT_EMPTY);
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
