//! Generates messages, service and client from `proto/nri.proto`, without protoc.

use std::{env, error::Error, fs, path::PathBuf};

use ttrpc_codegen::{Codegen, Customize};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto/nri.proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    Codegen::new()
        .out_dir(&out)
        .include("proto")
        .input("proto/nri.proto")
        .rust_protobuf()
        .customize(Customize {
            async_all: true,
            ..Default::default()
        })
        .run()?;
    // Inner attributes and documentation don't survive include!.
    for name in ["nri.rs", "nri_ttrpc.rs"] {
        let path = out.join(name);
        let text = fs::read_to_string(&path)?;
        let kept: String = text
            .split_inclusive('\n')
            .filter(|line| !line.starts_with("#!") && !line.starts_with("//!"))
            .collect();
        fs::write(path, kept)?;
    }
    Ok(())
}
