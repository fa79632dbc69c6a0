//! The one place that reaps children.
//!
//! The shim is a subreaper: besides its own children (runc, loggers) it inherits every
//! container's init and every exec'd process once the runc that started them has ended. Such
//! a process may end before the shim has even learned its pid from runc's pid file, and pids
//! are reused. Three rules keep that right:
//!
//! 1. `waitpid(-1)` runs only under the lock. A child spawned under the same lock is
//!    registered before anybody can reap it, and a registered pid can't be reused before its
//!    exit has been delivered.
//! 2. While an [`Operation`] is open, exits of pids that nobody claimed are kept for it. A
//!    claim that finds its pid there gets that exit; an exit older than the operation never.
//! 3. A signal is sent under the lock, to registered pids only.

use std::{
    collections::HashMap,
    io,
    process::{Child, Command},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use rustix::process::{WaitOptions, WaitStatus, wait};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use crate::sys;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Its pid in the shim's PID namespace.
    pub pid: u32,
    /// Its exit code, or 128 + the signal that ended it.
    pub status: u32,
    /// When it was reaped.
    pub at: SystemTime,
}

/// Hands exits to those who claimed them.
#[derive(Debug, Clone, Default)]
pub struct Reaper(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    claims: HashMap<u32, oneshot::Sender<Exit>>,
    operations: HashMap<u64, HashMap<u32, Exit>>,
    next: u64,
}

/// The exit of one process, later.
#[derive(Debug)]
pub struct Claim {
    /// The process.
    pub pid: u32,
    exit: oneshot::Receiver<Exit>,
}

impl Claim {
    /// Waits for the exit.
    pub async fn exit(mut self) -> Exit {
        self.wait().await
    }

    /// Waits for the exit. Dropping the future loses nothing; after it has returned an exit,
    /// it must not be called again.
    pub async fn wait(&mut self) -> Exit {
        let pid = self.pid;
        // The sender lives in the table until the exit, or until a newer claim of the pid.
        (&mut self.exit).await.unwrap_or_else(|_| Exit {
            pid,
            status: 255,
            at: SystemTime::now(),
        })
    }
}

impl Reaper {
    /// An empty table. Nothing is reaped until [`Reaper::run`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reaps on every SIGCHLD, for ever.
    pub async fn run(self) -> io::Result<()> {
        let mut children = signal(SignalKind::child())?;
        loop {
            self.reap();
            if children.recv().await.is_none() {
                return Ok(());
            }
        }
    }

    /// Spawns a child of the shim itself. Dropping the [`Child`] is right: it must not be waited for.
    pub fn spawn(&self, command: &mut Command) -> io::Result<(Child, Claim)> {
        let mut state = self.lock();
        let child = command.spawn()?;
        let claim = state.register(child.id());
        Ok((child, claim))
    }

    /// Opens an operation that will learn a pid later.
    #[must_use]
    pub fn begin(&self) -> Operation {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        state.operations.insert(id, HashMap::new());
        Operation {
            reaper: self.clone(),
            id,
        }
    }

    /// Sends a signal to a process that is claimed and not reaped yet.
    pub fn signal(&self, pid: u32, number: i32) -> io::Result<()> {
        let state = self.lock();
        if !state.claims.contains_key(&pid) {
            return Err(rustix::io::Errno::SRCH.into());
        }
        sys::kill(pid, number)
    }

    /// Reaps all children that have ended.
    pub fn reap(&self) {
        let mut state = self.lock();
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => state.deliver(Exit {
                    pid: pid.as_raw_nonzero().get().unsigned_abs(),
                    status: exit_code(status),
                    at: SystemTime::now(),
                }),
                Ok(None) | Err(rustix::io::Errno::CHILD) => return,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot reap");
                    return;
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The exit code as containerd and shells count it.
fn exit_code(status: WaitStatus) -> u32 {
    let code = status
        .exit_status()
        .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
        .unwrap_or(255);
    u32::try_from(code).unwrap_or(255)
}

impl State {
    fn register(&mut self, pid: u32) -> Claim {
        let (sender, exit) = oneshot::channel();
        self.claims.insert(pid, sender);
        Claim { pid, exit }
    }

    fn deliver(&mut self, exit: Exit) {
        if let Some(claim) = self.claims.remove(&exit.pid) {
            let _ = claim.send(exit);
            return;
        }
        for kept in self.operations.values_mut() {
            kept.insert(exit.pid, exit);
        }
    }
}

/// A time span in which a process was started whose pid is not known yet.
#[derive(Debug)]
pub struct Operation {
    reaper: Reaper,
    id: u64,
}

impl Operation {
    /// Claims the exit of `pid`, which may already be there.
    #[must_use]
    pub fn claim(self, pid: u32) -> Claim {
        let mut state = self.reaper.lock();
        let early = state
            .operations
            .get(&self.id)
            .and_then(|kept| kept.get(&pid))
            .copied();
        if let Some(exit) = early {
            let (sender, receiver) = oneshot::channel();
            let _ = sender.send(exit);
            return Claim {
                pid,
                exit: receiver,
            };
        }
        state.register(pid)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        self.reaper.lock().operations.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(pid: u32, status: u32) -> Exit {
        Exit {
            pid,
            status,
            at: SystemTime::UNIX_EPOCH,
        }
    }

    #[tokio::test]
    async fn an_exit_before_the_claim_is_kept_for_the_operation() {
        let reaper = Reaper::new();
        let operation = reaper.begin();
        reaper.lock().deliver(exit(7, 3));
        assert_eq!(operation.claim(7).exit().await, exit(7, 3));
        assert!(reaper.lock().operations.is_empty());
    }

    #[tokio::test]
    async fn an_exit_from_before_the_operation_belongs_to_another_process() {
        let reaper = Reaper::new();
        reaper.lock().deliver(exit(7, 3));
        let claim = reaper.begin().claim(7);
        reaper.lock().deliver(exit(7, 4));
        assert_eq!(claim.exit().await.status, 4);
    }

    #[tokio::test]
    async fn of_two_exits_of_a_reused_pid_the_operation_gets_the_last() {
        let reaper = Reaper::new();
        let operation = reaper.begin();
        reaper.lock().deliver(exit(7, 1));
        reaper.lock().deliver(exit(7, 2));
        assert_eq!(operation.claim(7).exit().await.status, 2);
    }

    #[tokio::test]
    async fn every_open_operation_sees_an_unclaimed_exit() {
        let reaper = Reaper::new();
        let (one, two) = (reaper.begin(), reaper.begin());
        reaper.lock().deliver(exit(7, 1));
        reaper.lock().deliver(exit(8, 2));
        assert_eq!(one.claim(7).exit().await.status, 1);
        assert_eq!(two.claim(8).exit().await.status, 2);
    }

    #[test]
    fn only_claimed_processes_are_signalled() {
        let reaper = Reaper::new();
        let me = std::process::id();
        assert!(reaper.signal(me, 0).is_err());
        let _claim = reaper.begin().claim(me);
        reaper.signal(me, 0).unwrap();
        reaper.lock().deliver(exit(me, 0));
        assert!(reaper.signal(me, 0).is_err());
    }
}
