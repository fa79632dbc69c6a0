//! Opens archives.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use kybernate_age::Identity;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::decode::{Decoder, Located};
use super::entry::EntryReader;
use super::error::ReadError;
use super::pass::Pass;
use super::source::{self, Envelope, Source};
use super::{BLOCK, FRAME_MAX, frame, header, layout, padding, seek};
use crate::manifest::{FILE, FORMAT, Manifest};

/// An archive whose seek table and manifest are consistent.
///
/// Nothing else has been looked at; [`Archive::verify`] and [`Archive::extract`] look at every
/// byte, [`Archive::entry`] at those of one entry.
#[derive(Debug)]
pub struct Archive {
    pub(super) source: Source,
    pub(super) frames: Vec<Located>,
    pub(super) manifest: Manifest,
    manifest_sha256: String,
    manifest_json: Vec<u8>,
    archive_bytes: u64,
    content_bytes: u64,
}

#[derive(Deserialize)]
struct Version {
    format: u64,
}

impl Archive {
    /// Opens the archive at `path`, which must be a regular file and no link, and not encrypted.
    ///
    /// # Errors
    /// The file does not open; its end is not that of an archive; the manifest is damaged, of
    /// another format, or lists entries that do not fit the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ReadError> {
        Self::open_with(path, &[])
    }

    /// Opens the archive at `path`, with one of the identities if it is encrypted.
    ///
    /// # Errors
    /// See [`Archive::open`]; the archive is encrypted, and not to one of the identities.
    pub fn open_with(path: impl AsRef<Path>, identities: &[Identity]) -> Result<Self, ReadError> {
        let (file, archive_bytes) = source::open(path.as_ref())?;
        let source = Source::new(file, archive_bytes, identities)?;
        let mut frames = frames(&source, source.size(archive_bytes))?;
        let Some(last) = frames.pop() else {
            return Err(ReadError::SeekTable {
                fault: "it lists no frame",
            });
        };
        let json = manifest_json(&source, &last)?;
        let version: Version =
            serde_json::from_slice(&json).map_err(|source| ReadError::Json { source })?;
        if version.format != u64::from(FORMAT) {
            return Err(ReadError::Format {
                found: version.format,
                expected: FORMAT,
            });
        }
        let manifest: Manifest =
            serde_json::from_slice(&json).map_err(|source| ReadError::Json { source })?;
        layout::check(&manifest.entries, last.start)?;
        Ok(Self {
            source,
            frames,
            manifest,
            manifest_sha256: super::hex(&Sha256::digest(&json)),
            manifest_json: json,
            archive_bytes,
            content_bytes: last.start + u64::from(last.row.content),
        })
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest as it stands in the archive: the content of `kybernate.json`.
    #[must_use]
    pub fn manifest_json(&self) -> &[u8] {
        &self.manifest_json
    }

    /// Lower-case hex sha256 of `kybernate.json`.
    #[must_use]
    pub fn manifest_sha256(&self) -> &str {
        &self.manifest_sha256
    }

    /// Size of the file in bytes.
    #[must_use]
    pub fn archive_bytes(&self) -> u64 {
        self.archive_bytes
    }

    /// What it says to those who can't read it; `None` if it is not encrypted.
    #[must_use]
    pub fn envelope(&self) -> Option<&Envelope> {
        self.source.envelope()
    }

    /// Size of the tar in bytes.
    #[must_use]
    pub fn content_bytes(&self) -> u64 {
        self.content_bytes
    }

    /// Checks every byte of the archive on all processors. `progress` is called with the bytes
    /// of tar checked so far.
    ///
    /// # Errors
    /// The first thing that is not as it was written.
    pub fn verify(&self, progress: &mut dyn FnMut(u64)) -> Result<(), ReadError> {
        let cancelled = AtomicBool::new(false);
        Pass::new(self, None, 0, &cancelled).run(progress)
    }

    /// The content of file `name`, decoded as it is read.
    ///
    /// The reader fails where a frame is damaged and, instead of ending, when the content does
    /// not have the manifest's digest.
    ///
    /// # Errors
    /// No such file; a damaged header.
    pub fn entry(&self, name: &str) -> Result<EntryReader<'_>, ReadError> {
        EntryReader::new(self, name)
    }
}

/// Reads the seek table.
fn frames(source: &Source, size: u64) -> Result<Vec<Located>, ReadError> {
    let refuse = |fault| ReadError::SeekTable { fault };
    let io = |offset| move |error| ReadError::io(offset, error);
    let mut footer = [0; seek::FOOT];
    let footer_at = size
        .checked_sub(seek::FOOT as u64)
        .ok_or(refuse("the file is too short"))?;
    source
        .read_exact_at(&mut footer, footer_at)
        .map_err(io(footer_at))?;
    let rows = seek::rows(&footer).ok_or(refuse("the file does not end in one"))?;
    let table_at = size
        .checked_sub(seek::size(rows) as u64)
        .ok_or(refuse("it is larger than the file"))?;
    let mut table = vec![0; seek::size(rows)];
    source
        .read_exact_at(&mut table, table_at)
        .map_err(io(table_at))?;
    let rows = seek::decode(&table).ok_or(refuse("it is damaged"))?;
    let mut located = Vec::with_capacity(rows.len());
    let (mut offset, mut start) = (0, 0);
    for row in rows {
        let content = row.content as usize;
        if content == 0 || content > FRAME_MAX {
            return Err(refuse("a frame has no content or more than 64 MiB"));
        }
        if row.stored as usize > zstd::zstd_safe::compress_bound(content) {
            return Err(refuse("a frame is larger than its content can make it"));
        }
        located.push(Located { offset, start, row });
        offset += u64::from(row.stored);
        start += u64::from(row.content);
    }
    if offset != table_at {
        return Err(refuse("its frames do not fill the file"));
    }
    Ok(located)
}

/// Reads the manifest's frame, of which every byte follows from the JSON.
fn manifest_json(source: &Source, last: &Located) -> Result<Vec<u8>, ReadError> {
    let refuse = |fault| ReadError::Manifest { fault };
    let mut content = vec![0; last.row.content as usize];
    let mut decoder = Decoder::new();
    decoder
        .decode(source, last, &mut content)
        .map_err(|broken| match broken {
            super::decode::Broken::Io(error) => ReadError::io(last.offset, error),
            super::decode::Broken::Frame(reason) => refuse(reason),
        })?;
    if decoder.stored() != frame::stored(&content) {
        return Err(refuse("its frame is not as the writer stores it"));
    }
    let size = content
        .first_chunk::<BLOCK>()
        .and_then(|bytes| tar::Header::from_byte_slice(bytes).size().ok())
        .and_then(|size| usize::try_from(size).ok())
        .filter(|size| *size < content.len())
        .ok_or(refuse("the last frame does not begin with its tar header"))?;
    if content[..BLOCK] != header::encode(FILE, size as u64) {
        return Err(refuse(
            "its tar header is damaged, or it is not the last entry",
        ));
    }
    let end = BLOCK + size;
    if content.len() != end + padding(size as u64) + 2 * BLOCK || !frame::is_zero(&content[end..]) {
        return Err(refuse("it is not followed by the end of the archive"));
    }
    content.truncate(end);
    content.drain(..BLOCK);
    Ok(content)
}
