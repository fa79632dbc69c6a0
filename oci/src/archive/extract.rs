//! Writes chosen entries as plain files while the whole archive is verified.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, unlinkat};
use rustix::io::Errno;

use super::error::ReadError;
use super::frame::{self, Piece};
use super::pass::Pass;
use super::reader::Archive;
use crate::manifest::Entry;

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

impl Archive {
    /// Verifies the whole archive and, in the same pass, writes every entry for which `target`
    /// gives a path to `directory`, an existing directory. Paths are relative to it; directories
    /// on the way are created with mode 0700, files with 0600. No link is followed and no
    /// file is overwritten. Pages of zeros become holes. Uses `threads` threads, 0 for one per
    /// processor. Returns the bytes of content that the files hold.
    ///
    /// # Errors
    /// The first thing in the archive that is not as it was written, also in entries that are
    /// not extracted; a path that is not plain and relative; what the file system says;
    /// [`ReadError::Cancelled`] soon after `cancelled` became true. On every error the files and
    /// directories that were created are removed.
    pub fn extract(
        &self,
        target: &dyn Fn(&Entry) -> Option<PathBuf>,
        directory: &Path,
        threads: usize,
        cancelled: &AtomicBool,
    ) -> Result<u64, ReadError> {
        let mut targets = Targets::new(directory)?;
        let result = targets
            .prepare(&self.manifest.entries, target)
            .and_then(|bytes| {
                Pass::new(self, Some(&targets), threads, cancelled).run(&mut |_| {})?;
                Ok(bytes)
            });
        if result.is_err() {
            targets.remove();
        }
        result
    }
}

/// Where entries go.
#[derive(Debug)]
pub(super) struct Targets {
    directory: OwnedFd,
    /// One per entry.
    files: Vec<Option<Target>>,
    /// Directories that were created, parents first.
    directories: Vec<PathBuf>,
}

#[derive(Debug)]
struct Target {
    path: PathBuf,
    size: u64,
    /// Bytes not yet written.
    left: AtomicU64,
    /// Open between the first and the last write.
    file: Mutex<Option<Arc<File>>>,
    created: AtomicBool,
}

impl Targets {
    fn new(directory: &Path) -> Result<Self, ReadError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd =
            openat(CWD, directory, flags, Mode::empty()).map_err(|errno| ReadError::Extract {
                path: directory.to_owned(),
                source: errno.into(),
            })?;
        Ok(Self {
            directory: fd,
            files: Vec::new(),
            directories: Vec::new(),
        })
    }

    /// Asks for every target, creates directories and empty files; returns the bytes to come.
    fn prepare(
        &mut self,
        entries: &[Entry],
        target: &dyn Fn(&Entry) -> Option<PathBuf>,
    ) -> Result<u64, ReadError> {
        let mut bytes = 0;
        for entry in entries {
            let Some(path) = target(entry) else {
                self.files.push(None);
                continue;
            };
            let plain = path
                .components()
                .all(|component| matches!(component, Component::Normal(_)));
            if !plain || path.as_os_str().is_empty() {
                return Err(ReadError::Target {
                    name: entry.name.clone(),
                    path,
                });
            }
            if entry.name.ends_with('/') {
                self.create_directory(&path)?;
                self.files.push(None);
                continue;
            }
            if let Some(parent) = path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty())
            {
                self.create_directory(parent)?;
            }
            let target = Target {
                path,
                size: entry.size,
                left: AtomicU64::new(entry.size),
                file: Mutex::new(None),
                created: AtomicBool::new(false),
            };
            if entry.size == 0 {
                target.open(&self.directory)?;
            }
            bytes += entry.size;
            self.files.push(Some(target));
        }
        Ok(bytes)
    }

    fn create_directory(&mut self, path: &Path) -> Result<(), ReadError> {
        let mut prefix = PathBuf::new();
        for component in path.components() {
            let result = parent_of(&self.directory, &prefix)
                .and_then(|parent| mkdirat(&parent, component.as_os_str(), Mode::RWXU));
            prefix.push(component);
            match result {
                Ok(()) => self.directories.push(prefix.clone()),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed(&prefix, errno.into())),
            }
        }
        Ok(())
    }

    /// Writes content of entry `index` from byte `from` on.
    pub(super) fn write(&self, index: usize, from: u64, bytes: &[u8]) -> Result<(), ReadError> {
        let Some(Some(target)) = self.files.get(index) else {
            return Ok(());
        };
        let file = target.open(&self.directory)?;
        for piece in frame::pieces(bytes) {
            if let Piece::Raw(range) = piece {
                let at = from + range.start as u64;
                file.write_all_at(&bytes[range], at)
                    .map_err(|source| failed(&target.path, source))?;
            }
        }
        let size = bytes.len() as u64;
        if target.left.fetch_sub(size, Ordering::AcqRel) == size {
            *target.file.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        Ok(())
    }

    /// Removes what was created.
    fn remove(&self) {
        let created = self.files.iter().flatten();
        for target in created.filter(|target| target.created.load(Ordering::Acquire)) {
            self.unlink(&target.path, AtFlags::empty());
        }
        for path in self.directories.iter().rev() {
            self.unlink(path, AtFlags::REMOVEDIR);
        }
    }

    fn unlink(&self, path: &Path, flags: AtFlags) {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return;
        };
        let removed =
            parent_of(&self.directory, parent).and_then(|parent| unlinkat(&parent, name, flags));
        if let Err(error) = removed {
            tracing::warn!(path = %path.display(), %error, "cannot remove what was extracted");
        }
    }
}

impl Target {
    /// The file, created by the first call.
    fn open(&self, directory: &OwnedFd) -> Result<Arc<File>, ReadError> {
        let mut slot = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*slot {
            return Ok(Arc::clone(file));
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat2(
            directory.as_fd(),
            &self.path,
            flags,
            Mode::RUSR | Mode::WUSR,
            BENEATH,
        )
        .map_err(|errno| failed(&self.path, errno.into()))?;
        self.created.store(true, Ordering::Release);
        let file = Arc::new(File::from(fd));
        file.set_len(self.size)
            .map_err(|source| failed(&self.path, source))?;
        if self.size > 0 {
            *slot = Some(Arc::clone(&file));
        }
        Ok(file)
    }
}

/// The directory at `path` below `directory`, which an empty path is itself.
fn parent_of(directory: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(directory.as_fd(), path, flags, Mode::empty(), BENEATH)
}

fn failed(path: &Path, source: io::Error) -> ReadError {
    ReadError::Extract {
        path: path.to_owned(),
        source,
    }
}
