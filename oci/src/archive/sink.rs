//! Appends frames to the archive: staged for large aligned writes, encrypted on the way if that is
//! asked for.

use std::fs::File;
use std::hash::Hasher as _;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use memmap2::MmapMut;
use sha2::{Digest as _, Sha256};
use twox_hash::XxHash3_64;

use super::disk::{ALIGNMENT, Disk, STAGING};
use super::error::WriteError;
use super::frame;
use super::pipeline::{Output, Pipeline};
use super::seal::{Encryption, Seal};
use super::seek::Row;

/// A frame in the file.
#[derive(Debug)]
struct Stored {
    offset: u64,
    row: Row,
    digest: u64,
}

/// Appends frames to the file.
#[derive(Debug)]
pub(super) struct Sink {
    disk: Disk,
    pipeline: Arc<Pipeline>,
    staging: MmapMut,
    fill: usize,
    /// Where `staging` belongs in the file.
    offset: u64,
    frames: Vec<Stored>,
    /// What encrypts, if anything does. Offsets of frames are those of what goes into it; what
    /// comes out is staged, so that writes are as large and as aligned as those of plain archives.
    seal: Option<Box<Seal>>,
}

impl Sink {
    pub(super) fn new(
        file: File,
        pipeline: Arc<Pipeline>,
        encryption: Option<&Encryption>,
    ) -> Result<Self, WriteError> {
        let mut disk = Disk::start(file, &pipeline)?;
        let mut sink = Self {
            staging: disk.buffer()?,
            disk,
            pipeline,
            fill: 0,
            offset: 0,
            frames: Vec::new(),
            seal: None,
        };
        if let Some(encryption) = encryption {
            let (head, seal) = Seal::begin(encryption)?;
            sink.stage(&head)?;
            sink.seal = Some(Box::new(seal));
        }
        Ok(sink)
    }

    /// Size of the file in bytes, as far as it is decided.
    pub(super) fn size(&self) -> u64 {
        self.offset + self.fill as u64
    }

    /// Bytes of archive so far.
    fn position(&self) -> u64 {
        self.seal
            .as_ref()
            .map_or_else(|| self.size(), |seal| seal.position())
    }

    /// Appends a frame.
    pub(super) fn frame(&mut self, output: Output) -> Result<(), WriteError> {
        let offset = self.position();
        let mut digest = XxHash3_64::new();
        let (content, checksum) = match output {
            Output::Built {
                bytes,
                content,
                open,
            } => {
                digest.write(&bytes);
                self.put(&bytes, open)?;
                (content, trailer(&bytes))
            }
            Output::Compressed {
                buffer,
                size,
                content,
            } => {
                digest.write(&buffer[..size]);
                self.append(&buffer[..size])?;
                let checksum = trailer(&buffer[..size]);
                self.pipeline.recycle(buffer);
                (content, checksum)
            }
            Output::Stored {
                frame,
                pieces,
                checksum,
            } => {
                let content = frame.content();
                frame::emit(content, &pieces, checksum, |part| {
                    digest.write(part);
                    self.append(part)
                })?;
                (content.len(), checksum)
            }
        };
        self.frames.push(Stored {
            offset,
            row: Row {
                stored: (self.position() - offset) as u32,
                content: content as u32,
                checksum,
            },
            digest: digest.finish(),
        });
        self.pipeline
            .stored
            .fetch_add(content as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Puts `bytes` in the place of frame `number`, which has the same size and content size.
    pub(super) fn replace(&mut self, number: usize, bytes: &[u8]) -> Result<(), WriteError> {
        let frame = &mut self.frames[number];
        debug_assert_eq!(frame.row.stored as usize, bytes.len());
        frame.row.checksum = trailer(bytes);
        frame.digest = XxHash3_64::oneshot(bytes);
        let offset = frame.offset;
        match &mut self.seal {
            Some(seal) => seal.replace(offset, bytes),
            None => self.disk.patch(offset, bytes),
        }
    }

    /// A digest over the stored bytes of all frames so far.
    pub(super) fn digest(&self) -> String {
        let mut digest = Sha256::new();
        for frame in &self.frames {
            digest.update(frame.digest.to_le_bytes());
        }
        super::hex(&digest.finalize())
    }

    /// The seek table's rows.
    pub(super) fn rows(&self) -> Vec<Row> {
        self.frames.iter().map(|frame| frame.row).collect()
    }

    /// Appends bytes that are final.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.put(bytes, false)
    }

    /// Appends bytes; those that are `open` will be replaced.
    fn put(&mut self, bytes: &[u8], open: bool) -> Result<(), WriteError> {
        let Some(mut seal) = self.seal.take() else {
            return self.stage(bytes);
        };
        let put = seal.append(bytes, open, &mut |sealed| self.stage(sealed));
        self.seal = Some(seal);
        put
    }

    /// Puts bytes at the end of the file.
    fn stage(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            let room = &mut self.staging[self.fill..];
            let size = room.len().min(bytes.len());
            room[..size].copy_from_slice(&bytes[..size]);
            self.fill += size;
            bytes = &bytes[size..];
            if self.fill == STAGING {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes everything out and leaves direct mode: what follows are patches.
    pub(super) fn settle(&mut self) -> Result<(), WriteError> {
        let aligned = self.fill / ALIGNMENT * ALIGNMENT;
        let rest = self.staging[aligned..self.fill].to_vec();
        self.fill = aligned;
        self.flush()?;
        self.disk.settle(self.offset)?;
        self.stage(&rest)?;
        self.flush()?;
        self.disk.wait()
    }

    /// Writes everything out. Nothing can be appended or replaced any more.
    pub(super) fn end(&mut self) -> Result<(), WriteError> {
        let mut seal = self.seal.take();
        if let Some(seal) = &mut seal {
            seal.finish(&mut |sealed| self.stage(sealed))?;
        }
        self.settle()?;
        while let Some((offset, chunk)) = seal.as_mut().and_then(|seal| seal.pop()) {
            self.disk.patch(offset, &chunk)?;
        }
        Ok(())
    }

    /// Makes the file's data and size durable.
    pub(super) fn sync(&self) -> Result<(), WriteError> {
        self.disk.sync(self.size())
    }

    /// Has what is staged written.
    fn flush(&mut self) -> Result<(), WriteError> {
        if self.fill > 0 {
            let next = self.disk.buffer()?;
            let full = mem::replace(&mut self.staging, next);
            self.disk.write(full, self.fill, self.offset)?;
            self.offset += self.fill as u64;
            self.fill = 0;
        }
        Ok(())
    }
}

/// The checksum that ends a frame.
fn trailer(frame: &[u8]) -> u32 {
    frame
        .last_chunk()
        .map_or(0, |bytes| u32::from_le_bytes(*bytes))
}
