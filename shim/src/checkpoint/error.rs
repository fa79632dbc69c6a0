//! Why a checkpoint failed. The container is as it was before unless the error says otherwise.

use std::{io, path::PathBuf};

use kybernate_config::settings::SettingsError;
use kybernate_oci::archive::WriteError;

use super::{page_server::PageServerError, request::RequestError, stop::StopReason};
use crate::{gpu::GpuError, journal::FIRST_STEP, runc::RuncError, spec::SpecError, status::Class};

/// Why a checkpoint failed.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Only a container with processes has something to save.
    #[error("container {id} is {state}; only a running or paused container can be checkpointed")]
    State {
        /// The container.
        id: String,
        /// What it is.
        state: &'static str,
    },
    /// Without a freezer its processes can't be stopped together.
    #[error(
        "container {id} is in no freezer cgroup; mount the freezer controller (cgroup v1) or use cgroup v2"
    )]
    NoFreezer {
        /// The container.
        id: String,
    },
    /// The settings are not understood.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The spec can't be read.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The request can't be served.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Stopped before its end.
    #[error("checkpoint of container {id} was rolled back: {reason}")]
    Stopped {
        /// The container.
        id: String,
        /// Why.
        reason: StopReason,
    },
    /// A step could not be begun.
    #[error("cannot begin the step {step} of the checkpoint of container {id}: {source}")]
    Step {
        /// The container.
        id: String,
        /// The step.
        step: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// What an earlier operation has left stands in the way.
    #[error("cannot begin a checkpoint of container {id}: {left}")]
    Unsettled {
        /// The container.
        id: String,
        /// What is left, and what to do.
        left: String,
    },
    /// It did not stop when it was to.
    #[error(
        "checkpoint of container {id} was to stop ({reason}) and was given up {seconds} s later"
    )]
    Overdue {
        /// The container.
        id: String,
        /// Why it was to stop.
        reason: StopReason,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A failure, and where it happened.
    #[error("{source} (at step {step})")]
    At {
        /// The step that was begun last.
        step: String,
        /// The failure.
        source: Box<CheckpointError>,
    },
    /// It failed, and not all of it could be undone.
    #[error(
        "{source}; and not everything is as before: {left}; `kybernate doctor --repair` tries again"
    )]
    Left {
        /// Why the checkpoint failed.
        source: Box<CheckpointError>,
        /// What is left.
        left: String,
    },
    /// runc or CRIU failed.
    #[error("cannot dump container {id}: {runc}; CRIU: {criu}")]
    Dump {
        /// The container.
        id: String,
        /// What runc said.
        runc: RuncError,
        /// What CRIU's log says.
        criu: String,
    },
    /// runc could not be run, or failed at something other than the dump.
    #[error("container {id}: {source}")]
    Runc {
        /// The container.
        id: String,
        /// What it said.
        source: RuncError,
    },
    /// The dump did not arrive.
    #[error("dump of container {id} is incomplete: {source}")]
    Pages {
        /// The container.
        id: String,
        /// Why.
        source: PageServerError,
    },
    /// The archive can't be written.
    #[error(transparent)]
    Archive(#[from] WriteError),
    /// Plain images where archives are encrypted.
    #[error(
        "checkpoint.encrypt_to is set, and plain CRIU images, as containerd asked for of container \
         {id}, can't be encrypted; take the checkpoint with `kybernate checkpoint`, or through the \
         CRI hooks, or allow plain ones with checkpoint.plain_unencrypted = true"
    )]
    Unencrypted {
        /// The container.
        id: String,
    },
    /// Small images would be on disk in plain text.
    #[error(
        "the archive is to be encrypted, and CRIU's small images would lie in plain text in {path}, \
         which is not in memory; set checkpoint.work_dir to a directory on tmpfs"
    )]
    WorkDir {
        /// The directory.
        path: PathBuf,
    },
    /// Too little space for the dump.
    #[error(
        "{path} has {free} bytes free, the dump needs about {needed}; make room or name another directory"
    )]
    Space {
        /// Where the dump would go.
        path: PathBuf,
        /// Bytes free.
        free: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// The root file system is writable and no overlay, so its changes can't be told.
    #[error(
        "the root file system of container {id} is {found}, not overlayfs, so what the container \
         changed in it is unknown; use the overlayfs snapshotter or a read-only root"
    )]
    Rootfs {
        /// The container.
        id: String,
        /// File system type.
        found: String,
    },
    /// The file system changes can't be read.
    #[error("cannot save {what} of container {id}: {source}")]
    Files {
        /// The container.
        id: String,
        /// Which files.
        what: &'static str,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The container could not be let go on. This is the one failure that leaves it stopped.
    #[error("container {id} could not be thawed after its checkpoint: {source}")]
    Thaw {
        /// The container.
        id: String,
        /// Why not.
        source: io::Error,
    },
    /// The GPU state.
    #[error("container {id}: {source}")]
    Gpu {
        /// The container.
        id: String,
        /// What is wrong with it.
        source: GpuError,
    },
    /// It failed, and undoing it failed too.
    #[error("{first}; and container {id} is not as before: {second}")]
    NotAsBefore {
        /// The container.
        id: String,
        /// Why the checkpoint failed.
        first: Box<CheckpointError>,
        /// Why it could not be undone.
        second: Box<CheckpointError>,
    },
    /// The container has ended with its dump, as was asked for, and something failed after that.
    #[error("{source}; container {id} has ended, and what there is of it is in {path}: keep that")]
    Ended {
        /// The container.
        id: String,
        /// Where its images are.
        path: PathBuf,
        /// What failed.
        source: Box<CheckpointError>,
    },
    /// Something on the host.
    #[error("cannot {action} {path}: {source}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A thread of the checkpoint ended in a panic: a bug.
    #[error("internal error during the checkpoint of {id}: {source}")]
    Panic {
        /// The container.
        id: String,
        /// The panic.
        source: tokio::task::JoinError,
    },
}

