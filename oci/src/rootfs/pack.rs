//! Entries of one tree, on their way into a tar.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::readlinkat;
use nix::sys::stat::{FileStat, SFlag, fstat, major, minor};

use super::anchor::{Anchor, kind, proc_path, reopen};
use super::bounds::{Bounds, EXTENSION, Limits};
use super::diff::{Diff, DiffError};
use super::encode::{ContentError, Encoder};
use super::member::{Kind, Member, Meta, Stamp};
use super::{Note, PATH_LIMIT, PathError, carried};

/// Writes entries of one tree into a tar.
pub(super) struct Packer<'a> {
    pub(super) source: Anchor,
    pub(super) out: Encoder<'a>,
    /// Of inodes with several names, by device and inode number: the name with the content.
    links: HashMap<(u64, u64), PathBuf>,
    /// What a restore takes.
    pub(super) bounds: Bounds,
    packed: Diff,
}

/// What became of a path.
pub(super) enum Added {
    Missing,
    Skipped,
    MountPoint,
    Leaf,
    Directory,
}

/// What a path leads to.
pub(super) enum Opened {
    Missing,
    MountPoint,
    /// A handle on the entry, and its status.
    Entry(OwnedFd, FileStat),
}

impl<'a> Packer<'a> {
    pub(super) fn new(source: Anchor, out: &'a mut dyn Write) -> Self {
        let out = Encoder::new(out);
        Self {
            source,
            out,
            links: HashMap::new(),
            bounds: Bounds::new(&Limits {
                bytes: u64::MAX,
                ..Limits::default()
            }),
            packed: Diff::default(),
        }
    }

    pub(super) fn finish(self) -> Result<Diff, DiffError> {
        self.out.finish().map_err(DiffError::Write)?;
        Ok(self.packed)
    }

    /// Looks an entry up.
    pub(super) fn open(&self, path: &Path) -> Result<Opened, DiffError> {
        let failed = |errno| PathError::new("open", path, errno);
        if path.as_os_str().len() > PATH_LIMIT {
            return Err(DiffError::TooDeep {
                path: path.to_owned(),
            });
        }
        match self.source.find(path) {
            Ok(None) => Ok(Opened::Missing),
            Err(Errno::EXDEV) => Ok(Opened::MountPoint),
            Ok(Some(handle)) => {
                let stat = fstat(&handle).map_err(failed)?;
                Ok(Opened::Entry(handle, stat))
            }
            Err(errno) => Err(failed(errno).into()),
        }
    }

    /// Writes the entry at `path`.
    pub(super) fn add(&mut self, path: &Path) -> Result<Added, DiffError> {
        let (handle, stat) = match self.open(path)? {
            Opened::Entry(handle, stat) => (handle, stat),
            Opened::Missing => return Ok(Added::Missing),
            Opened::MountPoint => {
                self.packed.notes.push(Note::MountPoint(path.to_owned()));
                return Ok(Added::MountPoint);
            }
        };
        if kind(&stat) == SFlag::S_IFSOCK {
            self.packed.notes.push(Note::Socket(path.to_owned()));
            return Ok(Added::Skipped);
        }
        let meta = Meta {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: Stamp {
                sec: stat.st_mtime,
                nsec: u32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
            },
            xattrs: attributes(&handle, path)?,
        };
        let member = Member {
            path: path.to_owned(),
            kind: self.kind(path, &handle, &stat)?,
            meta,
        };
        self.bounds.member()?;
        if member.kind == Kind::Directory {
            self.bounds.directory(&member)?;
        }
        self.out.member(&member).map_err(DiffError::Write)?;
        self.packed.files += 1;
        if let Kind::File(size) = member.kind {
            self.packed.bytes += size;
            self.content(path, &handle, size)?;
        }
        Ok(if member.kind == Kind::Directory {
            Added::Directory
        } else {
            Added::Leaf
        })
    }

    fn kind(&mut self, path: &Path, handle: &OwnedFd, stat: &FileStat) -> Result<Kind, DiffError> {
        let kind = kind(stat);
        if kind == SFlag::S_IFDIR {
            return Ok(Kind::Directory);
        }
        if stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&inode) {
                return Ok(Kind::Link(first.clone()));
            }
            self.links.insert(inode, path.to_owned());
        }
        let device = (major(stat.st_rdev), minor(stat.st_rdev));
        match kind {
            SFlag::S_IFREG => Ok(Kind::File(u64::try_from(stat.st_size).unwrap_or_default())),
            SFlag::S_IFIFO => Ok(Kind::Fifo),
            SFlag::S_IFCHR => Ok(Kind::Char(device.0, device.1)),
            SFlag::S_IFBLK => Ok(Kind::Block(device.0, device.1)),
            SFlag::S_IFLNK => {
                let text = readlinkat(handle, "");
                let text = text.map_err(|e| PathError::new("read symbolic link", path, e))?;
                Ok(Kind::Symlink(text.into()))
            }
            _ => Err(PathError::new("name the file type of", path, Errno::EOPNOTSUPP).into()),
        }
    }

    fn content(&mut self, path: &Path, handle: &OwnedFd, size: u64) -> Result<(), DiffError> {
        if size == 0 {
            return Ok(());
        }
        let mut file = reopen(handle).map_err(|e| PathError::new("open for reading", path, e))?;
        self.out
            .content(&mut file, size)
            .map_err(|error| match error {
                ContentError::Read(source) => PathError::new("read", path, source).into(),
                ContentError::Short => DiffError::Changed {
                    path: path.to_owned(),
                },
                ContentError::Write(source) => DiffError::Write(source),
            })
    }
}

/// The extended attributes of an entry that belong to the container, sorted by name.
fn attributes(handle: &OwnedFd, path: &Path) -> Result<Vec<(OsString, Vec<u8>)>, PathError> {
    let failed = |error| PathError::new("read extended attributes of", path, error);
    let file = proc_path(handle);
    let names = match xattr::list_deref(&file) {
        Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => return Ok(Vec::new()),
        names => names.map_err(failed)?,
    };
    let (mut found, mut size) = (Vec::new(), 0);
    for name in names.filter(|name| carried(name.as_bytes())) {
        if let Some(value) = xattr::get_deref(&file, &name).map_err(failed)? {
            size += (name.len() + value.len()) as u64;
            found.push((name, value));
        }
    }
    // What is written besides, and as escapes, takes less than the other half.
    if size > EXTENSION / 2 {
        return Err(failed(Errno::E2BIG.into()));
    }
    found.sort();
    Ok(found)
}
