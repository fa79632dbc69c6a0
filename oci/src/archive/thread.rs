//! Threads of the writer: named, of one crew, and never gone unnoticed.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::error::WriteError;
use super::pipeline::Pipeline;

/// Starts a thread that fails the pipeline if it panics.
pub(super) fn spawn<T: Send + 'static>(
    name: &'static str,
    pipeline: &Arc<Pipeline>,
    body: impl FnOnce(&Pipeline) -> T + Send + 'static,
) -> Result<JoinHandle<T>, WriteError> {
    let pipeline = Arc::clone(pipeline);
    // The kernel keeps 15 bytes of a thread's name.
    let short = &name[..name.len().min(7)];
    thread::Builder::new()
        .name(format!("archive-{short}"))
        .stack_size(256 << 10)
        .spawn(move || {
            let _alarm = Alarm {
                pipeline: &pipeline,
                thread: name,
            };
            let _member = pipeline.crew.join();
            body(&pipeline)
        })
        .map_err(|source| WriteError::Thread {
            source: Arc::new(source),
        })
}

/// The error for a thread that has panicked.
pub(super) fn panicked(thread: &'static str) -> WriteError {
    WriteError::Panic { thread }
}

/// Fails the pipeline when the thread that holds it panics.
struct Alarm<'a> {
    pipeline: &'a Pipeline,
    thread: &'static str,
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.pipeline.fail(panicked(self.thread));
        }
    }
}
