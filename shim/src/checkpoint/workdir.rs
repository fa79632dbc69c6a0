//! Directories that live for as long as one checkpoint or restore.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{FsType, TMPFS_MAGIC, statfs},
};

use crate::mount::mount_points;

/// From linux/magic.h.
const RAMFS_MAGIC: i64 = 0x8584_58f6;
/// The subdirectory that may be a file system of its own.
const IMAGES: &str = "images";
/// The subdirectory for mounts of hooks.
const INJECTED: &str = "injected";
/// Room in it for what is not counted.
const SLACK: u64 = 16 << 20;

/// A private directory, removed with everything in it when dropped.
#[derive(Debug)]
pub struct WorkDir(PathBuf);

impl WorkDir {
    /// Where [`WorkDir::create`] makes one.
    #[must_use]
    pub fn place(parent: &Path, namespace: &str, id: &str) -> PathBuf {
        parent.join(format!("{namespace}-{id}"))
    }

    /// Makes `<parent>/<namespace>-<id>`, mode 0700, empty. What an earlier attempt left there
    /// goes away: a container has one operation at a time.
    pub fn create(parent: &Path, namespace: &str, id: &str) -> io::Result<Self> {
        let path = Self::place(parent, namespace, id);
        match remove(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700).recursive(true).create(parent)?;
        builder.recursive(false).create(&path)?;
        Ok(Self(path))
    }

    /// Makes a directory in it.
    pub fn subdir(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.0.join(name);
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(path)
    }

    /// Makes the directory `images` in it, as a tmpfs of huge pages for `bytes` of files where the
    /// kernel allows that.
    pub fn images_in_huge_pages(&self, bytes: u64) -> io::Result<PathBuf> {
        let path = self.subdir(IMAGES)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let options = format!("mode=0700,size={},huge=within_size", bytes + SLACK);
        let mounted = mount(
            Some("kybernate"),
            &path,
            Some("tmpfs"),
            flags,
            Some(options.as_str()),
        );
        if let Err(error) = mounted {
            // Only slower: the directory itself is in memory, too.
            tracing::debug!(path = %path.display(), %error, "no tmpfs of huge pages");
        }
        Ok(path)
    }

    /// Where mounts of hooks may hang; nothing is there yet.
    #[must_use]
    pub fn injected(&self) -> PathBuf {
        self.0.join(INJECTED)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// Whether what is written to the file system of `path` stays in memory.
pub fn is_in_memory(path: &Path) -> io::Result<bool> {
    let kind = statfs(path)?.filesystem_type();
    Ok(kind == TMPFS_MAGIC || kind == FsType(RAMFS_MAGIC))
}

/// Removes a work directory, also one that another process has left. What is mounted in it is
/// detached first and never entered: besides the images that may be what hooks mount, and the cgroups
/// of the machine, which CRIU mounts in its working directory for a restore (`.criu.cgyard.*`, criu/cgroup.c) and
/// leaves there when it is killed.
pub fn remove(path: &Path) -> io::Result<()> {
    // Of those on top of each other the last one is on top.
    for mounted in mounts_below(path)?.iter().rev() {
        match umount2(mounted, MntFlags::MNT_DETACH) {
            // It went with the one that it was in.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    fs::remove_dir_all(path)
}

/// Where something is mounted below a directory, in the order of mounting.
fn mounts_below(path: &Path) -> io::Result<Vec<PathBuf>> {
    // The kernel tells paths without links.
    let path = match path.canonicalize() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        found => found?,
    };
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = mount_points(&table).into_iter();
    Ok(points
        .filter(|point| point.starts_with(&path) && *point != path)
        .collect())
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove a work directory");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_in_huge_pages_go_with_their_directory() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED images_in_huge_pages_go_with_their_directory: only root may mount");
            return;
        }
        let parent = tempfile::tempdir().unwrap();
        let dir = WorkDir::create(parent.path(), "ns", "a").unwrap();
        let images = dir.images_in_huge_pages(1 << 20).unwrap();
        fs::write(images.join("pages-1.img"), [7; 4096]).unwrap();
        let mounts = || fs::read_to_string("/proc/self/mounts").unwrap();
        let is_mounted = || mounts().contains(images.to_str().unwrap());
        assert!(is_mounted());
        // As if the process that made it was gone.
        std::mem::forget(dir);
        let next = WorkDir::create(parent.path(), "ns", "a").unwrap();
        assert!(!is_mounted());
        next.images_in_huge_pages(1 << 20).unwrap();
        assert!(is_mounted());
        drop(next);
        assert!(!is_mounted());
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_mounted_in_it_is_not_entered() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED what_is_mounted_in_it_is_not_entered: only root may mount");
            return;
        }
        let parent = tempfile::tempdir().unwrap();
        let others = tempfile::tempdir().unwrap();
        fs::write(others.path().join("kept"), "").unwrap();
        let dir = WorkDir::create(parent.path(), "ns", "a").unwrap();
        let yard = dir.subdir("work").unwrap().join(".criu.cgyard.x");
        fs::create_dir(&yard).unwrap();
        let none = None::<&str>;
        mount(Some("none"), &yard, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        let inner = yard.join("freezer");
        fs::create_dir(&inner).unwrap();
        let bound = mount(Some(others.path()), &inner, none, MsFlags::MS_BIND, none);
        bound.unwrap();
        assert!(inner.join("kept").exists());
        drop(dir);
        assert!(others.path().join("kept").exists());
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn leftovers_go_and_nothing_stays() {
        let parent = tempfile::tempdir().unwrap();
        let left = parent.path().join("ns-a/old");
        fs::create_dir_all(&left).unwrap();
        let dir = WorkDir::create(parent.path(), "ns", "a").unwrap();
        assert!(!left.exists());
        assert!(dir.subdir("images").unwrap().is_dir());
        drop(dir);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
