//! Mounts that are taken out of one mount namespace and put into another.
//!
//! `open_tree(2)` clones a mount that then hangs nowhere and goes when its descriptor is closed;
//! `move_mount(2)` puts it somewhere. Both are there since Linux 5.2.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, umount2},
    sched::{CloneFlags, setns},
};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2},
    mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
};

use super::Injected;
use crate::{
    criu::config::External,
    mount::{apart, table},
};

/// A mount that hangs nowhere.
#[derive(Debug)]
pub struct Tree {
    /// Where it was.
    pub destination: String,
    mount: OwnedFd,
    is_directory: bool,
}

impl Tree {
    /// Clones mounts of the mount namespace of `pid`.
    pub(super) fn clone_all(pid: u32, mounts: &[Injected]) -> io::Result<Vec<Self>> {
        let namespace = File::open(format!("/proc/{pid}/ns/mnt"))?;
        apart(|| {
            setns(&namespace, CloneFlags::CLONE_NEWNS)?;
            mounts.iter().map(Self::clone_one).collect()
        })
    }

    /// In the mount namespace and the root of the container.
    fn clone_one(mount: &Injected) -> io::Result<Self> {
        let path = table::unescape(mount.destination());
        let failed = |error: rustix::io::Errno| {
            let error = io::Error::from(error);
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        };
        // A mount point has no links in its path.
        let resolve = ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let point = openat2(CWD, &path, flags, Mode::empty(), resolve).map_err(failed)?;
        let kind = FileType::from_raw_mode(fstat(&point).map_err(failed)?.st_mode);
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        Ok(Self {
            destination: mount.destination().into(),
            mount: open_tree(&point, "", flags).map_err(failed)?,
            is_directory: kind == FileType::Directory,
        })
    }
}

/// Mounts that hang in a directory for as long as this lives.
#[derive(Debug)]
pub struct Attached {
    /// Mount point in the container, and where it can be had.
    places: Vec<(String, PathBuf)>,
}

impl Attached {
    /// Hangs mounts into `directory`, which it makes.
    ///
    /// # Errors
    /// The directory is there, or a mount can't be moved.
    pub fn new(trees: &[Tree], directory: &Path) -> io::Result<Self> {
        let mut attached = Self { places: Vec::new() };
        if trees.is_empty() {
            return Ok(attached);
        }
        DirBuilder::new().mode(0o700).create(directory)?;
        for (number, tree) in trees.iter().enumerate() {
            let place = directory.join(number.to_string());
            if tree.is_directory {
                fs::create_dir(&place)?;
            } else {
                File::create(&place)?;
            }
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(tree.mount.as_fd(), "", CWD, &place, flags)?;
            attached.places.push((tree.destination.clone(), place));
        }
        Ok(attached)
    }

    /// What CRIU is told of them.
    #[must_use]
    pub fn external(&self) -> Vec<External<'_>> {
        self.places
            .iter()
            .map(|(destination, place)| External {
                destination,
                // The shim's own directories have names of ASCII.
                source: place.to_str().unwrap_or_default(),
            })
            .collect()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        for (_, place) in &self.places {
            let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
            if let Err(error) = umount2(place, flags) {
                tracing::warn!(place = %place.display(), %error, "a mount stays behind");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_hangs_where_it_is_put_and_then_nowhere() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!(
                "SKIPPED a_mount_hangs_where_it_is_put_and_then_nowhere: only root may mount"
            );
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let proc = Injected("/proc".into());
        let trees = Tree::clone_all(std::process::id(), &[proc]).unwrap();
        let place = dir.path().join("injected");
        let attached = Attached::new(&trees, &place).unwrap();
        assert_eq!(attached.places, [("/proc".into(), place.join("0"))]);
        assert!(place.join("0/self").exists());
        drop(attached);
        assert_eq!(fs::read_dir(place.join("0")).unwrap().count(), 0);
    }

    #[test]
    fn what_is_not_there_is_named() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED what_is_not_there_is_named: only root may enter a namespace");
            return;
        }
        let missing = Injected("/missing/here".into());
        let error = Tree::clone_all(std::process::id(), &[missing]).unwrap_err();
        assert!(error.to_string().contains("/missing/here"), "{error}");
    }
}
