//! Putting changes back onto a fresh root.
//!
//! Content and owner of an entry are set when it is made. What later entries would disturb
//! waits for the end: the times of directories, and their modes and attributes, since a
//! default ACL would be inherited by what is made in them.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, makedev, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, linkat, mkfifoat, symlinkat};

use super::anchor::{Anchor, Place, kind};
use super::bounds::{Devices, Excess, Limits};
use super::decode::{Members, TarError};
use super::member::{Kind, Member, Meta, inside};
use super::{Note, PathError, carried};

/// Size of the pieces in which runs of zeros become holes, in bytes.
const PIECE: usize = 4096;

/// What was applied.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// Entries made or updated.
    pub files: u64,
    /// Bytes of file content, holes included.
    pub bytes: u64,
    /// Entries deleted; a directory with all that was in it counts once.
    pub deleted: u64,
    /// What could not be kept.
    pub notes: Vec<Note>,
}

/// Why changes could not be applied. The root is then in an undefined state.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The tar was refused.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The root refused an entry.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A device node, and devices are not allowed.
    #[error(
        "{} is a device node ({major}:{minor}): refused, as this container may not make devices",
        path.display()
    )]
    Device {
        /// Its path.
        path: PathBuf,
        /// Major number.
        major: u64,
        /// Minor number.
        minor: u64,
    },
    /// A deletion that is not below the root.
    #[error("deletion of {path:?} {why}: refused, since it must stay below the root")]
    Deletion {
        /// The path as it was given.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// Applies a tar, then `deleted`, to the directory `rootfs`.
///
/// `deleted` holds paths as [`Diff::deleted`](super::Diff::deleted) does; a leading slash may
/// be missing. Entries replace what they find, except that a directory keeps what is in it.
/// Nothing outside `rootfs` is reached, whatever the tar or the root hold. `tar` is read up to
/// its end mark, and no further.
///
/// # Errors
/// [`ApplyError`].
pub fn apply(
    rootfs: &Path,
    tar: impl Read,
    deleted: &[String],
    limits: &Limits,
) -> Result<Applied, ApplyError> {
    let mut members = Members::new(tar, limits);
    let mut deletions = Vec::with_capacity(deleted.len());
    for path in deleted {
        let refused = |why| ApplyError::Deletion {
            path: path.clone(),
            why,
        };
        let below = inside(path.trim_start_matches('/').as_bytes()).map_err(refused)?;
        if below.as_os_str().is_empty() {
            return Err(refused("is the root itself"));
        }
        members.bounds.deletion(&below).map_err(TarError::Excess)?;
        deletions.push(below);
    }
    let mut target = Target {
        root: Anchor::at(rootfs)?,
        limits: *limits,
        room: limits.entries,
        applied: Applied::default(),
        buffer: vec![0; 1 << 20],
    };
    let mut directories = Vec::new();
    while let Some(member) = members.next()? {
        target.applied.files += 1;
        if member.kind == Kind::Directory {
            target.directory(&member.path)?;
            let counted = members.bounds.directory(&member);
            counted.map_err(TarError::Excess)?;
            directories.push(member);
        } else {
            target.make(&member, &mut members)?;
        }
    }
    deletions.append(&mut members.deleted);
    for path in &deletions {
        target.delete(path)?;
    }
    for member in &directories {
        target.settle(member)?;
    }
    Ok(target.applied)
}

struct Target {
    root: Anchor,
    limits: Limits,
    /// How many directories above members may still be made.
    room: u64,
    applied: Applied,
    buffer: Vec<u8>,
}

impl Target {
    /// Where an entry goes. Directories above it that are missing are made.
    fn place_new(&mut self, path: &Path, action: &'static str) -> Result<Place, ApplyError> {
        match self.root.place_new(path, &mut self.room) {
            Err(Errno::EDQUOT) if self.room == 0 => {
                Err(TarError::Excess(Excess::Entries(self.limits.entries)).into())
            }
            found => Ok(found.map_err(|errno| PathError::new(action, path, errno))?),
        }
    }

    /// Makes sure that a directory is there. Its metadata waits.
    fn directory(&mut self, path: &Path) -> Result<(), ApplyError> {
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let failed = |errno| PathError::new("make directory", path, errno);
        let place = self.place_new(path, "make directory")?;
        match place.stat().map_err(failed)? {
            Some(stat) if kind(&stat) == SFlag::S_IFDIR => return Ok(()),
            Some(_) => drop(place.remove().map_err(failed)?),
            None => {}
        }
        mkdirat(&place.dir, place.name.as_os_str(), Mode::S_IRWXU).map_err(failed)?;
        Ok(())
    }

    /// Makes any other entry.
    fn make(
        &mut self,
        member: &Member,
        content: &mut Members<impl Read>,
    ) -> Result<(), ApplyError> {
        let path = &member.path;
        if let Kind::Char(major, minor) | Kind::Block(major, minor) = member.kind {
            // 0:0 is overlayfs's whiteout, which a container can't make either.
            if self.limits.devices == Devices::Refuse || (major, minor) == (0, 0) {
                return Err(ApplyError::Device {
                    path: path.clone(),
                    major,
                    minor,
                });
            }
        }
        let failed = |action| move |errno: Errno| PathError::new(action, path, errno);
        let place = self.place_new(path, "make")?;
        let name = place.name.as_os_str();
        // The other name is looked up before this one makes way: they may be the same.
        let other = match &member.kind {
            Kind::Link(target) => Some(self.root.place(target).map_err(failed("link"))?),
            _ => None,
        };
        if let Some(other) = &other
            && let (Some(there), Some(here)) = (
                other.stat().map_err(failed("link"))?,
                place.stat().map_err(failed("link"))?,
            )
            && (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
        {
            return Ok(());
        }
        place.remove().map_err(failed("replace"))?;
        let private = Mode::S_IRUSR | Mode::S_IWUSR;
        let node = |kind, major, minor| {
            let device = makedev(major, minor);
            mknodat(&place.dir, name, kind, private, device).map_err(failed("make device"))
        };
        match &member.kind {
            Kind::File(_) => self.file(&place, path, content)?,
            Kind::Symlink(text) => {
                symlinkat(text, &place.dir, name).map_err(failed("make symbolic link"))?;
            }
            Kind::Link(_) => {
                let other = other.expect("looked up above");
                let none = AtFlags::empty();
                linkat(&other.dir, other.name.as_os_str(), &place.dir, name, none)
                    .map_err(failed("link"))?;
                return Ok(());
            }
            Kind::Fifo => mkfifoat(&place.dir, name, private).map_err(failed("make fifo"))?,
            Kind::Char(major, minor) => node(SFlag::S_IFCHR, *major, *minor)?,
            Kind::Block(major, minor) => node(SFlag::S_IFBLK, *major, *minor)?,
            Kind::Directory => unreachable!("directories are made by `directory`"),
        }
        let symlink = matches!(member.kind, Kind::Symlink(_));
        self.dress(&place, path, &member.meta, symlink)
    }

    /// Makes a file and fills it; runs of zeros become holes.
    fn file(
        &mut self,
        place: &Place,
        path: &Path,
        content: &mut Members<impl Read>,
    ) -> Result<(), ApplyError> {
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let file = openat(&place.dir, place.name.as_os_str(), flags, mode)
            .map_err(|errno| PathError::new("make file", path, errno))?;
        let file = File::from(file);
        let failed = |error| PathError::new("write", path, error);
        let mut size = 0;
        loop {
            let got = content.read(&mut self.buffer)?;
            if got == 0 {
                break;
            }
            write_data(&file, &self.buffer[..got], size).map_err(failed)?;
            size += got as u64;
        }
        file.set_len(size).map_err(failed)?;
        self.applied.bytes += size;
        Ok(())
    }

    fn delete(&mut self, path: &Path) -> Result<(), ApplyError> {
        let removed = match self.root.place(path) {
            Ok(place) => place.remove(),
            Err(errno) => Err(errno),
        };
        match removed {
            Ok(removed) => self.applied.deleted += u64::from(removed),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
            Err(errno) => return Err(PathError::new("delete", path, errno).into()),
        }
        Ok(())
    }

    /// Gives a directory its metadata, if it is still there.
    fn settle(&mut self, member: &Member) -> Result<(), ApplyError> {
        let path = &member.path;
        let place = if path.as_os_str().is_empty() {
            self.root.itself()
        } else {
            self.root.place(path)
        };
        let failed = |errno| PathError::new("look up directory", path, errno);
        let place = match place {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            place => place.map_err(failed)?,
        };
        match place.stat().map_err(failed)? {
            Some(stat) if kind(&stat) == SFlag::S_IFDIR => {
                self.dress(&place, path, &member.meta, false)
            }
            _ => Ok(()),
        }
    }

    /// Owner, attributes, mode and time, in the order in which none undoes another: a new owner
    /// clears setuid and capabilities, an ACL changes the mode.
    fn dress(
        &mut self,
        place: &Place,
        path: &Path,
        meta: &Meta,
        symlink: bool,
    ) -> Result<(), ApplyError> {
        let failed = |action| move |errno: Errno| PathError::new(action, path, errno);
        let name = place.name.as_os_str();
        let (uid, gid) = (Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)));
        fchownat(&place.dir, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(failed("set the owner of"))?;
        self.attributes(place, path, meta)?;
        if !symlink {
            let mode = Mode::from_bits_truncate(meta.mode);
            fchmodat(&place.dir, name, mode, FchmodatFlags::NoFollowSymlink)
                .map_err(failed("set the mode of"))?;
        }
        let mtime = TimeSpec::new(meta.mtime.sec, meta.mtime.nsec.into());
        let nofollow = UtimensatFlags::NoFollowSymlink;
        utimensat(&place.dir, name, &TimeSpec::UTIME_OMIT, &mtime, nofollow)
            .map_err(failed("set the time of"))?;
        Ok(())
    }

    /// Makes the attributes those of the tar, as far as they are the container's.
    fn attributes(&mut self, place: &Place, path: &Path, meta: &Meta) -> Result<(), ApplyError> {
        let file = place.proc_path();
        let failed = |action| move |error: io::Error| PathError::new(action, path, error);
        let present = match xattr::list(&file) {
            Ok(names) => names.collect(),
            Err(error) if unsupported(&error) => Vec::new(),
            Err(error) => return Err(failed("list extended attributes of")(error).into()),
        };
        for name in present.iter().filter(|name| carried(name.as_bytes())) {
            if !meta.xattrs.iter().any(|(kept, _)| kept == name) {
                xattr::remove(&file, name).map_err(failed("remove an extended attribute of"))?;
            }
        }
        let shown = |name: &OsStr| name.to_string_lossy().into_owned();
        for (name, value) in &meta.xattrs {
            if !carried(name.as_bytes()) {
                let note = Note::XattrRefused(path.to_owned(), shown(name));
                self.applied.notes.push(note);
                continue;
            }
            match xattr::set(&file, name, value) {
                Err(error) if unsupported(&error) => {
                    let note = Note::XattrUnsupported(path.to_owned(), shown(name));
                    self.applied.notes.push(note);
                }
                set => set.map_err(failed("set an extended attribute of"))?,
            }
        }
        Ok(())
    }
}

fn unsupported(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::EOPNOTSUPP)
}

/// Writes what is not zero. `at` is the offset of `data` in the file.
fn write_data(file: &File, data: &[u8], at: u64) -> io::Result<()> {
    let zero = |piece: &[u8]| piece == &[0; PIECE][..piece.len()];
    let mut start = 0;
    while start < data.len() {
        let holes = data[start..].chunks(PIECE).take_while(|piece| zero(piece));
        start += holes.map(<[u8]>::len).sum::<usize>();
        let filled = data[start..].chunks(PIECE).take_while(|piece| !zero(piece));
        let end = start + filled.map(<[u8]>::len).sum::<usize>();
        file.write_all_at(&data[start..end], at + start as u64)?;
        start = end;
    }
    Ok(())
}
