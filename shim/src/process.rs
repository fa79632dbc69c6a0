//! One process of a container: its init, or one that was exec'd.
//!
//! ```text
//! Created --start--> Running <--resume-- Paused
//!    |                 |  \--pause--> Pausing --^
//!    \----- exit ------+------ exit ---> Stopped --delete--> (gone)
//! ```
//! Pausing and paused are states of the whole container; only init carries them.

use std::{
    io,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use tokio::sync::watch;

use crate::{
    io::{Endpoints, Stdio, Streams},
    reaper::Exit,
};

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessState {
    /// Made, not started.
    Created,
    /// Started.
    Running,
    /// Being frozen.
    Pausing,
    /// Frozen.
    Paused,
    /// Ended.
    Stopped,
}

impl ProcessState {
    /// For messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }

    /// Whether a step of the diagram leads from here to `next`.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        use ProcessState::{Created, Paused, Pausing, Running, Stopped};
        matches!(
            (self, next),
            (Created, Running | Stopped)
                | (Running, Pausing | Stopped)
                | (Pausing, Paused | Running | Stopped)
                | (Paused, Running | Stopped)
        )
    }
}

/// One process.
#[derive(Debug)]
pub struct Process {
    /// Id of an exec; empty for init.
    pub exec_id: String,
    /// Its stdio as containerd named it.
    pub endpoints: Endpoints,
    pid: AtomicU32,
    state: Mutex<(ProcessState, Instant)>,
    exit: watch::Sender<Option<Exit>>,
    stdio: Mutex<Option<Stdio>>,
    streams: Mutex<Option<Streams>>,
}

impl Process {
    /// A process that is not started.
    #[must_use]
    pub fn new(exec_id: &str, endpoints: Endpoints) -> Self {
        Self {
            exec_id: exec_id.into(),
            endpoints,
            pid: AtomicU32::new(0),
            state: Mutex::new((ProcessState::Created, Instant::now())),
            exit: watch::Sender::new(None),
            stdio: Mutex::new(None),
            streams: Mutex::new(None),
        }
    }

    /// Its pid on the host; `None` before it has one.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        Some(self.pid.load(Ordering::Acquire)).filter(|pid| *pid != 0)
    }

    /// Notes the pid.
    pub fn set_pid(&self, pid: u32) {
        self.pid.store(pid, Ordering::Release);
    }

    /// Its state.
    #[must_use]
    pub fn state(&self) -> ProcessState {
        lock(&self.state).0
    }

    /// When it entered its state.
    #[must_use]
    pub fn since(&self) -> Instant {
        lock(&self.state).1
    }

    /// Enters a state, when the diagram allows it. Says whether it did.
    pub fn enter(&self, next: ProcessState) -> bool {
        let mut state = lock(&self.state);
        let allowed = state.0.may_become(next);
        if allowed {
            *state = (next, Instant::now());
        }
        allowed
    }

    /// Notes the end and wakes those who wait for it.
    pub fn set_exited(&self, exit: Exit) {
        self.enter(ProcessState::Stopped);
        self.exit.send_replace(Some(exit));
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for its end.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        match exit.wait_for(Option::is_some).await.map(|exit| *exit) {
            Ok(Some(exit)) => exit,
            // The sender lives in self, and the condition is Some.
            _ => unreachable!("the sender of exits outlives its waiters"),
        }
    }

    /// Keeps stdio for the start.
    pub fn keep_stdio(&self, stdio: Stdio) {
        *lock(&self.stdio) = Some(stdio);
    }

    /// Takes the stdio kept for the start.
    pub fn take_stdio(&self) -> Option<Stdio> {
        lock(&self.stdio).take()
    }

    /// Keeps the copies that run.
    pub fn keep_streams(&self, streams: Streams) {
        *lock(&self.streams) = Some(streams);
    }

    /// Takes the copies, to end them.
    pub fn take_streams(&self) -> Option<Streams> {
        lock(&self.streams).take()
    }

    /// Lets it see the end of its input.
    pub fn close_stdin(&self) {
        if let Some(streams) = &*lock(&self.streams) {
            streams.close_stdin();
        }
    }

    /// Resizes its terminal, if it has one.
    pub fn resize(&self, width: u32, height: u32) -> io::Result<()> {
        lock(&self.streams)
            .as_ref()
            .map_or(Ok(()), |streams| streams.resize(width, height))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::SystemTime};

    use super::*;

    #[test]
    fn only_the_steps_of_the_diagram_are_taken() {
        use ProcessState::{Created, Paused, Pausing, Running, Stopped};
        let process = Process::new("", Endpoints::default());
        assert!(!process.enter(Paused) && !process.enter(Pausing));
        assert!(process.enter(Running) && !process.enter(Created) && !process.enter(Paused));
        assert!(process.enter(Pausing) && process.enter(Running) && process.enter(Pausing));
        assert!(process.enter(Paused) && process.enter(Running) && process.enter(Stopped));
        assert!(!process.enter(Running) && process.state() == Stopped);
    }

    #[tokio::test]
    async fn a_wait_outlasts_a_pause_and_ends_with_the_exit() {
        let process = Arc::new(Process::new("", Endpoints::default()));
        process.enter(ProcessState::Running);
        let waiting = {
            let process = Arc::clone(&process);
            tokio::spawn(async move { process.wait().await })
        };
        process.enter(ProcessState::Pausing);
        process.enter(ProcessState::Paused);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        let exit = Exit {
            pid: 4,
            status: 137,
            at: SystemTime::UNIX_EPOCH,
        };
        process.set_exited(exit);
        assert_eq!(waiting.await.unwrap(), exit);
        assert_eq!(process.wait().await, exit);
    }
}
