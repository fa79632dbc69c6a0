//! Copies between pipes, FIFOs, terminals and files.
//!
//! Pipe to pipe goes through splice(2): the pages move in the kernel and the task holds no
//! buffer. A terminal or a file at one end takes a small buffer for as long as it lives.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, ioctl_fionbio, retry_on_intr},
    pipe::{SpliceFlags, splice},
};
use tokio::{io::unix::AsyncFd, task::JoinHandle};

use crate::sys;

/// Most bytes moved at once: what a pipe holds.
const CHUNK: usize = 64 << 10;
/// Buffer where splice can't be used.
const BUFFER: usize = 4096;
/// Pause when both ends claim to be ready and nothing moves.
const BACKOFF: Duration = Duration::from_millis(10);

/// Where bytes go.
#[derive(Debug)]
pub enum Sink {
    /// A pipe or FIFO.
    Pipe(OwnedFd),
    /// The master of a terminal.
    Terminal(Arc<AsyncFd<OwnedFd>>),
    /// A regular file.
    File(File),
    /// Nowhere.
    Discard,
}

impl Sink {
    /// A pipe or FIFO.
    #[must_use]
    pub fn pipe(fd: OwnedFd) -> Self {
        Self::Pipe(fd)
    }
}

/// Copies from a pipe or FIFO to its end in a task of its own. Both ends are closed then.
pub fn spawn(stream: &'static str, from: OwnedFd, to: Sink) -> JoinHandle<()> {
    tokio::spawn(async move {
        if let Err(error) = copy(from, to).await {
            tracing::warn!(stream, %error, "stdio copy ended");
        }
    })
}

/// Copies what a terminal shows.
pub fn spawn_terminal(from: Arc<AsyncFd<OwnedFd>>, to: Sink) -> JoinHandle<()> {
    tokio::spawn(async move {
        if let Err(error) = copy_buffered(&from, to).await {
            tracing::warn!(%error, "terminal copy ended");
        }
    })
}

async fn copy(from: OwnedFd, to: Sink) -> io::Result<()> {
    ioctl_fionbio(&from, true)?;
    let from = sys::watch(from)?;
    match to {
        Sink::Pipe(to) => {
            ioctl_fionbio(&to, true)?;
            move_pages(&from, &sys::watch(to)?).await
        }
        other => copy_buffered(&from, other).await,
    }
}

