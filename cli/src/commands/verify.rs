//! `kybernate verify`: every byte of an archive.

use std::io::Write;

use anyhow::Context;
use kybernate_config::size;

use super::open;
use crate::{args::Verify, output::Output, progress::Display};

/// Reads it all and prints the manifest's digest.
pub fn run(args: &Verify) -> anyhow::Result<()> {
    let archive = open(&args.file)?;
    let mut display = Display::new(args.quiet);
    display.start(archive.content_bytes());
    display.phase("verify");
    let verified = archive.verify(&mut |done| display.bytes(done));
    display.finish();
    verified.with_context(|| {
        format!(
            "{} is damaged; take a new checkpoint or fetch it again",
            args.file.display()
        )
    })?;
    let mut out = Output::lock();
    writeln!(
        out,
        "{}: intact, {} entries, {}, manifest sha256:{}",
        args.file.display(),
        archive.manifest().entries.len(),
        size::display(archive.content_bytes()),
        archive.manifest_sha256()
    )?;
    out.flush()?;
    Ok(())
}
