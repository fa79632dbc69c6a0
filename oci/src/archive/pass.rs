//! One pass over all frames: decoded on several threads, checked in order.
//!
//! A thread takes a buffer, then the next frame, decodes and hashes it, writes what is to be
//! extracted, and queues it. The caller's thread takes frames off the queue in order and compares headers,
//! digests and padding with the manifest. As many frames are in memory as there are buffers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use memmap2::MmapMut;
use sha2::{Digest as _, Sha256};

use super::decode::Decoder;
use super::digest::{self, Digest, Leaf};
use super::error::{EntryFault, ReadError};
use super::extract::Targets;
use super::frame;
use super::layout::{self, Part};
use super::pool::Pool;
use super::reader::Archive;
use crate::memory;

/// Most memory for decoded frames, in bytes, however many processors there are: an archive says
/// itself how large its frames are. One frame always has room.
const MEMORY: usize = 512 << 20;

/// A pass in progress.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    archive: &'a Archive,
    targets: Option<&'a Targets>,
    threads: usize,
    cancelled: &'a AtomicBool,
    state: Mutex<State>,
    room: Condvar,
    done: Condvar,
}

#[derive(Debug)]
struct State {
    pool: Pool,
    next: usize,
    ready: BTreeMap<usize, Result<Decoded, ReadError>>,
    stop: bool,
}

#[derive(Debug)]
struct Decoded {
    buffer: MmapMut,
    size: usize,
    digest: u64,
    /// Of the pieces of content in it, in order.
    leaves: Vec<Leaf>,
}

