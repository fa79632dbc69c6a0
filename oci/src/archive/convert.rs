//! An archive encrypted, or decrypted, as it is: not one byte of the archive changes, so that its
//! signatures stay good.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use kybernate_age::{Identity, Recipient};

use super::error::{ReadError, WriteError};
use super::label::Label;
use super::reader::Archive;
use super::seal::{Encryption, Seal};

/// Bytes per read.
const STEP: usize = 1 << 20;

/// Why an archive was not converted. What was written is of no use then.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// Nothing to do.
    #[error("it is encrypted already; decrypt it first to change its recipients")]
    Encrypted,
    /// Nothing to do.
    #[error("it is not encrypted")]
    Plain,
    /// The archive can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The result can't be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Writes the archive at `path` to the empty file `to`, encrypted to `recipients`, and makes that
/// durable.
///
/// # Errors
/// It is no plain archive; reading or writing fails; [`ReadError::Cancelled`] soon after
/// `cancelled` became true.
pub fn encrypt(
    path: &Path,
    to: File,
    recipients: &[Recipient],
    cancelled: &AtomicBool,
) -> Result<(), ConvertError> {
    let archive = match Archive::open(path) {
        Err(ReadError::Encrypted { .. }) => return Err(ConvertError::Encrypted),
        other => other?,
    };
    let (head, mut seal) = Seal::begin(&Encryption {
        recipients: recipients.to_vec(),
        label: Label::of(archive.manifest()),
    })?;
    let mut to = Target::new(to);
    to.write(&head)?;
    copy(&archive, cancelled, &mut |bytes| {
        seal.append(bytes, false, &mut |sealed| to.write(sealed))
    })?;
    seal.finish(&mut |sealed| to.write(sealed))?;
    to.end()
}

/// Writes the encrypted archive at `path` to the empty file `to`, in plain text, and makes that
/// durable.
///
/// # Errors
/// As [`encrypt`]; it is not encrypted, or not to one of the identities.
pub fn decrypt(
    path: &Path,
    to: File,
    identities: &[Identity],
    cancelled: &AtomicBool,
) -> Result<(), ConvertError> {
    let archive = Archive::open_with(path, identities)?;
    if archive.envelope().is_none() {
        return Err(ConvertError::Plain);
    }
    let mut to = Target::new(to);
    copy(&archive, cancelled, &mut |bytes| to.write(bytes))?;
    to.end()
}

/// The file that is written.
struct Target {
    file: File,
    position: u64,
}

impl Target {
    fn new(file: File) -> Self {
        Self { file, position: 0 }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let written = self.file.write_all(bytes);
        written.map_err(|source| WriteError::io("write", self.position, source))?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Makes it durable.
    fn end(self) -> Result<(), ConvertError> {
        let synced = self.file.sync_all();
        Ok(synced.map_err(|source| WriteError::io("sync", self.position, source))?)
    }
}

/// Reads all of the archive's own bytes.
fn copy(
    archive: &Archive,
    cancelled: &AtomicBool,
    write: &mut dyn FnMut(&[u8]) -> Result<(), WriteError>,
) -> Result<(), ConvertError> {
    let size = archive.source.size(archive.archive_bytes());
    let mut buffer = vec![0; STEP];
    let mut offset = 0;
    while offset < size {
        if cancelled.load(Ordering::Relaxed) {
            return Err(ReadError::Cancelled.into());
        }
        let step = (size - offset).min(STEP as u64) as usize;
        archive
            .source
            .read_exact_at(&mut buffer[..step], offset)
            .map_err(|error| ReadError::io(offset, error))?;
        write(&buffer[..step])?;
        offset += step as u64;
    }
    Ok(())
}
