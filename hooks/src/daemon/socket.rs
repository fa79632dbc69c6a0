//! The listening socket: systemd's, or one of our own that takes the place of an earlier one.
//!
//! ```text
//! systemd   LISTEN_PID=us LISTEN_FDS=1    descriptor 3; stays open, and queues, while we restart
//! our own   bind PATH.PID ── mode ── rename to PATH
//!           an earlier process sees that PATH is another file: it accepts what is queued at its
//!           own, then drains. No moment without a listener, no connection is lost.
//! ```

use std::{
    env,
    fs::{self, Permissions},
    io,
    os::{
        fd::AsFd,
        unix::{
            fs::{MetadataExt, PermissionsExt},
            net::UnixListener as StdListener,
        },
    },
    path::{Path, PathBuf},
};

use nix::sys::socket::{Backlog, listen};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use tokio::net::UnixListener;

/// First descriptor that systemd passes.
const FIRST: i32 = 3;

/// There is no socket to listen at.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// What systemd has passed is no such socket.
    #[error("descriptor {FIRST} of systemd is no listening unix socket: {source}")]
    Passed {
        /// Why not.
        source: io::Error,
    },
    /// More than one was passed.
    #[error("systemd has passed {0} sockets; the socket unit must have one ListenStream= alone")]
    Many(String),
    /// Our own can't be made.
    #[error("cannot listen at {path}: {source}; set hooks.socket to a path that root may write")]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A listening socket.
#[derive(Debug)]
pub struct Listening {
    /// What accepts.
    pub listener: UnixListener,
    /// Path, device and inode of a socket of our own.
    own: Option<(PathBuf, (u64, u64))>,
}

impl Listening {
    /// systemd's socket if there is one, else a new one at `path`.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn open(path: &Path) -> Result<Self, SocketError> {
        if let Some(passed) = passed()? {
            let listener = passed
                .set_nonblocking(true)
                .and_then(|()| UnixListener::from_std(passed))
                .map_err(|source| SocketError::Passed { source })?;
            return Ok(Self {
                listener,
                own: None,
            });
        }
        let bind = || {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            let listener = bind(path, Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            Ok((UnixListener::from_std(listener)?, identity(path)?))
        };
        let (listener, identity) = bind().map_err(|source| SocketError::Bind {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            listener,
            own: Some((path.to_owned(), identity)),
        })
    }

    /// Whether another process has taken our place.
    #[must_use]
    pub fn is_replaced(&self) -> bool {
        self.own
            .as_ref()
            .is_some_and(|(path, ours)| identity(path).ok().as_ref() != Some(ours))
    }

    /// Removes a socket of our own, unless it is another's by now.
    pub fn remove(&self) {
        if let Some((path, _)) = &self.own
            && !self.is_replaced()
        {
            let _ = fs::remove_file(path);
        }
    }
}

/// A listener at `path`, which is there at once, with its mode, in place of any earlier one.
pub(crate) fn bind(path: &Path, mode: Permissions) -> io::Result<StdListener> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let _ = fs::remove_file(&temporary);
    let listener = StdListener::bind(&temporary)?;
    let placed = fs::set_permissions(&temporary, mode)
        .and_then(|()| Ok(listen(&listener.as_fd(), Backlog::MAXCONN)?))
        .and_then(|()| fs::rename(&temporary, path));
    if placed.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    placed.map(|()| listener)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let facts = fs::symlink_metadata(path)?;
    Ok((facts.dev(), facts.ino()))
}

fn passed() -> Result<Option<StdListener>, SocketError> {
    let var = |name| env::var(name).unwrap_or_default();
    // Variables of an earlier process are none of ours.
    if var("LISTEN_PID") != std::process::id().to_string() {
        return Ok(None);
    }
    match var("LISTEN_FDS").as_str() {
        "" | "0" => return Ok(None),
        "1" => {}
        many => return Err(SocketError::Many(many.to_owned())),
    }
    let take = || {
        // A copy of the descriptor, made by the kernel: a bare number can't be owned safely.
        let own = pidfd_open(getpid(), PidfdFlags::empty())?;
        let copy = pidfd_getfd(own, FIRST, PidfdGetfdFlags::empty())?;
        let listener = StdListener::from(copy);
        listener.local_addr()?;
        if !nix::sys::socket::getsockopt(&listener, nix::sys::socket::sockopt::AcceptConn)? {
            return Err(io::Error::other("it does not listen"));
        }
        Ok(listener)
    };
    take()
        .map(Some)
        .map_err(|source| SocketError::Passed { source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn a_new_socket_takes_the_place_of_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/cri.sock");
        let old = Listening::open(&path).unwrap();
        assert!(!old.is_replaced());
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let _queued = UnixStream::connect(&path).unwrap();
        let new = Listening::open(&path).unwrap();
        assert!(old.is_replaced() && !new.is_replaced());
        let _next = UnixStream::connect(&path).unwrap();
        // Each has its own.
        old.listener.accept().await.unwrap();
        new.listener.accept().await.unwrap();
        old.remove();
        assert!(path.exists());
        new.remove();
        assert!(!path.exists());
        let left = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(left, 0);
    }

    #[tokio::test]
    async fn a_directory_is_no_place_for_a_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        fs::create_dir_all(path.join("full")).unwrap();
        let error = Listening::open(&path).unwrap_err().to_string();
        assert!(error.contains("hooks.socket"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
