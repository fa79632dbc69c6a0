//! `kybernate ls`: the names in an archive.

use std::io::Write;

use super::open;
use crate::{args::Ls, display::clean, output::Output};

/// Lists the entries.
pub fn run(args: &Ls) -> anyhow::Result<()> {
    let archive = open(&args.file, &args.keys)?;
    let mut out = Output::lock();
    for entry in &archive.manifest().entries {
        let name = clean(&entry.name);
        if args.long {
            let digest = if entry.sha256.is_empty() {
                "-"
            } else {
                &entry.sha256
            };
            writeln!(out, "{digest:<64}  {:>14}  {name}", entry.size)?;
        } else {
            writeln!(out, "{name}")?;
        }
    }
    out.flush()?;
    Ok(())
}
