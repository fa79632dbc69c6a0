//! Stdio of a process that runs.

use std::{
    fs::OpenOptions,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::{
    fs::OFlags,
    termios::{Winsize, tcsetwinsize},
};
use tokio::{io::unix::AsyncFd, task::JoinHandle, time::Instant};

use super::{
    StdioError,
    copy::{self, Sink},
    logger::Logger,
};

/// How long `Delete` waits for output that is still under way.
pub const DRAIN: Duration = Duration::from_secs(10);

/// Stdio of a process that runs.
#[derive(Debug, Default)]
pub struct Streams {
    /// The write end of the stdin FIFO, until `CloseIO`.
    keeper: Mutex<Option<OwnedFd>>,
    input: Option<JoinHandle<()>>,
    pub(super) outputs: Vec<JoinHandle<()>>,
    pub(super) console: Option<Arc<AsyncFd<OwnedFd>>>,
    pub(super) logger: Mutex<Option<Logger>>,
}

impl Streams {
    pub(super) fn feed(&mut self, path: &str, sink: Sink) -> Result<(), StdioError> {
        let failed = |source| StdioError::Open {
            stream: "stdin",
            path: path.into(),
            source,
        };
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let open = |o: &mut OpenOptions| o.custom_flags(flags).open(path).map_err(failed);
        let source = open(OpenOptions::new().read(true))?;
        let keeper = open(OpenOptions::new().write(true))?;
        self.keeper = Mutex::new(Some(keeper.into()));
        self.input = Some(copy::spawn("stdin", source.into(), sink));
        Ok(())
    }

    /// Lets the process see the end of its input, once the client has closed its side.
    pub fn close_stdin(&self) {
        self.keeper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    /// Sets the size of the terminal, in characters. Nothing happens without a terminal.
    pub fn resize(&self, width: u32, height: u32) -> io::Result<()> {
        let cells = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        let size = Winsize {
            ws_row: cells(height),
            ws_col: cells(width),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        match &self.console {
            Some(console) => Ok(tcsetwinsize(console.get_ref().as_fd(), size)?),
            None => Ok(()),
        }
    }

    /// Waits until all output has been delivered, at most [`DRAIN`], and ends the copies.
    pub async fn drain(mut self) {
        self.close_stdin();
        if let Some(input) = self.input.take() {
            input.abort();
        }
        let end = Instant::now() + DRAIN;
        for mut output in std::mem::take(&mut self.outputs) {
            if tokio::time::timeout_at(end, &mut output).await.is_err() {
                tracing::warn!("output of an ended process is held open; closing it");
                output.abort();
            }
        }
        let logger = self
            .logger
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(logger) = logger {
            logger.finish(end).await;
        }
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.input
            .iter()
            .chain(&self.outputs)
            .for_each(JoinHandle::abort);
    }
}
