//! Random access to one entry.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use super::BLOCK;
use super::decode::Decoder;
use super::digest::Digest;
use super::error::{EntryFault, ReadError};
use super::layout;
use super::reader::Archive;
use crate::manifest::Entry;

/// Content of one entry; see [`Archive::entry`].
#[derive(Debug)]
pub struct EntryReader<'a> {
    archive: &'a Archive,
    entry: &'a Entry,
    decoder: Decoder,
    /// The decoded frame and its number.
    content: Vec<u8>,
    frame: Option<usize>,
    /// Bytes of content read.
    position: u64,
    /// Of the piece that is being read.
    piece: Sha256,
    digest: Option<Digest>,
}

impl<'a> EntryReader<'a> {
    pub(super) fn new(archive: &'a Archive, name: &str) -> Result<Self, ReadError> {
        let entry = archive
            .manifest
            .entries
            .iter()
            .find(|entry| entry.name == name && !name.ends_with('/'))
            .ok_or_else(|| ReadError::Missing {
                name: name.to_owned(),
            })?;
        let mut reader = Self {
            archive,
            entry,
            decoder: Decoder::new(),
            content: Vec::new(),
            frame: None,
            position: 0,
            piece: Sha256::new(),
            digest: Some(Digest::default()),
        };
        let mut checked = 0;
        while checked < BLOCK {
            let from = reader.load(entry.offset + checked as u64)?;
            let bytes = &reader.content[from..];
            let bytes = &bytes[..bytes.len().min(BLOCK - checked)];
            if !layout::is_header(entry, checked, bytes) {
                return Err(reader.refuse(EntryFault::Header));
            }
            checked += bytes.len();
        }
        Ok(reader)
    }

    /// What the manifest says of the entry.
    #[must_use]
    pub fn entry(&self) -> &'a Entry {
        self.entry
    }

    /// Reads it all, for entries that are known to be small.
    ///
    /// # Errors
    /// More than `max` bytes; a damaged frame; a wrong digest.
    pub fn bytes(mut self, max: u64) -> Result<Vec<u8>, ReadError> {
        if self.entry.size > max {
            return Err(ReadError::TooLarge {
                name: self.entry.name.clone(),
                size: self.entry.size,
                max,
            });
        }
        let mut bytes = Vec::new();
        while let Some(part) = self.next()? {
            bytes.extend_from_slice(part);
            let size = part.len();
            self.consume(size);
        }
        Ok(bytes)
    }

    fn refuse(&self, fault: EntryFault) -> ReadError {
        ReadError::Entry {
            name: self.entry.name.clone(),
            fault,
        }
    }

    /// Decodes the frame that holds byte `at` of the tar and says where in it that is.
    fn load(&mut self, at: u64) -> Result<usize, ReadError> {
        let frames = &self.archive.frames;
        let number = frames.partition_point(|frame| frame.start <= at) - 1;
        let frame = &frames[number];
        if self.frame != Some(number) {
            self.frame = None;
            self.content.resize(frame.row.content as usize, 0);
            self.decoder
                .decode(&self.archive.source, frame, &mut self.content)
                .map_err(|broken| broken.at(frame, number, &self.entry.name))?;
            self.frame = Some(number);
        }
        Ok((at - frame.start) as usize)
    }

    /// Content from the current position on, as far as the frame goes; `None` at the end, where
    /// the digest was right.
    fn next(&mut self) -> Result<Option<&[u8]>, ReadError> {
        let left = self.entry.size - self.position;
        if left == 0 {
            if let Some(mut digest) = self.digest.take() {
                let found = digest.finish();
                if found != self.entry.sha256 {
                    let expected = self.entry.sha256.clone();
                    // A second call must not look like an end either.
                    self.digest = Some(Digest::default());
                    return Err(self.refuse(EntryFault::Digest { expected, found }));
                }
            }
            return Ok(None);
        }
        let from = self.load(self.entry.offset + BLOCK as u64 + self.position)?;
        let bytes = &self.content[from..];
        let size = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        Ok(Some(&bytes[..size]))
    }

    /// Moves on by `size` bytes of what [`Self::next`] gave.
    fn consume(&mut self, size: usize) {
        let at = self.entry.offset + BLOCK as u64 + self.position;
        let start = self
            .frame
            .map_or(0, |number| self.archive.frames[number].start);
        let from = (at - start) as usize;
        let end = from + size;
        self.piece.update(&self.content[from..end]);
        self.position += size as u64;
        if (end == self.content.len() || self.position == self.entry.size)
            && let Some(digest) = &mut self.digest
        {
            digest.push(self.piece.finalize_reset().into());
        }
    }
}

impl Read for EntryReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let Some(bytes) = self.next()? else {
            return Ok(0);
        };
        let size = bytes.len().min(buffer.len());
        buffer[..size].copy_from_slice(&bytes[..size]);
        self.consume(size);
        Ok(size)
    }
}
