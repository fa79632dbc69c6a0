//! `kybernate extract`: entries become files.

use std::{
    fs::{self, DirBuilder},
    io::{ErrorKind, Write},
    os::unix::fs::DirBuilderExt,
};

use anyhow::{Context, bail};
use kybernate_config::size;
use kybernate_oci::{archive::Archive, manifest::Entry};

use super::{open, runtime};
use crate::{args::Extract, display::clean, interrupt, output::Output};

/// Verifies the archive and writes what was asked for.
pub fn run(args: &Extract) -> anyhow::Result<()> {
    let archive = open(&args.file, &args.keys)?;
    for wanted in &args.entries {
        if !archive
            .manifest()
            .entries
            .iter()
            .any(|entry| covers(wanted, &entry.name))
        {
            bail!(
                "{} has no entry {}; `kybernate ls` lists what is there",
                args.file.display(),
                clean(wanted)
            );
        }
    }
    let made = match DirBuilder::new().mode(0o700).create(&args.directory) {
        Ok(()) => true,
        Err(e) if e.kind() == ErrorKind::AlreadyExists => false,
        Err(e) => {
            return Err(e).with_context(|| {
                format!(
                    "cannot create {}; its parent must exist",
                    args.directory.display()
                )
            });
        }
    };
    let extracted = extract(args, &archive);
    if extracted.is_err() && made {
        // What others have put there meanwhile stays.
        let _ = fs::remove_dir(&args.directory);
    }
    let bytes = extracted?;
    let mut out = Output::lock();
    writeln!(
        out,
        "{}: {} extracted and verified",
        args.directory.display(),
        size::display(bytes)
    )?;
    out.flush()?;
    Ok(())
}

/// Writes the entries to the directory, all or none. Returns their size.
fn extract(args: &Extract, archive: &Archive) -> anyhow::Result<u64> {
    let runtime = runtime()?;
    let cancelled = interrupt::flag(&runtime)?;
    let target = |entry: &Entry| {
        let wanted = args.entries.is_empty()
            || args
                .entries
                .iter()
                .any(|wanted| covers(wanted, &entry.name));
        (wanted && !entry.name.ends_with('/')).then(|| entry.name.clone().into())
    };
    archive
        .extract(&target, &args.directory, 0, &cancelled)
        .with_context(|| {
            format!(
                "cannot extract {} to {}; what was written is removed again",
                args.file.display(),
                args.directory.display()
            )
        })
}

/// Whether `wanted` is the entry or a directory above it.
fn covers(wanted: &str, entry: &str) -> bool {
    let wanted = wanted.trim_end_matches('/');
    entry
        .strip_prefix(wanted)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_covers_what_is_in_it() {
        assert!(covers("checkpoint", "checkpoint/"));
        assert!(covers("checkpoint/", "checkpoint/pages-1.img"));
        assert!(covers("spec.dump", "spec.dump"));
        assert!(!covers("check", "checkpoint/pages-1.img"));
        assert!(!covers("spec.dump", "spec"));
    }
}
