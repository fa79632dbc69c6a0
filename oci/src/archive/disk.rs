//! The archive's file: written past the page cache where that works, on a thread of its own, so
//! that the next bytes are staged meanwhile.
//!
//! ```text
//! sink ── full buffer ──> disk thread ── pwrite ──> file
//!      <── empty buffer ──
//! ```

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use memmap2::MmapMut;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::error::WriteError;
use super::pipeline::Pipeline;
use super::thread::{panicked, spawn};
use crate::memory;

/// Bytes per write.
pub(super) const STAGING: usize = 4 << 20;
/// One is filled while the other is written.
pub(super) const BUFFERS: usize = 2;
/// What direct writes want offsets and sizes to be multiples of, at most.
pub(super) const ALIGNMENT: usize = 4 << 10;

/// Name of the thread.
const NAME: &str = "disk";

/// Part of the file.
#[derive(Debug)]
struct Full {
    buffer: MmapMut,
    size: usize,
    offset: u64,
}

/// The file, as both threads see it.
#[derive(Debug)]
struct Target {
    file: File,
    direct: AtomicBool,
    pipeline: Arc<Pipeline>,
}

/// Writes what it is given in order, one piece behind.
#[derive(Debug)]
pub(super) struct Disk {
    target: Arc<Target>,
    full: Option<Sender<Full>>,
    empty: Receiver<Result<MmapMut, WriteError>>,
    spare: Vec<MmapMut>,
    /// Buffers that the thread has.
    away: usize,
    thread: Option<JoinHandle<()>>,
}

impl Disk {
    /// Starts the thread.
    pub(super) fn start(file: File, pipeline: &Arc<Pipeline>) -> Result<Self, WriteError> {
        let target = Arc::new(Target {
            direct: AtomicBool::new(set_direct(&file, true).is_ok()),
            file,
            pipeline: Arc::clone(pipeline),
        });
        let spare = (0..BUFFERS)
            .map(|_| memory::map(STAGING, false).map_err(WriteError::memory))
            .collect::<Result<_, _>>()?;
        let (full, filled) = channel::<Full>();
        let (emptied, empty) = channel();
        let shared = Arc::clone(&target);
        let thread = spawn(NAME, pipeline, move |_| {
            for Full {
                buffer,
                size,
                offset,
            } in filled
            {
                let written = shared.write(offset, &buffer[..size], "write");
                let failed = written.is_err();
                if emptied.send(written.map(|()| buffer)).is_err() || failed {
                    return;
                }
            }
        })?;
        Ok(Self {
            target,
            full: Some(full),
            empty,
            spare,
            away: 0,
            thread: Some(thread),
        })
    }

    /// A buffer of [`STAGING`] bytes; waits for one.
    ///
    /// # Errors
    /// What has failed since the last call.
    pub(super) fn buffer(&mut self) -> Result<MmapMut, WriteError> {
        match self.spare.pop() {
            Some(buffer) => Ok(buffer),
            None => self.returned(),
        }
    }

    /// Writes the first `size` bytes of a buffer at `offset`, soon.
    pub(super) fn write(
        &mut self,
        buffer: MmapMut,
        size: usize,
        offset: u64,
    ) -> Result<(), WriteError> {
        let full = Full {
            buffer,
            size,
            offset,
        };
        let sent = self.full.as_ref().is_some_and(|to| to.send(full).is_ok());
        if !sent {
            return Err(panicked(NAME));
        }
        self.away += 1;
        Ok(())
    }

    /// Waits until all is written, and leaves direct mode: what follows has any size.
    pub(super) fn settle(&mut self, offset: u64) -> Result<(), WriteError> {
        self.wait()?;
        self.target.leave_direct(offset)
    }

    /// Waits until all is written.
    pub(super) fn wait(&mut self) -> Result<(), WriteError> {
        while self.away > 0 {
            let buffer = self.returned()?;
            self.spare.push(buffer);
        }
        Ok(())
    }

    /// Writes over what is there, once it [settled](Self::settle).
    pub(super) fn patch(&self, offset: u64, bytes: &[u8]) -> Result<(), WriteError> {
        self.target.write(offset, bytes, "patch")
    }

    /// Makes the file's data and size durable.
    pub(super) fn sync(&self, size: u64) -> Result<(), WriteError> {
        let synced = self.target.file.sync_data();
        synced.map_err(|source| WriteError::io("sync", size, source))
    }

    fn returned(&mut self) -> Result<MmapMut, WriteError> {
        let buffer = self.empty.recv().map_err(|_| panicked(NAME))?;
        self.away -= 1;
        buffer
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.full = None;
        if let Some(thread) = self.thread.take() {
            // Its panic has failed the pipeline.
            let _ = thread.join();
        }
    }
}

impl Target {
    fn write(&self, offset: u64, data: &[u8], action: &'static str) -> Result<(), WriteError> {
        let mut done = self.file.write_all_at(data, offset);
        let refused = |error: &std::io::Error| error.raw_os_error() == Some(Errno::EINVAL as i32);
        if self.direct.load(Ordering::Relaxed) && done.as_ref().is_err_and(refused) {
            self.leave_direct(offset)?;
            done = self.file.write_all_at(data, offset);
        }
        done.map_err(|source| WriteError::io(action, offset, source))?;
        let written = &self.pipeline.written;
        written.fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn leave_direct(&self, offset: u64) -> Result<(), WriteError> {
        if self.direct.swap(false, Ordering::Relaxed) {
            set_direct(&self.file, false)
                .map_err(|errno| WriteError::io("write", offset, errno.into()))?;
        }
        Ok(())
    }
}

fn set_direct(file: &File, direct: bool) -> nix::Result<()> {
    let mut flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    flags.set(OFlag::O_DIRECT, direct);
    fcntl(file, FcntlArg::F_SETFL(flags)).map(drop)
}
