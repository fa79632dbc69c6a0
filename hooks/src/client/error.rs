//! What can go wrong between a client and the archive it asked for.

use std::{io, path::PathBuf};

use tonic::Code;

use crate::connect::ConnectError;
use kybernate_config::{names, size};

/// Why a checkpoint was not taken. Whatever the reason, no file is left and the container is
/// as it was, unless the text says something else.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A call failed.
    #[error("containerd's {method} failed: {}", explain(status))]
    Call {
        /// The method.
        method: &'static str,
        /// containerd's answer.
        status: Box<tonic::Status>,
    },
    /// Nothing matches.
    #[error(
        "no container {target} in containerd's namespace {namespace:?}; `crictl ps` or \
         `ctr -n {namespace} containers ls` show what is there, --namespace names another"
    )]
    NotFound {
        /// What was asked for.
        target: String,
        /// Where.
        namespace: String,
    },
    /// More than one matches.
    #[error("{prefix} is the start of {} ids: {}; write more of it", ids.len(), ids.join(", "))]
    Ambiguous {
        /// The prefix.
        prefix: String,
        /// What it fits.
        ids: Vec<String>,
    },
    /// A pod's sandbox.
    #[error("{id} is the sandbox of a pod and holds no program; name one of the pod's containers")]
    Sandbox {
        /// The container.
        id: String,
    },
    /// The container runs under another shim.
    #[error(
        "{id} runs under {found}, not under {}; only pods of the runtime class {:?} \
         can be checkpointed (`kybernate doctor` shows whether it is registered)",
        names::SHIM_BINARY,
        names::RUNTIME_HANDLER
    )]
    OtherShim {
        /// The container.
        id: String,
        /// Its shim or runtime type.
        found: String,
    },
    /// Nobody can tell which shim a container runs under that is to end.
    #[error(
        "cannot see which shim {id} runs under, and with --exit another one than {} would end it \
         without an archive; run this command as root in containerd's PID namespace, or leave \
         --exit out",
        names::SHIM_BINARY
    )]
    UnknownShim {
        /// The container.
        id: String,
    },
    /// containerd 1.x keeps the staging directory from shims of other runtime types.
    #[error(
        "containerd {version} does not let {id} be checkpointed: it hands options to runtimes \
         named {} alone, not to {runtime}; register the handler under that type with runtime_path \
         (`kybernate doctor` shows how) and create the pod anew",
        names::RUNC_RUNTIME_TYPE
    )]
    RuntimeType {
        /// The container.
        id: String,
        /// containerd's version.
        version: String,
        /// The container's runtime type.
        runtime: String,
    },
    /// The container has no running process.
    #[error("{id} is {state}; only a running or paused container can be checkpointed")]
    State {
        /// The container.
        id: String,
        /// Its state.
        state: &'static str,
    },
    /// The output is there already.
    #[error("{path} exists; --force replaces it")]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// The output can't be a file.
    #[error("{path} can't be written: {reason}; name a file in an existing directory")]
    Output {
        /// The output.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// Too little space.
    #[error(
        "{} has {} free, the container's memory alone is {}; free some space, write elsewhere, \
         or skip this check with --no-space-check",
        path.display(), size::display(*available), size::display(*wanted)
    )]
    Space {
        /// The output's directory.
        path: PathBuf,
        /// Free bytes there.
        available: u64,
        /// Bytes of memory that an archive would have to hold, before compression.
        wanted: u64,
    },
    /// A file operation.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The call succeeded and its files are not what they should be.
    #[error(
        "the shim of {id} answered without an archive ({reason}); client and shim must be of \
         the same release"
    )]
    Answer {
        /// The container.
        id: String,
        /// What is wrong.
        reason: String,
    },
    /// The container has or may have ended, and its archive could not be published.
    #[error(
        "{source}; {id} may have ended, so what its shim wrote is kept in {path}: move it away"
    )]
    Kept {
        /// The container.
        id: String,
        /// The staging directory.
        path: PathBuf,
        /// Why it was not published.
        source: Box<CheckpointError>,
    },
    /// Interrupted by its caller.
    #[error("interrupted; {}", outcome(id, said.as_ref()))]
    Interrupted {
        /// The container.
        id: String,
        /// What was said other than that all is as it was.
        said: Option<String>,
    },
    /// Interrupted, and the shim did not confirm.
    #[error(
        "{cause}, and the shim of {id} did not confirm within {waited_s} s that it has rolled \
         back; it does so by itself, see its log"
    )]
    Unconfirmed {
        /// The container.
        id: String,
        /// `interrupted` or `out of time`.
        cause: &'static str,
        /// How long the client waited, in seconds.
        waited_s: u64,
    },
    /// Out of time.
    #[error(
        "not done within {timeout_s} s; {}; give it more time with --timeout",
        outcome(id, said.as_ref())
    )]
    Deadline {
        /// The container.
        id: String,
        /// The time it had, in seconds.
        timeout_s: u64,
        /// What was said other than that all is as it was.
        said: Option<String>,
    },
}

impl CheckpointError {
    pub(crate) fn call(method: &'static str) -> impl Fn(tonic::Status) -> Self {
        move |status| Self::Call {
            method,
            status: Box::new(status),
        }
    }

    /// Of a call about the task of a container: one without a task has ended meanwhile.
    pub(crate) fn task_call(method: &'static str, id: &str) -> impl Fn(tonic::Status) -> Self {
        move |status| match status.code() {
            Code::NotFound => Self::without_process(id),
            _ => Self::call(method)(status),
        }
    }

    /// The container has no process.
    pub(crate) fn without_process(id: &str) -> Self {
        Self::State {
            id: id.to_owned(),
            state: "without a process",
        }
    }

    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// How a checkpoint ended that was not wanted any more.
fn outcome(id: &str, said: Option<&String>) -> String {
    said.cloned()
        .unwrap_or_else(|| format!("{id} goes on running and nothing was written"))
}

/// The text of a status, with its class where that says more.
pub fn explain(status: &tonic::Status) -> String {
    match status.code() {
        Code::Unknown | Code::Internal => status.message().to_owned(),
        Code::Unavailable => {
            format!(
                "{} (containerd went away; is it restarting?)",
                status.message()
            )
        }
        code => format!("{} ({code:?})", status.message()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_is_not_found_has_ended() {
        let told = |status| CheckpointError::task_call("Tasks.Checkpoint", "c1")(status);
        let gone = told(tonic::Status::not_found("task c1 not found"));
        assert!(matches!(gone, CheckpointError::State { .. }), "{gone}");
        assert!(gone.to_string().starts_with("c1 is without a process"));
        let other = told(tonic::Status::internal("runc failed"));
        assert!(matches!(other, CheckpointError::Call { .. }), "{other}");
    }
}
