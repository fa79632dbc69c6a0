//! The process that goes on where a launched plugin has ended.
//!
//! A runtime closes the plugin that it has launched after one slow answer, kills it then (NRI 0.7
//! and later), and never launches it again. So a launched plugin starts a second process, which
//! waits, and connects to the runtime's socket when it is needed.
//!
//! ```text
//! containerd ── launches ──> kybernate-nri ── starts ──> standby
//!     │                            │ its configuration file   │ reads until the plugin has ended,
//!     │                            └──────── socket ────────> │ then registers over nri.sock
//!     └── ends ──────────────────── pidfd ──────────────────> ends, for the next containerd
//!                                                             launches a plugin of its own
//! ```
//!
//! The runtime hands the file to a plugin that it launches and to no other, so the standby has to
//! be told. One that was never told does nothing: the runtime has not taken the plugin in.

use std::{
    env,
    io::{self, Write as _},
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream as StdStream, process::CommandExt as _},
    },
    process::{Child, Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{Pid, PidfdFlags, getppid, pidfd_open},
};
use tokio::{io::AsyncReadExt as _, net::UnixStream};
use tokio_util::sync::CancellationToken;

/// Option of a standby: the pid of the runtime that has launched its plugin.
pub const OPTION: &str = "--standby-of";
/// What it is called in lists of processes.
const NAME: &str = "kybernate-nri-standby";
/// Comes before the configuration file, which may be empty.
const TOLD: u8 = b'.';

/// The plugin's end of it.
#[derive(Debug)]
pub struct Standby {
    process: Mutex<Child>,
    /// Open as long as this process lives.
    line: StdStream,
    is_told: AtomicBool,
}

impl Standby {
    /// Starts one. `descriptor` is the number by which this process was handed its own connection,
    /// which the standby must not hold open: it gets its line there.
    pub fn start(descriptor: i32) -> io::Result<Self> {
        let runtime = getppid().ok_or_else(|| io::Error::other("no parent is visible"))?;
        let (ours, theirs) = StdStream::pair()?;
        let mut command = Command::new(env::current_exe()?);
        command
            .arg0(NAME)
            .args([OPTION, &runtime.as_raw_nonzero().to_string()])
            .stdin(Stdio::null())
            .fd_mappings(vec![FdMapping {
                parent_fd: OwnedFd::from(theirs),
                child_fd: descriptor,
            }])
            .map_err(|_| io::Error::other("a descriptor is mapped twice"))?;
        Ok(Self {
            process: command.spawn()?.into(),
            line: ours,
            is_told: AtomicBool::new(false),
        })
    }

    /// Tells it the plugin's configuration file, once.
    pub fn tell(&self, file: &str) -> io::Result<()> {
        if self.is_told.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        (&self.line).write_all(&[&[TOLD], file.as_bytes()].concat())
    }

    /// Ends it: the plugin was told to stop.
    pub fn dismiss(&self) -> io::Result<()> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        process.kill()?;
        process.wait().map(drop)
    }
}

/// Waits until the plugin at the other end of `line` has ended. What it has told; `None` if it has
/// not.
pub async fn told(mut line: UnixStream) -> io::Result<Option<String>> {
    let mut told = Vec::new();
    line.read_to_end(&mut told).await?;
    Ok(told
        .split_first()
        .map(|(_, file)| String::from_utf8_lossy(file).into_owned()))
}

/// Cancels the token when the process has ended.
pub fn cancel_with(pid: i32, token: CancellationToken) -> io::Result<()> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    thread::Builder::new()
        .name("runtime".into())
        .spawn(move || {
            let mut ends = [PollFd::new(&process, PollFlags::IN)];
            // There is nothing to be done about another error but to end, too.
            while poll(&mut ends, None) == Err(Errno::INTR) {}
            token.cancel();
        })
        .map(drop)
}
