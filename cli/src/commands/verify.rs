//! `kybernate verify`: every byte of an archive.

use std::{io::Write, path::Path};

use anyhow::Context;
use kybernate_config::size;
use kybernate_oci::archive::{Archive, ReadError};

use super::{open, sign};
use crate::{
    args::{Keys, Verify},
    output::Output,
    progress::Display,
};

/// Reads all of an archive.
pub fn whole(file: &Path, keys: &Keys, quiet: bool) -> anyhow::Result<Archive> {
    let archive = open(file, keys)?;
    let mut display = Display::new(quiet);
    display.start(archive.content_bytes());
    display.phase("verify");
    let verified = archive.verify(&mut |done| display.bytes(done));
    display.finish();
    match verified {
        Ok(_) => Ok(archive),
        Err(error) => {
            let file = file.display();
            let what = if damaged(&error) {
                format!("{file} is damaged; take a new checkpoint or fetch it again")
            } else {
                format!("cannot verify {file}")
            };
            Err(error).context(what)
        }
    }
}

/// Whether it is the archive that is wrong, and not what reads it.
fn damaged(error: &ReadError) -> bool {
    matches!(
        error,
        ReadError::Chunk { .. }
            | ReadError::SeekTable { .. }
            | ReadError::Manifest { .. }
            | ReadError::Json { .. }
            | ReadError::Entry { .. }
            | ReadError::Frames { .. }
    )
}

/// Reads it all and prints the manifest's digest, and who has signed it.
pub fn run(args: &Verify) -> anyhow::Result<()> {
    let archive = whole(&args.file, &args.keys, args.quiet)?;
    let signer = if args.key.is_empty() {
        String::new()
    } else {
        format!(
            ", signed by {}",
            sign::check(&args.file, &archive, &args.key)?
        )
    };
    let mut out = Output::lock();
    writeln!(
        out,
        "{}: intact, {} entries, {}, manifest sha256:{}{signer}",
        args.file.display(),
        archive.manifest().entries.len(),
        size::display(archive.content_bytes()),
        archive.manifest_sha256()
    )?;
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_disk_that_does_not_read_is_no_damage() {
        let source = || io::Error::other("no");
        assert!(!damaged(&ReadError::Io {
            offset: 7,
            source: source()
        }));
        assert!(!damaged(&ReadError::Memory { source: source() }));
        assert!(!damaged(&ReadError::Cancelled));
        assert!(damaged(&ReadError::Frames {
            expected: "a".into(),
            found: "b".into()
        }));
    }
}
