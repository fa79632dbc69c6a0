//! Why something could not be done with a container.

use std::{io, path::PathBuf};

use crate::{
    checkpoint::CheckpointError, io::StdioError, mount::MountError, options::OptionsError,
    restore::RestoreError, runc::RuncError, spec::SpecError, status::Class, wishes::RefusedWish,
};

/// Why something could not be done with a container.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// No exec of that id.
    #[error("container {id} has no process {exec_id}")]
    UnknownExec {
        /// The container.
        id: String,
        /// The exec id.
        exec_id: String,
    },
    /// An exec of that id is there.
    #[error("container {id} already has a process {exec_id}")]
    ExecExists {
        /// The container.
        id: String,
        /// The exec id.
        exec_id: String,
    },
    /// Not in this state.
    #[error("cannot {action} container {id}: it is {state}")]
    State {
        /// The container.
        id: String,
        /// What was asked.
        action: &'static str,
        /// What it is.
        state: &'static str,
    },
    /// The process has ended.
    #[error("process already finished in container {id}")]
    Finished {
        /// The container.
        id: String,
    },
    /// It has no cgroup yet.
    #[error("container {id} has no cgroup; it is not started")]
    NoCgroup {
        /// The container.
        id: String,
    },
    /// A message that should be JSON is not.
    #[error("{what} for container {id} do not parse: {source}")]
    Json {
        /// What it is.
        what: &'static str,
        /// The container.
        id: String,
        /// The parser's message.
        source: serde_json::Error,
    },
    /// The kernel refused.
    #[error("cannot {action} {path}: {source}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The signal could not be sent.
    #[error("cannot send signal {signal} to container {id}: {source}")]
    Signal {
        /// The container.
        id: String,
        /// The signal.
        signal: u32,
        /// Why not.
        source: io::Error,
    },
    /// The root file system.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The options.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The spec.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// What its annotations ask for.
    #[error(transparent)]
    Wish(#[from] RefusedWish),
    /// Stdio.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// runc.
    #[error(transparent)]
    Runc(#[from] RuncError),
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A restore.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

impl ContainerError {
    /// What kind of failure it is for the caller.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::UnknownExec { .. } | Self::Finished { .. } | Self::NoCgroup { .. } => {
                Class::NotFound
            }
            Self::ExecExists { .. } => Class::AlreadyExists,
            Self::State { .. } => Class::FailedPrecondition,
            Self::Json { .. } | Self::Options(_) | Self::Wish(_) => Class::InvalidArgument,
            Self::Stdio(StdioError::Uri { .. }) => Class::InvalidArgument,
            Self::Runc(error) if error.is_unknown_container() => Class::NotFound,
            Self::Checkpoint(error) => error.class(),
            Self::Restore(error) => error.class(),
            Self::Host { .. }
            | Self::Signal { .. }
            | Self::Mount(_)
            | Self::Spec(_)
            | Self::Stdio(_)
            | Self::Runc(_) => Class::Unknown,
        }
    }
}
