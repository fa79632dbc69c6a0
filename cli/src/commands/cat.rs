//! `kybernate cat`: one entry, by random access.

use std::io::{self, Write};

use anyhow::Context;
use kybernate_oci::manifest;

use super::open;
use crate::{args::Cat, display::clean, output::Output};

/// Writes the entry to standard output.
pub fn run(args: &Cat) -> anyhow::Result<()> {
    let archive = open(&args.file, &args.keys)?;
    let failed = || {
        format!(
            "cannot read {} in {} (`kybernate ls` lists what is there)",
            clean(&args.entry),
            args.file.display()
        )
    };
    // The manifest can't list itself, but is a file of the tar like the others.
    if args.entry == manifest::FILE {
        let mut out = Output::lock();
        out.write_all(archive.manifest_json())
            .with_context(failed)?;
        out.flush()?;
        return Ok(());
    }
    let mut entry = archive.entry(&args.entry).with_context(failed)?;
    let mut out = Output::lock();
    io::copy(&mut entry, &mut out).with_context(failed)?;
    out.flush()?;
    Ok(())
}
