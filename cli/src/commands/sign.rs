//! `kybernate sign`: vouches for an archive.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context;
use kybernate_oci::{archive::Archive, signature};

use super::verify;
use crate::{args::Sign, output::Output};

/// Verifies every byte, since nobody should vouch for what is damaged, and adds a signature.
pub fn run(args: &Sign) -> anyhow::Result<()> {
    let key = read(&args.key)?;
    let archive = verify::whole(&args.file, &args.keys, args.quiet)?;
    let line = signature::sign(archive.manifest_sha256(), &key)
        .with_context(|| args.key.display().to_string())?;
    let place = signature::place(&args.file);
    let added = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&place)
        .and_then(|mut file| {
            file.write_all(line.as_bytes())
                .and_then(|()| file.sync_all())
        });
    added.with_context(|| format!("cannot write {}", place.display()))?;
    let mut out = Output::lock();
    writeln!(
        out,
        "{}: signed, see {}",
        args.file.display(),
        place.display()
    )?;
    out.flush()?;
    Ok(())
}

/// Makes sure that one of the keys has signed an archive. Returns the id of that key.
pub fn check(file: &Path, archive: &Archive, keys: &[PathBuf]) -> anyhow::Result<String> {
    let keys = keys
        .iter()
        .map(|key| read(key))
        .collect::<Result<Vec<_>, _>>()?;
    // Without a file nobody has signed.
    let signatures = fs::read_to_string(signature::place(file)).unwrap_or_default();
    signature::verify(archive.manifest_sha256(), &signatures, &keys)
        .with_context(|| format!("{} can't be trusted", file.display()))
}

fn read(key: &Path) -> anyhow::Result<String> {
    fs::read_to_string(key).with_context(|| format!("cannot read the key {}", key.display()))
}
