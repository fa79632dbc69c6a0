//! What the writer's threads share.
//!
//! ```text
//! producer ──> jobs ──> compressing threads ──> ready ──> writing thread
//!                       (hash the content, too)   (in order)
//! ```
//! A frame's buffer goes back to the pool when its last holder lets go of it. A compressing
//! thread takes its output buffer before its job: so the frame that the writing thread waits
//! for always is in the hands of a thread that can finish it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use memmap2::MmapMut;

use super::digest::{self, Leaf};
use super::error::WriteError;
use super::frame::Piece;
use super::pool::Pool;
use super::priority::Crew;
use crate::memory;

/// Frames that keep the disk busy for as long as one takes to be compressed, roughly.
const ENOUGH: usize = 3;

/// What is to be hashed of a frame, in order.
#[derive(Debug)]
pub(super) enum Mark {
    /// This part of the frame is content of the current entry.
    Content(Range<usize>),
    /// The current entry ends.
    End,
}

/// A filled frame.
#[derive(Debug)]
pub(super) struct Frame {
    buffer: Option<MmapMut>,
    size: usize,
    pub(super) number: u64,
    marks: Vec<Mark>,
    pipeline: Arc<Pipeline>,
}

impl Frame {
    /// The tar bytes.
    pub(super) fn content(&self) -> &[u8] {
        self.buffer
            .as_deref()
            .map_or(&[], |buffer| &buffer[..self.size])
    }

    /// Hashes what is marked.
    pub(super) fn hash(&self) -> Vec<Step> {
        let content = self.content();
        let step = |mark: &Mark| match mark {
            Mark::Content(range) => Step::Piece(digest::leaf(&content[range.clone()])),
            Mark::End => Step::End,
        };
        self.marks.iter().map(step).collect()
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.pipeline.lock().frames.put(buffer);
            self.pipeline.room.notify_one();
        }
    }
}

/// A step of the digests of entries.
#[derive(Debug)]
pub(super) enum Step {
    /// The next piece of the current entry.
    Piece(Leaf),
    /// The current entry ends.
    End,
}

/// A frame as the file will hold it.
#[derive(Debug)]
pub(super) enum Output {
    /// Assembled by the producer; `open` if it will be replaced.
    Built {
        bytes: Vec<u8>,
        content: usize,
        open: bool,
    },
    /// The first `size` bytes of `buffer`.
    Compressed {
        buffer: MmapMut,
        size: usize,
        content: usize,
    },
    /// Content as it is, but for zeros.
    Stored {
        frame: Arc<Frame>,
        pieces: Vec<Piece>,
        checksum: u32,
    },
}

#[derive(Debug)]
struct State {
    frames: Pool,
    outputs: Pool,
    jobs: VecDeque<Arc<Frame>>,
    ready: BTreeMap<u64, (Output, Vec<Step>)>,
    /// Numbers given out, once there will be no more.
    end: Option<u64>,
    failure: Option<WriteError>,
}

/// The shared state.
#[derive(Debug)]
pub(super) struct Pipeline {
    state: Mutex<State>,
    room: Condvar,
    work: Condvar,
    done: Condvar,
    pub(super) crew: Crew,
    frame_size: usize,
    /// Bytes of tar taken from the producer.
    pub(super) read: AtomicU64,
    /// Bytes of tar whose frames the writing thread has taken over.
    pub(super) stored: AtomicU64,
    /// Bytes written to the file.
    pub(super) written: AtomicU64,
}

