//! Encryption, between the frames and the file.
//!
//! ```text
//! frames ──> chunk of 64 KiB ──┬─ complete ──> sealed ─────────────────────────────> file
//!                              └─ has a frame that will be replaced ──> zeros ─────> file
//!                                    content waits in memory
//! end: frames replaced there ──> sealed ─────────────────────────────> their places in the file
//! ```
//!
//! A chunk may be sealed once alone ([`kybernate_age`] says why), so one that is not final waits:
//! at most two for each streamed entry, for its header may lie across two. The file never has
//! content of a chunk but sealed.

use std::collections::BTreeMap;
use std::sync::Arc;

use kybernate_age::{CHUNK, Recipient, SEALED, Sealer, Slot, TAG};

use super::error::WriteError;
use super::label::Label;

static ZEROS: [u8; SEALED] = [0; SEALED];

/// Whom an archive is encrypted to.
#[derive(Debug, Clone)]
pub struct Encryption {
    /// Each of them can read it.
    pub recipients: Vec<Recipient>,
    /// What everybody can read.
    pub label: Label,
}

/// A chunk that is not final.
#[derive(Debug)]
struct Held {
    slot: Slot,
    last: bool,
    content: Vec<u8>,
}

/// The state of an archive that is being encrypted.
#[derive(Debug)]
pub(super) struct Seal {
    sealer: Sealer,
    /// Where the first chunk lies in the file.
    start: u64,
    /// Content of the current chunk, and whether part of it will be replaced.
    chunk: Vec<u8>,
    open: bool,
    held: BTreeMap<u64, Held>,
    /// Bytes of content so far.
    position: u64,
}

/// Takes what comes next in the file.
pub(super) type Write<'a> = dyn FnMut(&[u8]) -> Result<(), WriteError> + 'a;

impl Seal {
    /// Begins one; returns what comes first in the file, too.
    pub(super) fn begin(encryption: &Encryption) -> Result<(Vec<u8>, Self), WriteError> {
        let more = [encryption.label.stanza()];
        let (head, sealer) = Sealer::begin(&encryption.recipients, &more).map_err(|source| {
            WriteError::Encryption {
                source: Arc::new(source),
            }
        })?;
        let start = head.len() as u64;
        Ok((
            head,
            Self {
                sealer,
                start,
                chunk: Vec::with_capacity(SEALED),
                open: false,
                held: BTreeMap::new(),
                position: 0,
            },
        ))
    }

