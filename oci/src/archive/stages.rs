//! The writer's threads: those that hash and compress, and the one that writes.

use std::sync::Arc;
use std::thread::JoinHandle;

use super::digest::Digest;
use super::encode::{Encoded, Encoder};
use super::error::WriteError;
use super::frame;
use super::level::Level;
use super::pipeline::{Output, Pipeline, Step};
use super::sink::Sink;
use super::thread::{panicked, spawn};
use crate::memory;

/// More than the address space of a thread in bytes: its stacks, and what the allocator sets aside.
const OF_A_THREAD: usize = 512 << 10;
/// Address space in bytes for those who start threads at the same time.
const AROUND: usize = 8 << 20;

/// The running threads.
#[derive(Debug)]
pub(super) struct Stages {
    compressing: Vec<JoinHandle<()>>,
    writing: JoinHandle<Option<Written>>,
}

/// Fails unless there is room for all threads: one that finds no memory at its start takes the whole
/// process with it.
pub(super) fn have_room(workers: usize) -> Result<(), WriteError> {
    // Two that write, too.
    let needed = OF_A_THREAD * (workers + 2) + AROUND;
    memory::is_there(needed).map_err(WriteError::memory)
}

/// What the writing thread leaves.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) sink: Sink,
    /// Of all files that have ended, in order.
    pub(super) digests: Vec<String>,
    current: Digest,
}

impl Written {
    /// Ends the current file.
    pub(super) fn end(&mut self) {
        self.digests.push(self.current.finish());
    }
}

impl Stages {
    /// Starts them; when not all do, those that did end themselves.
    pub(super) fn start(
        pipeline: &Arc<Pipeline>,
        sink: Sink,
        level: Level,
        workers: usize,
    ) -> Result<Self, WriteError> {
        let start = || {
            let mut compressing = Vec::with_capacity(workers);
            for _ in 0..workers {
                let encoder = Encoder::new(level)?;
                compressing.push(spawn("compressing", pipeline, |pipeline| {
                    compress(pipeline, encoder);
                })?);
            }
            Ok(Self {
                compressing,
                writing: spawn("writing", pipeline, |pipeline| write(pipeline, sink))?,
            })
        };
        start().inspect_err(|error: &WriteError| pipeline.fail(error.clone()))
    }

    /// Waits for their end.
    pub(super) fn join(self) -> Result<Option<Written>, WriteError> {
        let mut result = Ok(());
        for thread in self.compressing {
            if thread.join().is_err() {
                result = Err(panicked("compressing"));
            }
        }
        let written = self.writing.join().map_err(|_| panicked("writing"));
        result?;
        written
    }
}

fn compress(pipeline: &Pipeline, mut encoder: Encoder) {
    let mut output = None;
    while let Some(frame) = pipeline.job(&mut output) {
        let content = frame.content();
        let encoded = match output.as_deref_mut() {
            Some(buffer) => encoder.encode(content, buffer, pipeline.disk_waits()),
            None => return,
        };
        let number = frame.number;
        let result = match encoded {
            Ok(Encoded::Compressed(size)) => output.take().map(|buffer| Output::Compressed {
                buffer,
                size,
                content: content.len(),
            }),
            Ok(Encoded::Stored(pieces)) => Some(Output::Stored {
                checksum: frame::checksum(content),
                pieces,
                frame: Arc::clone(&frame),
            }),
            Err(error) => return pipeline.fail(error),
        };
        if let Some(result) = result {
            pipeline.deliver(number, result, frame.hash());
        }
    }
}

fn write(pipeline: &Pipeline, sink: Sink) -> Option<Written> {
    let mut written = Written {
        sink,
        digests: Vec::new(),
        current: Digest::default(),
    };
    let mut number = 0;
    while let Some((output, steps)) = pipeline.output(number) {
        if let Err(error) = written.sink.frame(output) {
            pipeline.fail(error);
            return None;
        }
        for step in steps {
            match step {
                Step::Piece(leaf) => written.current.push(leaf),
                Step::End => written.end(),
            }
        }
        number += 1;
    }
    Some(written)
}
