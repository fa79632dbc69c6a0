//! Layers of a container in a user namespace, with their owners shifted (idmapped mounts).
//!
//! containerd asks for it with the options `uidmap=0:100000:65536` and `gidmap=…`. An overlay
//! takes the owners of its layers from the mounts that they lie on. So the directory that all
//! layers have in common is cloned as a mount of its own, the mapping set on the clone, and
//! the overlay made from the layers in the clone, which is then taken away again: the overlay
//! holds what it needs of it.
//!
//! A mapping is handed to the kernel as a user namespace that has it. Only a process can make
//! one, and only one without threads: this program itself, run as [`HOLD`].

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    mount::{MntFlags, umount2},
    sched::{CloneFlags, unshare},
    unistd::mkdtemp,
};
use rustix::{
    fs::CWD,
    mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
};

use crate::sys;

/// Argument with which this program holds a user namespace until its stdin ends.
pub const HOLD: &str = "hold-user-namespace";

/// A mapping of users and of groups, as `/proc/PID/uid_map` takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMap {
    uids: String,
    gids: String,
}

impl IdMap {
    /// Parses `container:host:size[,…]` of both options. `None` when it is malformed.
    #[must_use]
    pub fn parse(uidmap: &str, gidmap: &str) -> Option<Self> {
        Some(Self {
            uids: lines(uidmap)?,
            gids: lines(gidmap)?,
        })
    }

    /// A user namespace with this mapping.
    fn user_namespace(&self) -> io::Result<OwnedFd> {
        // Reaped with all other children once it has lost its stdin.
        let mut holder = Command::new("/proc/self/exe")
            .arg(HOLD)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let (_stdin, stdout) = (holder.stdin.take(), holder.stdout.take());
        let mut ready = [0];
        stdout
            .ok_or(io::ErrorKind::BrokenPipe)?
            .read_exact(&mut ready)
            .map_err(|_| {
                io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    "cannot make a user namespace",
                )
            })?;
        let process = Path::new("/proc").join(holder.id().to_string());
        fs::write(process.join("uid_map"), &self.uids)?;
        fs::write(process.join("gid_map"), &self.gids)?;
        Ok(File::open(process.join("ns/user"))?.into())
    }

    /// A clone of the mount at `path`, shifted, attached nowhere.
    fn shifted(&self, path: &Path, read_only: bool) -> io::Result<OwnedFd> {
        let namespace = self.user_namespace()?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, path, flags)?;
        sys::set_id_map(tree.as_fd(), namespace.as_fd(), read_only)?;
        Ok(tree)
    }

    /// Shifts a mount in place.
    pub fn shift(&self, target: &Path) -> io::Result<()> {
        attach(&self.shifted(target, false)?, target)
    }

    /// Attaches a shifted, read-only clone of a directory for as long as the result lives.
    pub fn clone_of(&self, directory: &Path) -> io::Result<Clone> {
        let tree = self.shifted(directory, true)?;
        let clone = Clone {
            path: mkdtemp(&std::env::temp_dir().join("kybernate-layers-XXXXXX"))?,
        };
        attach(&tree, &clone.path)?;
        Ok(clone)
    }
}

fn attach(tree: &OwnedFd, target: &Path) -> io::Result<()> {
    Ok(move_mount(
        tree,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

/// A clone that is attached.
#[derive(Debug)]
pub struct Clone {
    path: PathBuf,
}

impl Clone {
    /// Where.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Clone {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        if let Err(error) = fs::remove_dir(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a directory stays behind");
        }
    }
}

fn lines(map: &str) -> Option<String> {
    let line = |entry: &str| {
        let numbers: Vec<u32> = entry
            .split(':')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .ok()?;
        let [container, host, size] = numbers[..] else {
            return None;
        };
        Some(format!("{container} {host} {size}\n"))
    };
    map.split(',').map(line).collect()
}

/// Runs as [`HOLD`]: makes a user namespace, says so, and waits for the end of stdin.
pub fn hold() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER)?;
    let mut stdout = io::stdout();
    stdout.write_all(b"+")?;
    stdout.flush()?;
    io::copy(&mut io::stdin(), &mut io::sink()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_given_in_the_order_of_the_kernel() {
        let map = IdMap::parse("0:100000:65536,70000:1:2", "0:5:1").unwrap();
        assert_eq!(map.uids, "0 100000 65536\n70000 1 2\n");
        assert_eq!(map.gids, "0 5 1\n");
    }

    #[test]
    fn malformed_mappings_are_none() {
        for wrong in ["", "0:1", "0:1:2:3", "a:1:2", "-1:0:1", "0:1:2,"] {
            assert_eq!(IdMap::parse(wrong, "0:1:2"), None, "{wrong}");
        }
    }
}