impl CheckpointError {
    /// The same with the step at which it happened, unless that is told already or there is none.
    #[must_use]
    pub fn at(self, step: &str) -> Self {
        let is_told = matches!(
            self,
            Self::At { .. } | Self::Step { .. } | Self::NotAsBefore { .. }
        );
        if is_told || step == FIRST_STEP {
            return self;
        }
        Self::At {
            step: step.into(),
            source: Box::new(self),
        }
    }

    /// The same once the journal has brought everything back, also what the checkpoint itself
    /// could not.
    #[must_use]
    pub fn undone(self) -> Self {
        match self {
            Self::NotAsBefore { id, first, second } => {
                tracing::warn!(id, %second, "undone at the second try");
                *first
            }
            other => other,
        }
    }

    /// What kind of failure it is for the caller.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::State { .. }
            | Self::NoFreezer { .. }
            | Self::Rootfs { .. }
            | Self::Unencrypted { .. }
            | Self::WorkDir { .. } => Class::FailedPrecondition,
            Self::Request(_) | Self::Settings(_) => Class::InvalidArgument,
            Self::Stopped { .. } => Class::Cancelled,
            Self::Gpu { source, .. } => source.class(),
            Self::NotAsBefore { first, .. } => first.class(),
            Self::Ended { source, .. } => source.class(),
            Self::At { source, .. } | Self::Left { source, .. } => source.class(),
            Self::Overdue { .. } => Class::Cancelled,
            Self::Step { source, .. } if is_full(source) => Class::ResourceExhausted,
            Self::Space { .. } => Class::ResourceExhausted,
            Self::Archive(error) if is_out_of_space(error) => Class::ResourceExhausted,
            Self::Pages {
                source: PageServerError::Store(error),
                ..
            } if is_full(error) => Class::ResourceExhausted,
            Self::Host { source, .. } if is_full(source) => Class::ResourceExhausted,
            _ => Class::Unknown,
        }
    }
}

fn is_out_of_space(error: &WriteError) -> bool {
    matches!(error, WriteError::Io { source, .. } if is_full(source))
}

/// Whether a disk was full, also behind the archive's own error.
fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::StorageFull
        || error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<WriteError>())
            .is_some_and(is_out_of_space)
}
