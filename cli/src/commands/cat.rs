//! `kybernate cat`: one entry, by random access.

use std::io::{self, Write};

use anyhow::Context;

use super::open;
use crate::{args::Cat, display::clean, output::Output};

/// Writes the entry to standard output.
pub fn run(args: &Cat) -> anyhow::Result<()> {
    let archive = open(&args.file)?;
    let failed = || {
        format!(
            "cannot read {} in {} (`kybernate ls` lists what is there)",
            clean(&args.entry),
            args.file.display()
        )
    };
    let mut entry = archive.entry(&args.entry).with_context(failed)?;
    let mut out = Output::lock();
    io::copy(&mut entry, &mut out).with_context(failed)?;
    out.flush()?;
    Ok(())
}
