//! A container and what can be done with it.
//!
//! For those who build on it (checkpoint, restore):
//!
//! - Facts that never change are public fields. [`Container::init_pid`], [`Container::state`],
//!   [`Container::paused_for`] answer at once from memory and take no lock that is held over
//!   anything slow.
//! - [`Container::operation`] serialises what changes the container. Start, pause, resume,
//!   update, checkpoint and delete hold it for writing; the start of an exec holds it for
//!   reading. State, Connect, Pids, Stats, Wait and Kill never take it. `checkpoint::run` is
//!   called with it held.
//! - A process that the kernel gave back is noticed by the reaper alone; nobody waits for a
//!   child by other means. [`crate::runc::Runc::spawn`] is the way to run runc and to see it end.
//! - [`Container::note_paused`] and [`Container::note_resumed`] tell the state machine, and
//!   containerd, about a freezer that somebody changed without [`Container::pause`].
//! - `restore::prepare` is called once the root file system is mounted. The container is then
//!   `Created` without a pid, and `restore::start` runs when containerd asks for the start.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, RwLock};
use tokio_util::sync::CancellationToken;

pub mod create;
mod error;
mod exec;
mod exit;
mod lifecycle;
mod signal;

pub use create::CreateRequest;
pub use error::ContainerError;

use crate::{
    cgroup::{Cgroup, oom::OomWatch},
    checkpoint::Freezer,
    events::Events,
    options::Options,
    process::{Process, ProcessState},
    reaper::Reaper,
    restore,
    runc::Runc,
    spec::{SpecError, SpecFacts},
    trigger::Trigger,
    wishes,
};

/// Name of the file with init's pid in the bundle.
pub const INIT_PID_FILE: &str = "init.pid";
/// Where `Create` mounts the root file system in the bundle. A root elsewhere is not ours.
pub const ROOTFS: &str = "rootfs";

/// What all containers of a shim share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// containerd namespace.
    pub namespace: String,
    /// Reaps every process.
    pub reaper: Reaper,
    /// Events to containerd.
    pub events: Events,
}

/// What is known about a container before it has a process.
#[derive(Debug, Clone)]
pub struct ContainerFacts {
    /// Its id.
    pub id: String,
    /// containerd namespace.
    pub namespace: String,
    /// Its bundle directory.
    pub bundle: PathBuf,
    /// Its root file system, mounted.
    pub rootfs: PathBuf,
    /// The parts of its spec that the shim needs.
    pub spec: SpecFacts,
    /// The runtime's options.
    pub options: Options,
    /// How to run runc for it.
    pub runc: Runc,
}

/// A container.
#[derive(Debug)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// containerd namespace.
    pub namespace: String,
    /// Its bundle directory.
    pub bundle: PathBuf,
    /// The parts of its spec that the shim needs.
    pub spec: SpecFacts,
    /// The runtime's options.
    pub options: Options,
    /// How to run runc for it.
    pub runc: Runc,
    rootfs: PathBuf,
    shared: Shared,
    init: Arc<Process>,
    operation: RwLock<()>,
    /// Held while init is started, so that its start is published before its exit.
    starting: tokio::sync::Mutex<()>,
    execs: Mutex<Execs>,
    exec_ended: Notify,
    restore: Mutex<Option<restore::Prepared>>,
    cgroup: Mutex<Option<Arc<Cgroup>>>,
    oom: Mutex<Option<OomWatch>>,
    killed: CancellationToken,
    trigger: OnceLock<Arc<Trigger>>,
}

#[derive(Debug, Default)]
struct Execs {
    known: HashMap<String, Arc<Process>>,
    /// Those that are being started or run, whose exit is not published.
    running: usize,
    /// No exec starts any more.
    closed: bool,
}

impl Container {
    fn new(facts: ContainerFacts, shared: Shared, init: Process) -> Self {
        let ContainerFacts {
            id,
            namespace,
            bundle,
            rootfs,
            spec,
            options,
            runc,
        } = facts;
        Self {
            id,
            namespace,
            bundle,
            spec,
            options,
            runc,
            rootfs,
            shared,
            init: Arc::new(init),
            operation: RwLock::new(()),
            starting: tokio::sync::Mutex::new(()),
            execs: Mutex::default(),
            exec_ended: Notify::new(),
            restore: Mutex::default(),
            cgroup: Mutex::default(),
            oom: Mutex::default(),
            killed: CancellationToken::new(),
            trigger: OnceLock::new(),
        }
    }

    /// Its facts, as it was made with.
    #[must_use]
    pub fn facts(&self) -> ContainerFacts {
        ContainerFacts {
            id: self.id.clone(),
            namespace: self.namespace.clone(),
            bundle: self.bundle.clone(),
            rootfs: self.rootfs.clone(),
            spec: self.spec.clone(),
            options: self.options.clone(),
            runc: self.runc.clone(),
        }
    }

    /// Its whole spec, read anew.
    pub fn whole_spec(&self) -> Result<serde_json::Value, SpecError> {
        SpecFacts::read_whole(&self.bundle)
    }

    /// Its root file system on the host.
    #[must_use]
    pub fn rootfs(&self) -> &Path {
        &self.rootfs
    }

