//! The one place that turns errors into ttrpc statuses.
//!
//! containerd's clients act on the code: NOT_FOUND ends a kill or a delete well,
//! FAILED_PRECONDITION is told to the user, UNKNOWN is everything else.

use ttrpc::{Code, Error, get_status};

use crate::task::TaskError;

/// What kind of failure an error is for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// What the caller named is not there, or no longer.
    NotFound,
    /// What the caller wants to make is there.
    AlreadyExists,
    /// Not in this state.
    FailedPrecondition,
    /// The request makes no sense.
    InvalidArgument,
    /// No space, no memory.
    ResourceExhausted,
    /// Not now; try again.
    Unavailable,
    /// This build can't.
    Unimplemented,
    /// Ended because its caller went away or its time was over.
    Cancelled,
    /// Anything else.
    Unknown,
}

impl Class {
    fn code(self) -> Code {
        match self {
            Self::NotFound => Code::NOT_FOUND,
            Self::AlreadyExists => Code::ALREADY_EXISTS,
            Self::FailedPrecondition => Code::FAILED_PRECONDITION,
            Self::InvalidArgument => Code::INVALID_ARGUMENT,
            Self::ResourceExhausted => Code::RESOURCE_EXHAUSTED,
            Self::Unavailable => Code::UNAVAILABLE,
            Self::Unimplemented => Code::UNIMPLEMENTED,
            Self::Cancelled => Code::CANCELLED,
            Self::Unknown => Code::UNKNOWN,
        }
    }
}

impl From<TaskError> for Error {
    fn from(error: TaskError) -> Self {
        let class = error.class();
        let message = with_causes(&error);
        if class == Class::Unknown {
            tracing::error!(error = message, "call failed");
        }
        Self::RpcStatus(get_status(class.code(), message))
    }
}

/// The message of an error and of its causes, as far as it does not tell them itself: the
/// caller gets one line, and nothing else of the error crosses the socket.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        cause = error.source();
    }
    message
}

impl From<crate::pod::PodError> for Error {
    fn from(error: crate::pod::PodError) -> Self {
        TaskError::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{container::ContainerError, pod::PodError, runc::RuncError};

    fn code(error: TaskError) -> Code {
        match Error::from(error) {
            Error::RpcStatus(status) => status.code(),
            other => panic!("not a status: {other}"),
        }
    }

    #[test]
    fn the_message_ends_with_the_cause_and_tells_it_once() {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let host = ContainerError::Host {
            action: "write",
            path: "/x".into(),
            source: full(),
        };
        assert_eq!(
            with_causes(&TaskError::from(host)),
            format!("cannot write /x: {}", full())
        );
        #[derive(Debug, thiserror::Error)]
        #[error("cannot do it")]
        struct Silent(#[source] std::io::Error);
        assert_eq!(
            with_causes(&Silent(full())),
            format!("cannot do it: {}", full())
        );
    }

    #[test]
    fn codes_are_those_that_containerd_acts_on() {
        let container = |error: ContainerError| code(error.into());
        let id = || "c".to_owned();
        assert_eq!(code(PodError::Unknown(id()).into()), Code::NOT_FOUND);
        assert_eq!(code(PodError::Exists(id()).into()), Code::ALREADY_EXISTS);
        assert_eq!(
            container(ContainerError::Finished { id: id() }),
            Code::NOT_FOUND
        );
        let state = ContainerError::State {
            id: id(),
            action: "pause",
            state: "stopped",
        };
        assert_eq!(container(state), Code::FAILED_PRECONDITION);
        let failed = |message: &str| {
            ContainerError::Runc(RuncError::Failed {
                operation: "start".into(),
                message: message.into(),
                status: 1,
            })
        };
        assert_eq!(
            container(failed("container does not exist")),
            Code::NOT_FOUND
        );
        assert_eq!(container(failed("boom")), Code::UNKNOWN);
    }
}
