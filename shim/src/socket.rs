//! The socket that a shim serves.
//!
//! `unix://<directory>/<sha256 of join(containerd's address, namespace, group)>`: every
//! container of a group gets the same name, so the second finds the first's shim. The
//! directory is 0700, the socket 0600.
//!
//! A socket appears under its name only when it is listening: it is bound under another name
//! and renamed. So one that can't be connected to belongs to a shim that is gone.

use std::{
    fs, io,
    os::unix::{
        fs::{DirBuilderExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use sha2::{Digest, Sha256};

/// Where sockets are unless containerd says otherwise.
pub const DEFAULT_DIRECTORY: &str = "/run/containerd/s";

/// A shim's socket address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address(PathBuf);

/// What became of the wish to listen.
#[derive(Debug)]
pub enum Bound {
    /// Listening now.
    Ours(UnixListener),
    /// Somebody serves it already.
    Alive,
}

impl Address {
    /// The address for a group of containers.
    #[must_use]
    pub fn new(directory: &Path, containerd: &str, namespace: &str, group: &str) -> Self {
        // Go's filepath.Join leaves out what is empty.
        let parts = [containerd, namespace, group]
            .into_iter()
            .filter(|part| !part.is_empty());
        let name = parts.collect::<Vec<_>>().join("/");
        let digest = Sha256::digest(name.as_bytes());
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Self(directory.join(hex))
    }

    /// From its text form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let path = text.trim().strip_prefix("unix://")?;
        path.starts_with('/').then(|| Self(path.into()))
    }

    /// The path of the socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Whether somebody serves it.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        UnixStream::connect(&self.0).is_ok()
    }

    /// Listens, unless somebody does.
    pub fn bind(&self) -> io::Result<Bound> {
        let directory = self.0.parent().unwrap_or(Path::new("/"));
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let temporary = directory.join(format!(".{}", std::process::id()));
        let _ = fs::remove_file(&temporary);
        let listener = UnixListener::bind(&temporary)?;
        let placed = fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))
            .and_then(|()| self.place(&temporary));
        match placed {
            Ok(true) => Ok(Bound::Ours(listener)),
            Ok(false) => fs::remove_file(&temporary).map(|()| Bound::Alive),
            Err(error) => {
                let _ = fs::remove_file(&temporary);
                Err(error)
            }
        }
    }

    /// Gives the socket its name. False when it is taken by one that is alive.
    fn place(&self, temporary: &Path) -> io::Result<bool> {
        for _ in 0..3 {
            match renameat_with(CWD, temporary, CWD, &self.0, RenameFlags::NOREPLACE) {
                Ok(()) => return Ok(true),
                Err(rustix::io::Errno::EXIST) if self.is_alive() => return Ok(false),
                Err(rustix::io::Errno::EXIST) => self.remove()?,
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Removes the socket. It is no error when it is gone.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "unix://{}", self.0.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(dir: &Path, group: &str) -> Address {
        Address::new(dir, "/run/containerd/containerd.sock", "k8s.io", group)
    }

    #[test]
    fn the_name_is_the_one_that_other_shims_would_use() {
        let address = Address::new(Path::new("/s"), "/a", "n", "g");
        let digest = "a15641d6a1b6c5a92b95040bad99c57c2cc002ad0414c49356aad96cca9e6b03";
        assert_eq!(address.to_string(), format!("unix:///s/{digest}"));
        assert_eq!(Address::parse(&format!("{address}\n")), Some(address));
        assert_eq!(Address::parse("/plain"), None);
    }

    #[test]
    fn a_living_socket_is_shared_and_a_dead_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let address = address(&dir.path().join("s"), "pod");
        let Bound::Ours(listener) = address.bind().unwrap() else {
            panic!("not ours")
        };
        assert!(matches!(address.bind().unwrap(), Bound::Alive));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(address.path()), mode(address.path().parent().unwrap())),
            (0o600, 0o700)
        );
        drop(listener);
        assert!(!address.is_alive());
        assert!(matches!(address.bind().unwrap(), Bound::Ours(_)));
        assert_eq!(
            fs::read_dir(address.path().parent().unwrap())
                .unwrap()
                .count(),
            1
        );
        address.remove().unwrap();
        address.remove().unwrap();
    }
}