impl Pipeline {
    pub(super) fn new(frame_size: usize, frames: usize, outputs: usize) -> Self {
        let huge = memory::huge_pages_are_cheap();
        Self {
            state: Mutex::new(State {
                frames: Pool::new(frame_size, frames, huge),
                outputs: Pool::new(frame_size, outputs, huge),
                jobs: VecDeque::new(),
                ready: BTreeMap::new(),
                end: None,
                failure: None,
            }),
            room: Condvar::new(),
            work: Condvar::new(),
            done: Condvar::new(),
            crew: Crew::default(),
            frame_size,
            read: AtomicU64::new(0),
            stored: AtomicU64::new(0),
            written: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_all(&self) {
        for condition in [&self.room, &self.work, &self.done] {
            condition.notify_all();
        }
    }

    /// Ends everything with `error`, unless it ended before.
    pub(super) fn fail(&self, error: WriteError) {
        self.lock().failure.get_or_insert(error);
        self.wake_all();
    }

    /// The failure, if there was one.
    pub(super) fn check(&self) -> Result<(), WriteError> {
        self.lock().failure.clone().map_or(Ok(()), Err)
    }

    /// No frame after number `end - 1` will come.
    pub(super) fn close(&self, end: u64) {
        self.lock().end = Some(end);
        self.wake_all();
    }

    /// Gives the memory back.
    pub(super) fn clear(&self) {
        let mut state = self.lock();
        let dropped = (
            std::mem::take(&mut state.jobs),
            std::mem::take(&mut state.ready),
        );
        drop(state);
        // Frames lock the state to put their buffers back.
        drop(dropped);
        let mut state = self.lock();
        state.frames.clear();
        state.outputs.clear();
    }

    /// A buffer for a frame; waits for one.
    pub(super) fn buffer(&self) -> Result<MmapMut, WriteError> {
        let mut state = self.lock();
        loop {
            if let Some(failure) = &state.failure {
                return Err(failure.clone());
            }
            if let Some(buffer) = state.frames.take().map_err(WriteError::memory)? {
                return Ok(buffer);
            }
            state = self
                .room
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Readies buffers for `bytes` of frames, as far as the limit goes, on `threads` threads.
    pub(super) fn prepare(&self, bytes: u64, threads: usize) {
        let left = AtomicU64::new(bytes.div_ceil(self.frame_size as u64));
        let ready = || {
            while left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                .is_ok()
            {
                let grown = self.lock().frames.grow();
                // A lack of memory is for whoever needs the buffer to tell.
                let Ok(Some(buffer)) = grown else { return };
                let dear = memory::populate(&buffer);
                let mut state = self.lock();
                if dear {
                    state.frames.leave_huge_pages();
                }
                state.frames.put(buffer);
                drop(state);
                self.room.notify_one();
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads {
                // Fewer threads take longer.
                let _ = thread::Builder::new().spawn_scoped(scope, ready);
            }
            ready();
        });
    }

    /// Hands a frame on.
    pub(super) fn submit(
        self: &Arc<Self>,
        number: u64,
        buffer: MmapMut,
        size: usize,
        marks: Vec<Mark>,
    ) {
        let frame = Arc::new(Frame {
            buffer: Some(buffer),
            size,
            number,
            marks,
            pipeline: Arc::clone(self),
        });
        self.lock().jobs.push_back(frame);
        self.work.notify_all();
    }

    /// Hands a finished frame to the writing thread.
    pub(super) fn deliver(&self, number: u64, output: Output, steps: Vec<Step>) {
        self.lock().ready.insert(number, (output, steps));
        self.done.notify_one();
    }

    /// Whether the disk has, or soon will have, nothing to do.
    pub(super) fn disk_waits(&self) -> bool {
        self.lock().ready.len() < ENOUGH
    }

    /// The next frame to compress and a buffer for the result; `None` at the end.
    pub(super) fn job(&self, output: &mut Option<MmapMut>) -> Option<Arc<Frame>> {
        let mut state = self.lock();
        loop {
            if state.failure.is_some() {
                return None;
            }
            if output.is_none() {
                match state.outputs.take() {
                    Ok(buffer) => *output = buffer,
                    Err(error) => {
                        drop(state);
                        self.fail(WriteError::memory(error));
                        return None;
                    }
                }
            }
            if output.is_some()
                && let Some(frame) = state.jobs.pop_front()
            {
                return Some(frame);
            }
            if state.end.is_some() && state.jobs.is_empty() {
                return None;
            }
            state = self
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes an output buffer back.
    pub(super) fn recycle(&self, buffer: MmapMut) {
        self.lock().outputs.put(buffer);
        self.work.notify_all();
    }

    /// Frame `number` for the file; `None` after the last one.
    pub(super) fn output(&self, number: u64) -> Option<(Output, Vec<Step>)> {
        let mut state = self.lock();
        loop {
            if state.failure.is_some() || state.end == Some(number) {
                return None;
            }
            if let Some(output) = state.ready.remove(&number) {
                return Some(output);
            }
            state = self
                .done
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Notes that `bytes` came from the producer.
    pub(super) fn took(&self, bytes: usize) {
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
