//! `kybernate sign`: vouches for an archive.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use anyhow::Context;
use kybernate_oci::{archive::Archive, signature};
use tempfile::Builder;

use super::{parent, verify};
use crate::{args::Sign, output::Output};

/// Verifies every byte, since nobody should vouch for what is damaged, and adds a signature.
pub fn run(args: &Sign) -> anyhow::Result<()> {
    let key = read(&args.key)?;
    let archive = verify::whole(&args.file, &args.keys, args.quiet)?;
    let line = signature::sign(archive.manifest_sha256(), &key)
        .with_context(|| args.key.display().to_string())?;
    let place = signature::place(&args.file);
    add(&args.file, &line).with_context(|| format!("cannot write {}", place.display()))?;
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
    signature::verify(archive.manifest_sha256(), &signatures(file)?, &keys)
        .with_context(|| format!("{} can't be trusted", file.display()))
}

/// The signatures beside an archive. Without a file nobody has signed.
fn signatures(archive: &Path) -> anyhow::Result<String> {
    let signatures = signature::read_beside(archive)
        .with_context(|| format!("cannot read {}", signature::place(archive).display()))?;
    Ok(signatures.unwrap_or_default())
}

/// Adds a line to the signatures beside an archive, so that it is there whole or not at all.
fn add(archive: &Path, line: &str) -> io::Result<()> {
    let place = signature::place(archive);
    let directory = File::open(parent(&place))?;
    // Of two who sign at once both count; a file system without locks does without.
    let _ = directory.lock();
    let before = signature::read_beside(archive)?;
    let mut partial = Builder::new()
        .prefix(".kybernate-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(parent(&place))?;
    if before.is_some() {
        let facts = fs::symlink_metadata(&place)?;
        chown(partial.path(), Some(facts.uid()), Some(facts.gid()))?;
        partial.as_file().set_permissions(facts.permissions())?;
    }
    let mut text = before.unwrap_or_default();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(line);
    if text.len() as u64 > signature::SIZE_MAX {
        return Err(io::Error::other("it is full"));
    }
    partial.write_all(text.as_bytes())?;
    partial.as_file().sync_all()?;
    partial.persist(&place)?;
    directory.sync_all()
}

fn read(key: &Path) -> anyhow::Result<String> {
    fs::read_to_string(key).with_context(|| format!("cannot read the key {}", key.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_gets_a_line_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("a");
        let place = signature::place(&archive);
        add(&archive, "one\n").unwrap();
        assert_eq!(fs::read_to_string(&place).unwrap(), "one\n");
        fs::write(&place, "one").unwrap();
        fs::set_permissions(&place, Permissions::from_mode(0o640)).unwrap();
        add(&archive, "two\n").unwrap();
        assert_eq!(fs::read_to_string(&place).unwrap(), "one\ntwo\n");
        let mode = fs::metadata(&place).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);

        let full = "x".repeat(signature::SIZE_MAX as usize - 1);
        fs::write(&place, &full).unwrap();
        assert!(add(&archive, "two\n").is_err());
        assert_eq!(fs::read_to_string(&place).unwrap(), full);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn signatures_that_do_not_read_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("a");
        assert_eq!(signatures(&archive).unwrap(), "");
        fs::write(signature::place(&archive), [0xff]).unwrap();
        let error = signatures(&archive).unwrap_err();
        assert!(error.to_string().contains("a.sig"), "{error}");
    }
}