    /// Bytes of content so far.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Appends content; `open` says that it will be replaced.
    pub(super) fn append(
        &mut self,
        mut bytes: &[u8],
        open: bool,
        write: &mut Write<'_>,
    ) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            // Only now is it clear that this one is not the last.
            if self.chunk.len() == CHUNK {
                self.complete(false, write)?;
            }
            let size = bytes.len().min(CHUNK - self.chunk.len());
            self.chunk.extend_from_slice(&bytes[..size]);
            self.open |= open;
            self.position += size as u64;
            bytes = &bytes[size..];
        }
        Ok(())
    }

    /// Puts `bytes` in the place of open content at `offset`.
    pub(super) fn replace(&mut self, mut offset: u64, mut bytes: &[u8]) -> Result<(), WriteError> {
        let current = (self.position - self.chunk.len() as u64) / CHUNK as u64;
        while !bytes.is_empty() {
            let (number, at) = (offset / CHUNK as u64, (offset % CHUNK as u64) as usize);
            let content = match self.held.get_mut(&number) {
                Some(held) => &mut held.content,
                None if number == current => &mut self.chunk,
                None => return Err(WriteError::Sealed { offset }),
            };
            let size = bytes.len().min(CHUNK - at);
            let place = content.get_mut(at..at + size);
            place
                .ok_or(WriteError::Sealed { offset })?
                .copy_from_slice(&bytes[..size]);
            offset += size as u64;
            bytes = &bytes[size..];
        }
        Ok(())
    }

    /// Ends the content.
    pub(super) fn finish(&mut self, write: &mut Write<'_>) -> Result<(), WriteError> {
        self.complete(true, write)
    }

    /// Seals a chunk that was held, once nothing is replaced any more; with its place in the file.
    pub(super) fn pop(&mut self) -> Option<(u64, Vec<u8>)> {
        let (number, mut held) = self.held.pop_first()?;
        self.sealer.seal(held.slot, held.last, &mut held.content);
        Some((self.start + number * SEALED as u64, held.content))
    }

    fn complete(&mut self, last: bool, write: &mut Write<'_>) -> Result<(), WriteError> {
        let slot = self.sealer.slot();
        if !std::mem::take(&mut self.open) {
            self.sealer.seal(slot, last, &mut self.chunk);
            let written = write(&self.chunk);
            self.chunk.clear();
            return written;
        }
        write(&ZEROS[..self.chunk.len() + TAG])?;
        let content = std::mem::replace(&mut self.chunk, Vec::with_capacity(SEALED));
        let held = Held {
            last,
            content,
            slot,
        };
        self.held.insert(held.slot.number(), held);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use kybernate_age::{Header, Identity, NONCE, Opener};

    use super::*;

    struct Written {
        seal: Seal,
        file: Vec<u8>,
        opener: Opener,
    }

    impl Written {
        fn new() -> Self {
            let identity = Identity::generate().unwrap();
            let (file, seal) = Seal::begin(&Encryption {
                recipients: vec![identity.recipient().clone()],
                label: Label::default(),
            })
            .unwrap();
            let header = Header::parse(&file).unwrap();
            let nonce: &[u8; NONCE] = file[header.size()..].try_into().unwrap();
            let opener = Opener::new(&header, nonce, &[identity]).unwrap();
            Self { seal, file, opener }
        }

        fn append(&mut self, bytes: &[u8], open: bool) {
            let file = &mut self.file;
            let mut write = |sealed: &[u8]| {
                file.extend_from_slice(sealed);
                Ok(())
            };
            self.seal.append(bytes, open, &mut write).unwrap();
        }

        /// Ends it; returns the content, and the file as it was before what was held came into it.
        fn end(mut self) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
            let file = &mut self.file;
            let mut write = |sealed: &[u8]| {
                file.extend_from_slice(sealed);
                Ok(())
            };
            self.seal.finish(&mut write).unwrap();
            let before = self.file.clone();
            while let Some((offset, chunk)) = self.seal.pop() {
                let at = offset as usize;
                self.file[at..at + chunk.len()].copy_from_slice(&chunk);
            }
            let chunks = &self.file[self.seal.start as usize..];
            let count = chunks.len().div_ceil(SEALED);
            let mut content = Vec::new();
            for (number, chunk) in chunks.chunks(SEALED).enumerate() {
                let mut chunk = chunk.to_vec();
                let last = number + 1 == count;
                self.opener.open(number as u64, last, &mut chunk).unwrap();
                content.extend(chunk);
            }
            (content, before, self.file)
        }
    }

    fn pattern(size: usize) -> Vec<u8> {
        (0..size).map(|at| (at % 251) as u8 + 1).collect()
    }

    #[test]
    fn a_chunk_that_is_not_final_is_in_the_file_once_and_sealed() {
        // The open part alone, at a start, across a border, at an end, and in the last chunk.
        for (before, open, after) in [
            (0, 500, 0),
            (0, 500, 3 * CHUNK),
            (CHUNK, 500, 2 * CHUNK),
            (CHUNK - 7, 500, 2 * CHUNK),
            (2 * CHUNK - 500, 500, CHUNK + 1),
            (2 * CHUNK + 5, 500, 0),
            (CHUNK - 500, 500, 0),
            (CHUNK - 20, 2 * CHUNK, 5),
        ] {
            let all = pattern(before + open + after);
            let mut written = Written::new();
            written.append(&all[..before], false);
            written.append(&vec![0; open], true);
            written.append(&all[before + open..], false);
            written
                .seal
                .replace(before as u64, &all[before..before + open])
                .unwrap();
            let start = written.seal.start as usize;
            let (content, early, file) = written.end();
            assert!(content == all, "{before} {open} {after}");
            // What was held was zeros in the file, everything else was final.
            let held = before / CHUNK..=(before + open - 1) / CHUNK;
            let chunks = early[start..]
                .chunks(SEALED)
                .zip(file[start..].chunks(SEALED));
            for (number, (early, file)) in chunks.enumerate() {
                if held.contains(&number) {
                    assert!(early.iter().all(|byte| *byte == 0), "{number}");
                } else {
                    assert!(early == file, "{number}");
                }
            }
        }
    }

    #[test]
    fn what_is_sealed_is_not_replaced() {
        let mut written = Written::new();
        written.append(&pattern(2 * CHUNK + 9), false);
        for offset in [0, CHUNK as u64 + 3, 2 * CHUNK as u64 - 1] {
            assert!(matches!(
                written.seal.replace(offset, &[1, 2]),
                Err(WriteError::Sealed { .. })
            ));
        }
        // Nor what is not there yet.
        let end = 2 * CHUNK as u64 + 8;
        assert!(written.seal.replace(end, &[1]).is_ok());
        assert!(written.seal.replace(end, &[1, 2]).is_err());
        let mut written = Written::new();
        written.append(&[0; 9], true);
        written.append(&pattern(CHUNK), false);
        assert!(written.seal.replace(0, &[1]).is_ok());
        assert!(written.seal.pop().is_some());
        assert!(written.seal.pop().is_none());
        assert!(written.seal.replace(0, &[1]).is_err(), "it was sealed");
    }

    #[test]
    fn no_content_is_one_empty_chunk() {
        let (content, _, file) = Written::new().end();
        assert!(content.is_empty());
        assert!(file.len() > TAG);
    }
}
