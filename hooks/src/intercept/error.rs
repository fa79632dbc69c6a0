//! Why a checkpoint was not taken, and what kubelet is told: the one place where errors become
//! gRPC statuses.
//!
//! kubelet shows code and text alike: `checkpointing of ns/pod/container failed (rpc error: code
//! = … desc = …)`. Hints of the command line are of no use there and are replaced.

use std::{io, path::PathBuf};

use kybernate_config::size;
use tonic::{Code, Status};

use super::deadline::Deadline;
use crate::{
    client::{CheckpointError, explain},
    retention::RetentionError,
};

/// How the shim words ENOSPC.
const NO_SPACE: &str = "(os error 28)";

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The request names no place for the archive.
    #[error("the location {location:?} is no absolute path")]
    Location {
        /// What it names.
        location: PathBuf,
    },
    /// The thread has no runtime.
    #[error("no runtime for the checkpoint: {source}")]
    Runtime {
        /// Why not.
        source: io::Error,
    },
    /// There is no room.
    #[error(transparent)]
    Retention(#[from] RetentionError),
    /// The checkpoint failed.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl CallError {
    /// What the caller is told.
    pub(super) fn status(&self, deadline: &Deadline) -> Status {
        Status::new(self.code(), self.text(deadline))
    }

    /// The name of the cause, for metrics.
    pub(super) fn cause(&self) -> String {
        format!("{:?}", self.code())
    }

    fn code(&self) -> Code {
        match self {
            Self::Location { .. } => Code::InvalidArgument,
            Self::Runtime { .. } => Code::ResourceExhausted,
            Self::Retention(RetentionError::Room { .. }) => Code::ResourceExhausted,
            Self::Retention(RetentionError::Io { source, .. }) => of_io(source),
            Self::Checkpoint(error) => of_checkpoint(error),
        }
    }

    fn text(&self, deadline: &Deadline) -> String {
        let given = deadline.given.as_secs_f32();
        match self {
            Self::Checkpoint(CheckpointError::Deadline { id, said, .. }) => format!(
                "the checkpoint of {id} would not be done within the {given} s of its caller; {}; \
                 give it more time, with kubelet's API by ?timeout=SECONDS",
                said.as_deref()
                    .unwrap_or("it was undone, the container runs on and no file is left")
            ),
            Self::Checkpoint(CheckpointError::Space {
                path,
                available,
                wanted,
            }) => format!(
                "{} has {} free, the container's memory alone is {}; free some space, or set \
                 limits under [retention]",
                path.display(),
                size::display(*available),
                size::display(*wanted)
            ),
            Self::Checkpoint(CheckpointError::NotFound { target, .. }) => {
                format!("container {target} is not found")
            }
            Self::Checkpoint(CheckpointError::Call { method, status }) => {
                format!("containerd's {method} failed: {}", explain(status))
            }
            other => other.to_string(),
        }
    }
}

fn of_checkpoint(error: &CheckpointError) -> Code {
    match error {
        CheckpointError::Connect(_) => Code::Unavailable,
        // containerd 1.7 keeps the shim's text and not its code.
        CheckpointError::Call { status, .. }
            if status.code() == Code::Unknown && status.message().contains(NO_SPACE) =>
        {
            Code::ResourceExhausted
        }
        // What the shim or containerd says is the best there is.
        CheckpointError::Call { status, .. } => status.code(),
        CheckpointError::NotFound { .. } => Code::NotFound,
        CheckpointError::Ambiguous { .. }
        | CheckpointError::Sandbox { .. }
        | CheckpointError::Output { .. } => Code::InvalidArgument,
        CheckpointError::OtherShim { .. }
        | CheckpointError::UnknownShim { .. }
        | CheckpointError::RuntimeType { .. }
        | CheckpointError::State { .. } => Code::FailedPrecondition,
        CheckpointError::Exists { .. } => Code::AlreadyExists,
        CheckpointError::Space { .. } => Code::ResourceExhausted,
        CheckpointError::Io { source, .. } => of_io(source),
        CheckpointError::Answer { .. } => Code::Internal,
        CheckpointError::Kept { source, .. } => of_checkpoint(source),
        CheckpointError::Interrupted { .. } => Code::Cancelled,
        CheckpointError::Unconfirmed { .. } | CheckpointError::Deadline { .. } => {
            Code::DeadlineExceeded
        }
    }
}

fn of_io(error: &io::Error) -> Code {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::ResourceExhausted,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Code::PermissionDenied
        }
        io::ErrorKind::NotFound => Code::NotFound,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;

    fn status(error: impl Into<CallError>) -> Status {
        let given = Some(Duration::from_secs(1));
        let deadline = Deadline::of(Instant::now(), given, 0, 3600);
        error.into().status(&deadline)
    }

    #[test]
    fn the_caller_is_told_what_the_caller_can_do() {
        let late = status(CheckpointError::Deadline {
            id: "c1".into(),
            timeout_s: 0,
            said: None,
        });
        assert_eq!(late.code(), Code::DeadlineExceeded);
        assert!(late.message().contains("1 s") && late.message().contains("?timeout="));
        assert!(!late.message().contains("--timeout"));
        assert!(late.message().contains("was undone"), "{late}");
        let full = status(CheckpointError::Space {
            path: "/var/lib/kubelet/checkpoints".into(),
            available: 1 << 20,
            wanted: 1 << 30,
        });
        assert_eq!(full.code(), Code::ResourceExhausted);
        assert!(full.message().contains("1.00 MiB") && !full.message().contains("--"));
    }

    #[test]
    fn what_the_shim_says_of_a_late_one_is_passed_on() {
        let said = Some("not everything is as before; `kybernate doctor --repair` tries again");
        let late = status(CheckpointError::Deadline {
            id: "c1".into(),
            timeout_s: 0,
            said: said.map(str::to_owned),
        });
        assert_eq!(late.code(), Code::DeadlineExceeded);
        assert!(late.message().contains("doctor --repair"), "{late}");
        assert!(!late.message().contains("was undone"), "{late}");
    }

    #[test]
    fn what_containerd_says_keeps_its_code() {
        let said = Box::new(Status::resource_exhausted("no space left on device"));
        let told = status(CheckpointError::Call {
            method: "Tasks.Checkpoint",
            status: said,
        });
        assert_eq!(told.code(), Code::ResourceExhausted);
        assert!(told.message().contains("no space left"));
        let lost = Box::new(Status::unknown(
            "cannot write the archive: No space left on device (os error 28): unknown",
        ));
        let told = status(CheckpointError::Call {
            method: "Tasks.Checkpoint",
            status: lost,
        });
        assert_eq!(told.code(), Code::ResourceExhausted);
    }

    #[test]
    fn a_full_disk_is_told_from_a_broken_one() {
        let io = |kind: io::ErrorKind| {
            status(CheckpointError::Io {
                action: "sync",
                path: "/a".into(),
                source: kind.into(),
            })
            .code()
        };
        assert_eq!(io(io::ErrorKind::StorageFull), Code::ResourceExhausted);
        assert_eq!(io(io::ErrorKind::PermissionDenied), Code::PermissionDenied);
        assert_eq!(io(io::ErrorKind::Other), Code::Internal);
    }
}
