//! Why a call failed.

use crate::{container::ContainerError, pod::PodError, status::Class};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The pod or the container refused.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// The request lacks something.
    #[error("the request has no {0}")]
    Missing(&'static str),
    /// A message inside the request is damaged, or of another type.
    #[error("{what} of type {type_url:?} do not decode: {source}")]
    Decode {
        /// What it is.
        what: &'static str,
        /// Its type.
        type_url: String,
        /// The decoder's message.
        source: protobuf::Error,
    },
    /// The metrics can't be read.
    #[error("cannot read the metrics of container {id}: {source}")]
    Metrics {
        /// The container.
        id: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A bug.
    #[error("internal error: {0}")]
    Panic(tokio::task::JoinError),
}

impl From<ContainerError> for TaskError {
    fn from(error: ContainerError) -> Self {
        Self::Pod(error.into())
    }
}

impl TaskError {
    /// What kind of failure it is for the caller.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Pod(error) => error.class(),
            Self::Missing(_) | Self::Decode { .. } => Class::InvalidArgument,
            Self::Metrics { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Class::NotFound
            }
            Self::Metrics { .. } | Self::Panic(_) => Class::Unknown,
        }
    }
}
