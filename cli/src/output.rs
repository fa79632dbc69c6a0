//! Standard output, whose reader may leave early.

use std::io::{self, BufWriter, StdoutLock, Write};

/// The reader of standard output has closed it.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed by its reader")]
struct ReaderGone;

/// Standard output with a buffer; flush it before leaving.
#[derive(Debug)]
pub struct Output(BufWriter<StdoutLock<'static>>);

impl Output {
    /// Locks standard output.
    pub fn lock() -> Self {
        Self(BufWriter::with_capacity(256 * 1024, io::stdout().lock()))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(mark)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(mark)
    }
}

/// Prints `value` as JSON for people and programs.
pub fn json(value: &impl serde::Serialize) -> io::Result<()> {
    let mut out = Output::lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)?;
    out.flush()
}

/// Whether a command failed only because nobody reads its output any more.
pub fn reader_is_gone(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<ReaderGone>()
            || cause
                .downcast_ref::<io::Error>()
                .and_then(io::Error::get_ref)
                .is_some_and(|inner| inner.is::<ReaderGone>())
    })
}

fn mark(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => io::Error::other(ReaderGone),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_marked_pipe_counts() {
        let pipe = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(reader_is_gone(
            &anyhow::Error::new(mark(pipe())).context("cat")
        ));
        assert!(!reader_is_gone(&pipe().into()));
    }
}
