//! Checkpoint: a running container becomes an archive, or a directory of CRIU images.
//!
//! ```text
//! task.rs ─ Checkpoint(path, options) ─> run ─┬─ request.json there ─> archive ─┐
//!                                             └─ none ───────────────> plain ───┤
//!                              dump: runc checkpoint --page-server ─> CRIU      │
//!                       page_server <── pages over a loopback socket ──┘ <──────┘
//! ```
//!
//! A checkpoint runs to its end or undoes itself without its caller, and without its shim: what it
//! is about to change is in a journal first ([`crate::journal`]). It holds the container's
//! operation lock, and no lock that `State`, `Pids`, `Stats`, `Wait` or `Kill` would need.

mod archive;
mod course;
mod dump;
mod error;
mod facts;
mod files;
mod freezer;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod page_server;
mod peer;
mod phases;
mod plain;
mod request;
mod resume;
mod still;
mod stop;
mod tree;
mod undoing;
mod wire;
pub mod workdir;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use containerd_shim_protos::shim::oci::CheckpointOptions;
use kybernate_config::Settings;
use nix::errno::Errno;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

pub use self::resume::Caller;
pub(crate) use self::{course::Course, freezer::Freezer, tree::descendants};
pub use self::{error::CheckpointError, facts::cpu_features, files::shared_memory};
use self::{
    request::Request,
    stop::{Stop, StopReason},
};
use crate::{
    container::Container,
    criu::{self, config::External},
    injected::{self, Injected},
    journal::Paused,
    process::ProcessState,
};

/// What the `Checkpoint` call asks for.
#[derive(Debug, Clone, Default)]
pub struct Task {
    /// Where the images or the archive go: an existing directory.
    pub path: PathBuf,
    /// runc's options, which containerd sends for runc's own runtime type alone.
    pub options: Option<CheckpointOptions>,
    /// Who asks.
    pub caller: Caller,
}

impl Task {
    /// Where CRIU's log and statistics go, if the caller says.
    fn work_path(&self) -> Option<&Path> {
        let options = self.options.as_ref()?;
        Some(Path::new(&options.work_path)).filter(|path| !path.as_os_str().is_empty())
    }

    /// Whether the container ends with its checkpoint. A call without options means no.
    fn exit(&self) -> bool {
        self.options.as_ref().is_some_and(|options| options.exit)
    }

    /// Whether established TCP connections are kept in the images.
    fn open_tcp(&self) -> bool {
        self.options
            .as_ref()
            .is_some_and(|options| options.open_tcp)
    }
}

/// Takes a checkpoint. The caller holds the container's operation lock; `call` is cancelled
/// when the call that asked for it has ended.
pub async fn run(
    container: Arc<Container>,
    task: Task,
    call: CancellationToken,
) -> Result<(), CheckpointError> {
    let stop = Stop::default();
    let _call = stop.follow(call, StopReason::CallEnded);
    let settings = Settings::load()?;
    let _limit = stop.after(Duration::from_secs(settings.checkpoint.timeout_s));
    let request = Request::read(&task.path, &settings.checkpoint)?;
    let (_, freezer) = subject(&container)?;
    let intent = undoing::intent(&container, &task, request.is_some(), &settings)?;
    let resumed_by_containerd = intent.paused == Paused::ForCheckpoint;
    let journal = Arc::new(undoing::begin(&container, &settings, intent).await?);
    let course = Course::new(&container.id, stop.clone(), Arc::clone(&journal));
    let caller = task.caller;
    let limit = Duration::from_secs(settings.checkpoint.resume_within_s);
    let request = request.map(Arc::new);
    let ends = task.exit();

    let taking = take(
        Arc::clone(&container),
        task,
        request.clone(),
        settings,
        course,
    );
    let taken = undoing::to_its_end(&container.id, taking, &stop).await;
    let undone = match taken {
        Ok(()) => Ok(()),
        Err(error) => Err(undoing::undo(&journal, error, stop.reason()).await),
    };
    // A complete archive that nobody waits for is kept only if the container has ended with it.
    if let Some(request) = request
        && (undone.is_err() || !ends)
    {
        let removed = tokio::task::spawn_blocking(move || request.remove_if_abandoned());
        let _ = removed.await;
    }
    let left = matches!(undone, Err(CheckpointError::Left { .. }));
    if resumed_by_containerd && container.state() == ProcessState::Paused {
        // containerd packs the images now, also should this shim die.
        if undone.is_ok()
            && let Err(error) = journal.complete()
        {
            tracing::warn!(id = %container.id, %error, "cannot write to the record");
        }
        // A call that was stopped can't resume any more.
        let limit = stop.reason().map_or(limit, |_| Duration::ZERO);
        let caller = Caller {
            deadline: caller.deadline.filter(|_| stop.reason().is_none()),
            ..caller
        };
        resume::watch(
            &container,
            freezer,
            (!left).then_some(journal),
            caller,
            limit,
        );
    } else if !left {
        journal.end();
    }
    undone
}

async fn take(
    container: Arc<Container>,
    task: Task,
    request: Option<Arc<Request>>,
    settings: Settings,
    course: Course,
) -> Result<(), CheckpointError> {
    match request {
        Some(request) => archive::run(&container, &task, request, &settings, &course).await,
        None => plain::run(&container, &task, &settings, &course).await,
    }
}

/// What a checkpoint works on: the first process, and the cgroup that freezes all of them.
fn subject(container: &Container) -> Result<(u32, Freezer), CheckpointError> {
    let state = container.state();
    match (state, container.init_pid(), container.freezer()) {
        (ProcessState::Running | ProcessState::Paused, Some(pid), Some(freezer)) => {
            Ok((pid, freezer))
        }
        (ProcessState::Running | ProcessState::Paused, Some(_), None) => {
            Err(CheckpointError::NoFreezer {
                id: container.id.clone(),
            })
        }
        _ => Err(CheckpointError::State {
            id: container.id.clone(),
            state: state.as_str(),
        }),
    }
}

/// Writes the container's CRIU configuration for the CRIU that is installed now, and returns
/// that CRIU's version text, empty if it can't be run: runc will say why.
async fn prepare_criu(
    container: &Container,
    injected: &[Injected],
) -> Result<String, CheckpointError> {
    let version = criu::Version::text(&container.runc).await;
    let parsed = version.as_deref().and_then(criu::Version::parse);
    let external: Vec<_> = injected
        .iter()
        .map(|mount| External {
            destination: mount.destination(),
            source: mount.destination(),
        })
        .collect();
    criu::config::write(&container.bundle, parsed, &external).map_err(|source| {
        CheckpointError::Host {
            action: "write CRIU's configuration into",
            path: container.bundle.clone(),
            source,
        }
    })?;
    Ok(version.unwrap_or_default())
}

/// The mounts that CRIU must be told of because runc does not.
fn injected(
    container: &Container,
    init: u32,
    spec: &Value,
) -> Result<Vec<Injected>, CheckpointError> {
    injected::of(init, spec).map_err(|source| match source.raw_os_error().map(Errno::from_raw) {
        // A process on its way out has no mount table, and one that has gone no directory.
        Some(Errno::EINVAL | Errno::ENOENT | Errno::ESRCH) => CheckpointError::State {
            id: container.id.clone(),
            state: "ending",
        },
        _ => CheckpointError::Host {
            action: "read the mounts of",
            path: container.bundle.clone(),
            source,
        },
    })
}
