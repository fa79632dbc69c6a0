//! How an archive is written.

use super::disk::{BUFFERS, STAGING};
use super::encode::Encoder;
use super::error::WriteError;
use super::level::Level;
use super::{FRAME_MAX, FRAME_MIN};

/// How to write an archive.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// How hard to compress.
    pub level: Level,
    /// Bound on all memory of the writer in bytes: frames that wait to be compressed and frames
    /// that wait to be written.
    pub buffer: u64,
    /// Compressing threads; 0 for one per processor, or fewer where the buffer is small.
    pub workers: usize,
    /// Bytes of tar per frame, 64 KiB to 64 MiB.
    pub frame_size: usize,
}

impl Default for WriteOptions {
    /// The default level, 256 MiB of memory, a thread per processor, frames of 4 MiB.
    fn default() -> Self {
        Self {
            level: Level::Default,
            buffer: 256 << 20,
            workers: 0,
            frame_size: 4 << 20,
        }
    }
}

impl WriteOptions {
    /// How many workers, frames and outputs the buffer has room for.
    pub(super) fn shares(&self) -> Result<(usize, usize, usize), WriteError> {
        let frame_size = self.frame_size;
        if !(FRAME_MIN..=FRAME_MAX).contains(&frame_size) {
            return Err(WriteError::FrameSize { frame_size });
        }
        let frame = frame_size as u64;
        // An output in the hands of every worker, and two on their way to the file; a frame in the
        // hands of every worker, one that waits, and one that is being filled.
        let outputs = |workers: usize| workers + 2;
        let fixed = |workers| {
            (BUFFERS * STAGING) as u64
                + (workers * Encoder::memory(self.level)) as u64
                + outputs(workers) as u64 * frame
        };
        let needed = |workers| fixed(workers) + (workers + 2) as u64 * frame;
        let mut workers = match self.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        };
        if self.workers == 0 {
            while workers > 1 && needed(workers) > self.buffer {
                workers -= 1;
            }
        }
        if self.buffer < needed(workers) {
            return Err(WriteError::Buffer {
                frame_size: self.frame_size,
                workers,
                needed: needed(workers),
                buffer: self.buffer,
            });
        }
        let frames = (self.buffer - fixed(workers)) / frame;
        let frames = usize::try_from(frames).unwrap_or(usize::MAX);
        Ok((workers, frames, outputs(workers)))
    }
}
