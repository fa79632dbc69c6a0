//! A directory under which every path is resolved, and out of which none leads.
//!
//! The kernel does the confining (openat2(2), Linux 5.6): a walk that reads refuses every
//! symbolic link, one that writes follows links as a process with this root would. Neither
//! crosses into another mount. The last component is never followed. Work lists stand in
//! place of recursion, so that depth costs neither stack nor descriptors.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::PathError;

/// How often a lookup is repeated when a rename elsewhere made the kernel give up on it.
const RACES: usize = 32;

/// An open directory that stands for `/`.
#[derive(Debug)]
pub(super) struct Anchor(OwnedFd);

/// Where an entry is: its directory, open, and its name there.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) dir: OwnedFd,
    pub(super) name: OsString,
}

impl Anchor {
    /// Opens `path` as a root.
    pub(super) fn at(path: &Path) -> Result<Self, PathError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = open(path, flags, Mode::empty());
        fd.map(Self)
            .map_err(|errno| PathError::new("open directory", path, errno))
    }

    /// A handle (`O_PATH`) on an entry reached without any symbolic link.
    pub(super) fn node(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let strict = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
        self.open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW, strict)
    }

    /// The same, or `None` when there is no such entry.
    pub(super) fn find(&self, path: &Path) -> Result<Option<OwnedFd>, Errno> {
        match self.node(path) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Names in a directory, sorted by bytes.
    pub(super) fn names(&self, path: &Path) -> Result<Vec<OsString>, Errno> {
        let strict = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
        let list = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let fd = match self.open(path, list | OFlag::O_NOATIME, strict) {
            Err(Errno::EPERM) => self.open(path, list, strict)?,
            opened => opened?,
        };
        let mut names = Vec::new();
        for entry in Dir::from_fd(fd)?.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// The directory of an entry, following symbolic links on the way as a process with this
    /// root would. `path` is not empty and in [`normal`] form.
    pub(super) fn place(&self, path: &Path) -> Result<Place, Errno> {
        let name = path.file_name().ok_or(Errno::EINVAL)?.to_owned();
        let dir = self.directory(path.parent().unwrap_or(Path::new("")))?;
        Ok(Place { dir, name })
    }

    /// The root as an entry.
    pub(super) fn itself(&self) -> Result<Place, Errno> {
        Ok(Place {
            dir: self.directory(Path::new(""))?,
            name: ".".into(),
        })
    }

    /// The same as [`Anchor::place`], making the directories on the way that are missing. There
    /// may be `room` of them, which is less afterwards; `EDQUOT` when there are more.
    pub(super) fn place_new(&self, path: &Path, room: &mut u64) -> Result<Place, Errno> {
        let name = path.file_name().ok_or(Errno::EINVAL)?.to_owned();
        let mut missing = Vec::new();
        let mut above = path.parent().unwrap_or(Path::new(""));
        let mut dir = loop {
            match (self.directory(above), above.file_name()) {
                (Err(Errno::ENOENT), Some(name)) => missing.push(name),
                (found, _) => break found?,
            }
            above = above.parent().unwrap_or(Path::new(""));
        };
        for name in missing.into_iter().rev() {
            *room = room.checked_sub(1).ok_or(Errno::EDQUOT)?;
            mkdirat(&dir, name, Mode::from_bits_truncate(0o755))?;
            let strict = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
            dir = Self(dir).open(Path::new(name), flags, strict)?;
        }
        Ok(Place { dir, name })
    }

    fn directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let inside = ResolveFlag::RESOLVE_IN_ROOT;
        self.open(path, OFlag::O_PATH | OFlag::O_DIRECTORY, inside)
    }

    fn open(&self, path: &Path, flags: OFlag, resolve: ResolveFlag) -> Result<OwnedFd, Errno> {
        let fixed = ResolveFlag::RESOLVE_NO_MAGICLINKS | ResolveFlag::RESOLVE_NO_XDEV;
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(resolve | fixed);
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        for _ in 0..RACES {
            match openat2(&self.0, path, how) {
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                opened => return opened,
            }
        }
        Err(Errno::EAGAIN)
    }
}

impl AsFd for Anchor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Place {
    /// The entry's status, or `None` when it does not exist.
    pub(super) fn stat(&self) -> Result<Option<FileStat>, Errno> {
        match fstatat(
            &self.dir,
            self.name.as_os_str(),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        ) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// A path that names the entry for calls which take no descriptor (setxattr and its kin).
    pub(super) fn proc_path(&self) -> PathBuf {
        proc_path(&self.dir).join(&self.name)
    }

    /// Removes the entry, with everything below it when it is a directory. It may be missing.
    /// Returns whether there was one.
    pub(super) fn remove(&self) -> Result<bool, Errno> {
        match unlinkat(&self.dir, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) => return Ok(true),
            Err(Errno::ENOENT) => return Ok(false),
            Err(Errno::EISDIR | Errno::EPERM) => {}
            Err(errno) => return Err(errno),
        }
        if self
            .stat()?
            .is_none_or(|stat| kind(&stat) != SFlag::S_IFDIR)
        {
            return Err(Errno::EPERM);
        }
        let top = Anchor(self.dir.try_clone().map_err(|_| Errno::EMFILE)?);
        let mut work = vec![(PathBuf::from(&self.name), false)];
        while let Some((path, emptied)) = work.pop() {
            if emptied {
                let place = top.place(&path)?;
                unlinkat(&place.dir, place.name.as_os_str(), UnlinkatFlags::RemoveDir)?;
                continue;
            }
            let names = top.names(&path)?;
            work.push((path.clone(), true));
            for name in names {
                let path = path.join(name);
                let place = top.place(&path)?;
                match unlinkat(
                    &place.dir,
                    place.name.as_os_str(),
                    UnlinkatFlags::NoRemoveDir,
                ) {
                    Ok(()) => {}
                    Err(Errno::EISDIR | Errno::EPERM) => work.push((path, false)),
                    Err(errno) => return Err(errno),
                }
            }
        }
        Ok(true)
    }
}

/// The name in /proc of an open descriptor.
pub(super) fn proc_path(fd: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Opens a regular file for reading through a handle on it, leaving its access time alone
/// where the kernel lets us.
pub(super) fn reopen(handle: &OwnedFd) -> Result<File, Errno> {
    let path = proc_path(handle);
    let read = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    match open(&path, read | OFlag::O_NOATIME, Mode::empty()) {
        Err(Errno::EPERM) => open(&path, read, Mode::empty()),
        opened => opened,
    }
    .map(File::from)
}

/// The file type bits of a status.
pub(super) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// A path without `.` components and doubled or trailing slashes.
pub(super) fn normal(path: &Path) -> PathBuf {
    path.components()
        .filter(|part| *part != Component::CurDir)
        .collect()
}