    /// The host pid of init while it lives. A container that waits to be restored has none.
    #[must_use]
    pub fn init_pid(&self) -> Option<u32> {
        self.init
            .pid()
            .filter(|_| self.state() != ProcessState::Stopped)
    }

    /// Where it is in its life.
    #[must_use]
    pub fn state(&self) -> ProcessState {
        self.init.state()
    }

    /// For how long it has been paused, if it is.
    #[must_use]
    pub fn paused_for(&self) -> Option<Duration> {
        (self.state() == ProcessState::Paused).then(|| self.init.since().elapsed())
    }

    /// When it was paused, if it is.
    #[must_use]
    pub fn paused_since(&self) -> Option<Instant> {
        (self.state() == ProcessState::Paused).then(|| self.init.since())
    }

    /// Serialises what changes the container; see the module's head.
    #[must_use]
    pub fn operation(&self) -> &RwLock<()> {
        &self.operation
    }

    /// Cancelled when init gets a SIGKILL: whoever holds its processes lets them go.
    #[must_use]
    pub fn killed(&self) -> &CancellationToken {
        &self.killed
    }

    /// The socket by which it asks for checkpoints, if it has one.
    #[must_use]
    pub fn trigger(&self) -> Option<Arc<Trigger>> {
        self.trigger.get().cloned()
    }

    async fn shut_trigger(&self) {
        if let Some(trigger) = self.trigger() {
            trigger.shut().await;
        }
    }

    /// Its processes run again after a dump, while the checkpoint is completed.
    pub fn runs_again(&self) {
        if let Some(trigger) = self.trigger() {
            trigger.resume();
        }
    }

    /// What the manifest of its checkpoint is to say about it.
    #[must_use]
    pub fn notices(&self) -> Vec<String> {
        let unprepared = wishes::unprepared(&self.spec).map(String::from);
        let unready = self.trigger().and_then(|trigger| trigger.notice());
        unprepared.into_iter().chain(unready).collect()
    }

    /// Its cgroup, once it has one.
    #[must_use]
    pub fn cgroup(&self) -> Option<Arc<Cgroup>> {
        lock(&self.cgroup).clone()
    }

    /// What freezes it, if its cgroup has that.
    pub(crate) fn freezer(&self) -> Option<Freezer> {
        self.cgroup().and_then(|cgroup| Freezer::of(&cgroup))
    }

    /// Sends containerd an event about it.
    pub fn events(&self) -> &Events {
        &self.shared.events
    }

    /// The process with an exec id; an empty id is init's.
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>, ContainerError> {
        if exec_id.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        lock(&self.execs)
            .known
            .get(exec_id)
            .cloned()
            .ok_or_else(|| ContainerError::UnknownExec {
                id: self.id.clone(),
                exec_id: exec_id.into(),
            })
    }

    /// The state of a process; a pause is the whole container's.
    #[must_use]
    pub fn state_of(&self, process: &Process) -> ProcessState {
        match (self.state(), process.state()) {
            (paused @ (ProcessState::Pausing | ProcessState::Paused), own)
                if own != ProcessState::Stopped =>
            {
                paused
            }
            (_, own) => own,
        }
    }

    /// Its pids, each with the id of the exec it is, if any. Never empty while init lives.
    #[must_use]
    pub fn pids(&self) -> Vec<(u32, Option<String>)> {
        let mut pids = self
            .cgroup()
            .map(|cgroup| cgroup.pids())
            .unwrap_or_default();
        pids.extend(self.init_pid().filter(|init| !pids.contains(init)));
        let execs = lock(&self.execs);
        pids.into_iter()
            .map(|pid| {
                let exec = execs
                    .known
                    .values()
                    .find(|process| process.pid() == Some(pid));
                (pid, exec.map(|process| process.exec_id.clone()))
            })
            .collect()
    }

    fn wrong_state(&self, action: &'static str, state: ProcessState) -> ContainerError {
        ContainerError::State {
            id: self.id.clone(),
            action,
            state: state.as_str(),
        }
    }

    fn host_error(
        &self,
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(io::Error) -> ContainerError + use<> {
        let path = path.into();
        move |source| ContainerError::Host {
            action,
            path,
            source,
        }
    }

    /// Finds the cgroup of the processes and watches it for memory that ran out.
    fn adopt_cgroup(&self, pid: u32) {
        match Cgroup::of(&self.runc.cgroup_paths(&self.id), pid) {
            Ok(cgroup) => {
                let cgroup = Arc::new(cgroup);
                let watch = OomWatch::start(Arc::clone(&cgroup), &self.id, self.events().clone());
                *lock(&self.oom) = watch
                    .inspect_err(|error| {
                        tracing::warn!(id = %self.id, %error, "no notice of memory that runs out");
                    })
                    .ok();
                *lock(&self.cgroup) = Some(cgroup);
            }
            Err(error) => tracing::error!(id = %self.id, %error, "cannot find the cgroup"),
        }
    }
}

/// Reads the pid that runc wrote.
pub fn read_pid(path: &Path) -> io::Result<u32> {
    let text = fs::read_to_string(path)?;
    text.trim()
        .parse()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is no pid")))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
