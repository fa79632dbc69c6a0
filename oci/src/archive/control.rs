//! A handle on a running writer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::error::WriteError;
use super::pipeline::Pipeline;

/// More threads than these don't clear memory faster.
const MOST_THREADS: usize = 8;

/// Cancels and observes a [`Writer`](super::Writer) from any thread, also after its end.
#[derive(Debug, Clone)]
pub struct Control {
    pipeline: Arc<Pipeline>,
}

impl Control {
    pub(super) fn new(pipeline: Arc<Pipeline>) -> Self {
        Self { pipeline }
    }

    /// Makes every blocked and every later call of the writer fail with
    /// [`WriteError::Cancelled`].
    pub fn cancel(&self) {
        self.pipeline.fail(WriteError::Cancelled);
    }

    /// While `true`, the writer's threads leave the processors to whoever wants them.
    ///
    /// Without the right to end that again (`CAP_SYS_NICE`) nothing changes.
    pub fn set_background(&self, background: bool) {
        self.pipeline.crew.set_background(background);
    }

    /// Readies memory for `bytes` that will come, as far as the writer's buffer goes, on all
    /// processors, and returns when it is there. The producer then need not wait for the kernel to
    /// clear it.
    pub fn prepare(&self, bytes: u64) {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        self.pipeline.prepare(bytes, threads.min(MOST_THREADS));
    }

    /// Bytes of tar taken from the producer so far.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.pipeline.read.load(Ordering::Relaxed)
    }

    /// Bytes written to the file so far.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.pipeline.written.load(Ordering::Relaxed)
    }

    /// Bytes of tar that were taken and whose frames are not yet on their way to the file.
    #[must_use]
    pub fn waiting_bytes(&self) -> u64 {
        let stored = self.pipeline.stored.load(Ordering::Relaxed);
        self.read_bytes().saturating_sub(stored)
    }
}
