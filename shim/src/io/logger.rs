//! A logging program (`binary://` output).
//!
//! It gets the container's stdout on fd 3, its stderr on fd 4 and, on fd 5, the write end of
//! a pipe on which it tells that it is ready: a byte, or closing it. `CONTAINER_ID` and
//! `CONTAINER_NAMESPACE` are its environment.

use std::{
    io,
    os::fd::OwnedFd,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use command_fds::{CommandFdExt, FdMapping};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::{io::AsyncReadExt, net::unix::pipe, time::Instant};

use super::{Owner, StdioError};
use crate::reaper::{Claim, Reaper};

/// How long it may take to be ready.
const READY: Duration = Duration::from_secs(10);
/// How long it may take to end after SIGTERM.
const TERMINATE: Duration = Duration::from_secs(12);

/// A logging program that runs.
#[derive(Debug)]
pub struct Logger {
    claim: Claim,
    reaper: Reaper,
}

impl Logger {
    /// Starts it and waits until it is ready.
    pub async fn start(
        program: &Path,
        args: &[String],
        owner: &Owner,
        [stdout, stderr]: [Option<OwnedFd>; 2],
        reaper: &Reaper,
    ) -> Result<Self, StdioError> {
        let failed = |source| StdioError::Logger {
            program: program.into(),
            source,
        };
        let (ready, signal) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let spawn = || -> io::Result<Claim> {
            let mut mappings = vec![FdMapping {
                parent_fd: signal,
                child_fd: 5,
            }];
            for (fd, child_fd) in [(stdout, 3), (stderr, 4)] {
                let parent_fd = match fd {
                    Some(fd) => fd,
                    None => std::fs::File::open("/dev/null")?.into(),
                };
                mappings.push(FdMapping {
                    parent_fd,
                    child_fd,
                });
            }
            let mut command = Command::new(program);
            command
                .args(args)
                .env_clear()
                .env("CONTAINER_ID", &owner.id)
                .env("CONTAINER_NAMESPACE", &owner.namespace)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .fd_mappings(mappings)
                .map_err(io::Error::other)?;
            reaper.spawn(&mut command).map(|(_, claim)| claim)
        };
        let claim = spawn().map_err(failed)?;
        let mut ready = pipe::Receiver::from_owned_fd(ready).map_err(failed)?;
        let mut byte = [0];
        match tokio::time::timeout(READY, ready.read(&mut byte)).await {
            Ok(Ok(_)) => Ok(Self {
                claim,
                reaper: reaper.clone(),
            }),
            Ok(Err(source)) => Err(failed(source)),
            Err(_) => {
                let _ = reaper.signal(claim.pid, rustix::process::Signal::KILL.as_raw());
                Err(failed(io::ErrorKind::TimedOut.into()))
            }
        }
    }

    /// Its input has ended: waits until it has, too, and tells it to after `end`.
    pub async fn finish(mut self, end: Instant) {
        if tokio::time::timeout_at(end, self.claim.wait())
            .await
            .is_ok()
        {
            return;
        }
        let signal = |signal: rustix::process::Signal| {
            let _ = self.reaper.signal(self.claim.pid, signal.as_raw());
        };
        signal(rustix::process::Signal::TERM);
        let reaper = self.reaper.clone();
        tokio::spawn(async move {
            if tokio::time::timeout(TERMINATE, self.claim.wait())
                .await
                .is_err()
            {
                let _ = reaper.signal(self.claim.pid, rustix::process::Signal::KILL.as_raw());
            }
        });
    }
}