async fn move_pages(from: &AsyncFd<OwnedFd>, to: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    let mut stalls = 0_u32;
    loop {
        match splice(from.get_ref(), None, to.get_ref(), None, CHUNK, flags) {
            Ok(0) => return Ok(()),
            Ok(_) => {
                stalls = 0;
                tokio::task::consume_budget().await;
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                stalls += 1;
                if stalls > 2 {
                    tokio::time::sleep(BACKOFF).await;
                }
                both_ready(from, to).await?;
            }
            // The reader has gone: a process that closed its stdin.
            Err(Errno::PIPE) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until `from` has bytes or has ended, and `to` has room, at the same time.
async fn both_ready(from: &AsyncFd<OwnedFd>, to: &AsyncFd<OwnedFd>) -> io::Result<()> {
    loop {
        let mut readable = from.readable().await?;
        if !is_ready(from.get_ref(), PollFlags::IN)? {
            readable.clear_ready();
            continue;
        }
        let mut writable = to.writable().await?;
        if !is_ready(to.get_ref(), PollFlags::OUT)? {
            writable.clear_ready();
            continue;
        }
        return Ok(());
    }
}

fn is_ready(fd: &OwnedFd, event: PollFlags) -> io::Result<bool> {
    let mut fds = [PollFd::new(fd, event)];
    // A signal that is pending ends even a look that does not wait. Errors and hang-ups count: the
    // next call reports them.
    let ready = retry_on_intr(|| poll(&mut fds, Some(&Timespec::default())))?;
    Ok(ready > 0)
}

async fn copy_buffered(from: &AsyncFd<OwnedFd>, mut to: Sink) -> io::Result<()> {
    if let Sink::Pipe(fd) = to {
        ioctl_fionbio(&fd, true)?;
        to = Sink::Terminal(Arc::new(sys::watch(fd)?));
    }
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from
            .async_io(tokio::io::Interest::READABLE, |fd| {
                rustix::io::read(fd, &mut buffer[..]).map_err(io::Error::from)
            })
            .await;
        let length = match read {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            // The last process has closed the terminal.
            Err(e) if e.raw_os_error() == Some(Errno::IO.raw_os_error()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        match &mut to {
            Sink::Terminal(fd) => match write_all(fd, &buffer[..length]).await {
                // The other side is gone, as a process that closed its stdin is.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                other => other?,
            },
            Sink::File(file) => file.write_all(&buffer[..length])?,
            Sink::Discard | Sink::Pipe(_) => {}
        }
        tokio::task::consume_budget().await;
    }
}

async fn write_all(to: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = to
            .async_io(tokio::io::Interest::WRITABLE, |fd| {
                rustix::io::write(fd.as_fd(), bytes).map_err(io::Error::from)
            })
            .await;
        match written {
            Ok(length) => bytes = &bytes[length..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        sync::atomic::{AtomicBool, Ordering},
    };

    use nix::sys::signal::{Signal, kill};
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn pipe() -> (File, File) {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        (read.into(), write.into())
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length)
            .map(|n| u8::try_from(n % 251).unwrap())
            .collect()
    }

    #[tokio::test]
    async fn more_than_both_pipes_hold_arrives_whole_and_ends() {
        let (source, mut feed) = pipe();
        let (mut drain, sink) = pipe();
        let copy = spawn("test", source.into(), Sink::pipe(sink.into()));
        let data = pattern(1 << 20);
        let sent = data.clone();
        let writer = std::thread::spawn(move || feed.write_all(&sent).unwrap());
        let reader = tokio::task::spawn_blocking(move || {
            std::thread::sleep(Duration::from_millis(50));
            let mut got = Vec::new();
            drain.read_to_end(&mut got).unwrap();
            got
        });
        assert!(reader.await.unwrap() == data);
        copy.await.unwrap();
        writer.join().unwrap();
    }

    #[tokio::test]
    async fn a_file_gets_everything_appended() {
        let mut file = tempfile::tempfile().unwrap();
        let (source, mut feed) = pipe();
        let copy = spawn("test", source.into(), Sink::File(file.try_clone().unwrap()));
        tokio::task::spawn_blocking(move || feed.write_all(&pattern(100_000)).unwrap())
            .await
            .unwrap();
        copy.await.unwrap();
        let mut got = Vec::new();
        io::Seek::rewind(&mut file).unwrap();
        file.read_to_end(&mut got).unwrap();
        assert!(got == pattern(100_000));
    }

    #[tokio::test]
    async fn signals_do_not_end_a_copy() {
        let user = tokio::signal::unix::SignalKind::user_defined2();
        let _handled = tokio::signal::unix::signal(user).unwrap();
        // A signal for a thread's id is for its process, and that thread is the first choice.
        let thread = nix::unistd::gettid();
        let done = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&done);
        let signals = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                kill(thread, Signal::SIGUSR2).unwrap();
            }
        });
        let (quiet, _feed) = pipe();
        let quiet = OwnedFd::from(quiet);
        let looks: Vec<_> = (0..100_000)
            .map(|_| is_ready(&quiet, PollFlags::IN))
            .collect();
        done.store(true, Ordering::Relaxed);
        signals.join().unwrap();
        assert!(looks.iter().all(|look| matches!(look, Ok(false))));
    }

    #[tokio::test]
    async fn a_reader_that_left_ends_the_copy() {
        let (source, mut feed) = pipe();
        let (drain, sink) = pipe();
        drop(drain);
        let copy = spawn("test", source.into(), Sink::pipe(sink.into()));
        feed.write_all(b"x").unwrap();
        tokio::time::timeout(Duration::from_secs(5), copy)
            .await
            .unwrap()
            .unwrap();
    }
}
