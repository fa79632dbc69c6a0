//! What checkpoints that run will still write. The free space shows it only once it is written.

use std::sync::atomic::{AtomicU64, Ordering};

/// All of it, in bytes.
static PROMISED: AtomicU64 = AtomicU64::new(0);

/// The space for one archive, until it has it or will not need it any more.
#[derive(Debug)]
pub struct Promise {
    wanted: u64,
    left: u64,
}

impl Promise {
    pub(super) fn new(wanted: u64) -> Self {
        PROMISED.fetch_add(wanted, Ordering::Relaxed);
        Self {
            wanted,
            left: wanted,
        }
    }

    /// So much of the archive is there.
    pub fn written(&mut self, bytes: u64) {
        let left = self.wanted.saturating_sub(bytes).min(self.left);
        PROMISED.fetch_sub(self.left - left, Ordering::Relaxed);
        self.left = left;
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        PROMISED.fetch_sub(self.left, Ordering::Relaxed);
    }
}

/// Of all promises, what is not written.
pub(super) fn outstanding() -> u64 {
    PROMISED.load(Ordering::Relaxed)
}