impl<'a> Pass<'a> {
    /// A pass with `threads` threads; 0 for one per processor.
    pub(super) fn new(
        archive: &'a Archive,
        targets: Option<&'a Targets>,
        threads: usize,
        cancelled: &'a AtomicBool,
    ) -> Self {
        let threads = match threads {
            0 => thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let contents = archive
            .frames
            .iter()
            .map(|frame| frame.row.content as usize);
        let largest = contents.max().unwrap_or(1);
        let (threads, buffers) = crew(threads.min(archive.frames.len()), largest);
        Self {
            archive,
            targets,
            threads,
            cancelled,
            state: Mutex::new(State {
                pool: Pool::new(largest, buffers, memory::huge_pages_are_cheap()),
                next: 0,
                ready: BTreeMap::new(),
                stop: false,
            }),
            room: Condvar::new(),
            done: Condvar::new(),
        }
    }

    /// Runs it; `progress` gets the bytes of tar checked so far.
    pub(super) fn run(&self, progress: &mut dyn FnMut(u64)) -> Result<(), ReadError> {
        thread::scope(|scope| {
            let _stop = Stop(self);
            for _ in 0..self.threads {
                thread::Builder::new()
                    .name("archive-decode".to_owned())
                    .stack_size(256 << 10)
                    .spawn_scoped(scope, || {
                        let _stop = StopOnPanic(self);
                        self.decode();
                    })
                    .map_err(|source| ReadError::Thread { source })?;
            }
            self.check(progress)
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.lock().stop = true;
        self.room.notify_all();
        self.done.notify_all();
    }

    /// Body of a decoding thread.
    fn decode(&self) {
        let mut decoder = Decoder::new();
        while let Some((number, buffer)) = self.job() {
            let result = buffer.and_then(|buffer| self.decode_one(&mut decoder, number, buffer));
            self.lock().ready.insert(number, result);
            self.done.notify_one();
        }
    }

    /// A buffer and the number of the frame to decode into it.
    fn job(&self) -> Option<(usize, Result<MmapMut, ReadError>)> {
        let mut state = self.lock();
        loop {
            if state.stop || state.next == self.archive.frames.len() {
                return None;
            }
            let buffer = match state.pool.take() {
                Ok(None) => {
                    state = self
                        .room
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
                Ok(Some(buffer)) => Ok(buffer),
                Err(source) => Err(ReadError::Memory { source }),
            };
            state.next += 1;
            return Some((state.next - 1, buffer));
        }
    }

    fn decode_one(
        &self,
        decoder: &mut Decoder,
        number: usize,
        mut buffer: MmapMut,
    ) -> Result<Decoded, ReadError> {
        let frame = &self.archive.frames[number];
        let entries = &self.archive.manifest.entries;
        let size = frame.row.content as usize;
        let content = &mut buffer[..size];
        let digest = decoder
            .decode(&self.archive.source, frame, content)
            .map_err(|broken| {
                let entry = &entries[layout::entry_at(entries, frame.start)];
                broken.at(frame, number, &entry.name)
            })?;
        let mut leaves = Vec::new();
        for segment in layout::segments(entries, frame.start, size) {
            if let Part::Content(from) = segment.part {
                let piece = &content[segment.range];
                leaves.push(digest::leaf(piece));
                if let Some(targets) = self.targets {
                    targets.write(segment.entry, from, piece)?;
                }
            }
        }
        Ok(Decoded {
            buffer,
            size,
            digest,
            leaves,
        })
    }

    /// Frame `number`, once it is decoded.
    fn decoded(&self, number: usize) -> Result<Decoded, ReadError> {
        let mut state = self.lock();
        loop {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(ReadError::Cancelled);
            }
            if let Some(result) = state.ready.remove(&number) {
                return result;
            }
            if state.stop {
                // Only a thread that panicked sets this before the end; the scope passes it on.
                return Err(ReadError::Cancelled);
            }
            state = self
                .done
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn check(&self, progress: &mut dyn FnMut(u64)) -> Result<(), ReadError> {
        let entries = &self.archive.manifest.entries;
        let mut content_digest = Digest::default();
        let mut frames_digest = Sha256::new();
        for (number, frame) in self.archive.frames.iter().enumerate() {
            let decoded = self.decoded(number)?;
            frames_digest.update(decoded.digest.to_le_bytes());
            let mut leaves = decoded.leaves.into_iter();
            for segment in layout::segments(entries, frame.start, decoded.size) {
                let entry = &entries[segment.entry];
                let bytes = &decoded.buffer[segment.range];
                let fault = match segment.part {
                    Part::Header(from) if !layout::is_header(entry, from, bytes) => {
                        Some(EntryFault::Header)
                    }
                    Part::Padding if !frame::is_zero(bytes) => Some(EntryFault::Padding),
                    Part::Content(from) => {
                        leaves
                            .next()
                            .into_iter()
                            .for_each(|leaf| content_digest.push(leaf));
                        let ends = from + bytes.len() as u64 == entry.size;
                        let found = ends.then(|| content_digest.finish());
                        found.filter(|found| *found != entry.sha256).map(|found| {
                            EntryFault::Digest {
                                expected: entry.sha256.clone(),
                                found,
                            }
                        })
                    }
                    _ => None,
                };
                if let Some(fault) = fault {
                    return Err(ReadError::Entry {
                        name: entry.name.clone(),
                        fault,
                    });
                }
            }
            self.lock().pool.put(decoded.buffer);
            self.room.notify_one();
            progress(frame.start + decoded.size as u64);
        }
        let found = super::hex(&frames_digest.finalize());
        if found != self.archive.manifest.frames {
            return Err(ReadError::Frames {
                expected: self.archive.manifest.frames.clone(),
                found,
            });
        }
        progress(self.archive.content_bytes());
        Ok(())
    }
}

/// How many threads of those wanted, and buffers, for frames of at most `largest` bytes.
fn crew(threads: usize, largest: usize) -> (usize, usize) {
    let fit = (MEMORY / largest.max(1)).max(1);
    let threads = threads.clamp(1, fit);
    (threads, (threads * 2 + 2).min(fit))
}

/// Ends the threads when the caller's thread is through.
struct Stop<'a>(&'a Pass<'a>);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Ends all when a decoding thread panics.
struct StopOnPanic<'a>(&'a Pass<'a>);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.stop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_frames_take_no_more_memory_on_many_processors() {
        for (threads, largest, expected) in [
            (2, 4 << 20, (2, 6)),
            (32, 4 << 20, (32, 66)),
            (128, 4 << 20, (128, 128)),
            (2, 64 << 20, (2, 6)),
            (128, 64 << 20, (8, 8)),
            (128, 1 << 30, (1, 1)),
            (0, 0, (1, 4)),
        ] {
            assert_eq!(crew(threads, largest), expected, "{threads} {largest}");
        }
    }
}
