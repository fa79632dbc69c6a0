//! The two ways to a runtime.
//!
//! A plugin that runs by itself connects to the runtime's socket. One that the runtime launches
//! from its plugin directory (`NN-name`) is handed a connected descriptor, and name and index in
//! `NRI_PLUGIN_SOCKET`, `NRI_PLUGIN_NAME` and `NRI_PLUGIN_IDX`; these are all the environment
//! that it gets.

use std::{io, os::unix::net::UnixStream as StdStream, path::Path};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use tokio::net::UnixStream;

/// Number of the descriptor that a launched plugin is connected through.
pub const SOCKET_VARIABLE: &str = "NRI_PLUGIN_SOCKET";
/// Name that a launched plugin has.
pub const NAME_VARIABLE: &str = "NRI_PLUGIN_NAME";
/// Index that a launched plugin has.
pub const INDEX_VARIABLE: &str = "NRI_PLUGIN_IDX";

/// What a plugin registers as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    name: String,
    index: String,
}

/// Why there is no identity or no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name has other characters than the runtime takes.
    #[error("plugin name {0:?} is not valid: use one or more of a-z A-Z 0-9 _ . + -")]
    Name(String),
    /// The index is not two digits.
    #[error("plugin index {0:?} is not valid: use two digits, 00 to 99")]
    Index(String),
    /// Nobody listens at the socket.
    #[error(
        "cannot connect to the NRI socket {path}: {source}; is NRI enabled in the runtime's configuration?"
    )]
    Connect {
        /// The socket.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The environment names something that is no descriptor.
    #[error("{SOCKET_VARIABLE}={0:?} is no descriptor number")]
    Descriptor(String),
    /// The descriptor from the environment can't be used.
    #[error("cannot use descriptor {number} of {SOCKET_VARIABLE}: {source}")]
    Inherit {
        /// The descriptor.
        number: i32,
        /// Why not.
        source: io::Error,
    },
}

impl Identity {
    /// A name, and an index of two digits; plugins with lower ones are asked first.
    pub fn new(name: &str, index: &str) -> Result<Self, ConnectError> {
        let letter = |c: char| c.is_ascii_alphanumeric() || "_.+-".contains(c);
        if name.is_empty() || !name.chars().all(letter) {
            return Err(ConnectError::Name(name.into()));
        }
        if index.len() != 2 || !index.bytes().all(|b| b.is_ascii_digit()) {
            return Err(ConnectError::Index(index.into()));
        }
        Ok(Self {
            name: name.into(),
            index: index.into(),
        })
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The index.
    #[must_use]
    pub fn index(&self) -> &str {
        &self.index
    }
}

/// Connects to the runtime's socket.
pub async fn connect(socket: &Path) -> Result<UnixStream, ConnectError> {
    UnixStream::connect(socket)
        .await
        .map_err(|source| ConnectError::Connect {
            path: socket.display().to_string(),
            source,
        })
}

/// Takes over the descriptor that the runtime has launched this process with.
///
/// # Panics
/// Outside a tokio runtime.
pub fn inherit(number: &str) -> Result<UnixStream, ConnectError> {
    let number = number
        .parse()
        .map_err(|_| ConnectError::Descriptor(number.into()))?;
    let taken = || {
        // A copy of the descriptor, made by the kernel: a bare number can't be owned safely.
        let own = pidfd_open(getpid(), PidfdFlags::empty())?;
        let copy = pidfd_getfd(own, number, PidfdGetfdFlags::empty())?;
        let stream = StdStream::from(copy);
        stream.peer_addr()?;
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream)
    };
    taken().map_err(|source| ConnectError::Inherit { number, source })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn names_and_indices_that_a_runtime_refuses_are_refused_first() {
        assert!(Identity::new("my_plugin-1.0+x", "07").is_ok());
        for name in ["", "a b", "a/b", "ä"] {
            assert!(
                matches!(Identity::new(name, "07"), Err(ConnectError::Name(_))),
                "{name}"
            );
        }
        for index in ["", "7", "007", "a1", "-1", "１"] {
            assert!(
                matches!(Identity::new("x", index), Err(ConnectError::Index(_))),
                "{index}"
            );
        }
    }

    #[tokio::test]
    async fn an_inherited_descriptor_is_the_same_connection() {
        let (here, there) = StdStream::pair().unwrap();
        let mut taken = inherit(&there.as_raw_fd().to_string()).unwrap();
        here.set_nonblocking(true).unwrap();
        let mut here = UnixStream::from_std(here).unwrap();
        taken.write_all(b"ping").await.unwrap();
        let mut read = [0; 4];
        here.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"ping");
    }

    #[tokio::test]
    async fn what_is_no_socket_is_refused_with_its_number() {
        let file = tempfile::tempfile().unwrap();
        let error = inherit(&file.as_raw_fd().to_string())
            .unwrap_err()
            .to_string();
        assert!(error.contains(&file.as_raw_fd().to_string()), "{error}");
        assert!(matches!(inherit("three"), Err(ConnectError::Descriptor(_))));
        assert!(matches!(inherit("4095"), Err(ConnectError::Inherit { .. })));
    }
}
