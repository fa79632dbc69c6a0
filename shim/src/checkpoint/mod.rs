//! Checkpoint: a running container becomes an archive, or a directory of CRIU images.
//!
//! ```text
//! task.rs ─ Checkpoint(path, options) ─> run ─┬─ request.json there ─> archive ─┐
//!                                             └─ none ───────────────> plain ───┤
//!                              dump: runc checkpoint --page-server ─> CRIU      │
//!                       page_server <── pages over a loopback socket ──┘ <──────┘
//! ```
//!
//! A checkpoint runs to its end or undoes itself without its caller. It holds the container's
//! operation lock, and no lock that `State`, `Pids`, `Stats`, `Wait` or `Kill` would need.

mod archive;
mod dump;
mod error;
mod facts;
mod files;
mod freezer;
mod page_server;
mod peer;
mod phases;
mod plain;
mod request;
mod still;
mod stop;
mod tree;
mod wire;
pub mod workdir;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use containerd_shim_protos::shim::oci::CheckpointOptions;
use kybernate_config::Settings;
use tokio_util::sync::CancellationToken;

pub use self::{error::CheckpointError, facts::cpu_features, files::shared_memory};
pub(crate) use self::{freezer::Freezer, stop::Stop};
use self::{request::Request, stop::StopReason};
use crate::{container::Container, criu, process::ProcessState};

/// What the `Checkpoint` call asks for.
#[derive(Debug, Clone, Default)]
pub struct Task {
    /// Where the images or the archive go: an existing directory.
    pub path: PathBuf,
    /// runc's options, which containerd sends for runc's own runtime type alone.
    pub options: Option<CheckpointOptions>,
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
    match Request::read(&task.path, &settings.checkpoint)? {
        Some(request) => archive::run(&container, &task, request, &settings, &stop).await,
        None => plain::run(&container, &task, &settings, &stop).await,
    }
}

/// What a checkpoint works on: the first process, and the cgroup that freezes all of them.
fn subject(container: &Container) -> Result<(u32, Freezer), CheckpointError> {
    let state = container.state();
    let freezer = container.cgroup().and_then(|cgroup| Freezer::of(&cgroup));
    match (state, container.init_pid(), freezer) {
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
async fn prepare_criu(container: &Container) -> Result<String, CheckpointError> {
    let version = criu::Version::text(&container.runc).await;
    let parsed = version.as_deref().and_then(criu::Version::parse);
    criu::config::write(&container.bundle, parsed).map_err(|source| CheckpointError::Host {
        action: "write CRIU's configuration into",
        path: container.bundle.clone(),
        source,
    })?;
    Ok(version.unwrap_or_default())
}
