//! What a fresh root made of the same layers holds: the merged view of the read-only layers
//! alone, without mounting it.
//!
//! Layers are looked up from the top, by overlayfs's own rules
//! (Documentation/filesystems/overlayfs.rst and fs/overlayfs/namei.c, Linux 6.8):
//!
//! - a whiteout (character device 0:0, or an empty file with `overlay.whiteout`) ends the
//!   search;
//! - so does anything that is not a directory; the topmost entry decides what is seen;
//! - directories are merged until one is opaque (`overlay.opaque` = `y`);
//! - `overlay.redirect` names where the layers below have the directory: a name beside it, or
//!   a path from the root.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{FileStat, SFlag, fstat};

use super::anchor::{Anchor, kind, proc_path};
use super::{Overlay, PathError};

/// Which attributes are overlayfs's marks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marks {
    pub(super) opaque: &'static str,
    pub(super) redirect: &'static str,
    pub(super) whiteout: &'static str,
}

impl Marks {
    pub(super) fn of(overlay: &Overlay) -> Self {
        if overlay.user_xattrs {
            return Self {
                opaque: "user.overlay.opaque",
                redirect: "user.overlay.redirect",
                whiteout: "user.overlay.whiteout",
            };
        }
        Self {
            opaque: "trusted.overlay.opaque",
            redirect: "trusted.overlay.redirect",
            whiteout: "trusted.overlay.whiteout",
        }
    }

    /// Whether a directory of a layer hides the directories below it.
    pub(super) fn opaque(self, handle: &OwnedFd, path: &Path) -> Result<bool, PathError> {
        Ok(mark(handle, path, self.opaque)?.as_deref() == Some(b"y"))
    }

    /// Where the layers below have a directory.
    pub(super) fn redirect(
        self,
        handle: &OwnedFd,
        path: &Path,
    ) -> Result<Option<Vec<u8>>, PathError> {
        mark(handle, path, self.redirect)
    }
}

fn mark(handle: &OwnedFd, path: &Path, name: &str) -> Result<Option<Vec<u8>>, PathError> {
    match xattr::get_deref(proc_path(handle), name) {
        Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => Ok(None),
        found => found.map_err(|error| PathError::new("read overlay marks of", path, error)),
    }
}

/// The read-only layers.
pub(super) struct Lower {
    layers: Vec<Anchor>,
    marks: Marks,
}

/// A directory of the merged view: the directories it consists of, topmost first.
#[derive(Debug, Clone)]
pub(super) struct LowerDir(Vec<Part>);

#[derive(Debug, Clone)]
struct Part {
    layer: usize,
    path: PathBuf,
}

/// What a name stands for in the merged view.
#[derive(Debug)]
pub(super) enum Found {
    Nothing,
    Directory(LowerDir),
    /// Anything else, and when its inode was last changed (ctime, seconds and nanoseconds).
    Other(i64, i64),
}

impl Lower {
    pub(super) fn open(overlay: &Overlay) -> Result<Self, PathError> {
        let layers = overlay
            .lower
            .iter()
            .map(|layer| Anchor::at(layer))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            layers,
            marks: Marks::of(overlay),
        })
    }

    pub(super) fn root(&self) -> LowerDir {
        self.roots_below(0)
    }

    fn roots_below(&self, first: usize) -> LowerDir {
        let part = |layer| Part {
            layer,
            path: PathBuf::new(),
        };
        LowerDir((first..self.layers.len()).map(part).collect())
    }

    /// Looks a name up in a directory.
    pub(super) fn child(&self, dir: &LowerDir, name: &OsStr) -> Result<Found, PathError> {
        let mut name = name.to_owned();
        let mut merged = Vec::new();
        for part in &dir.0 {
            let path = part.path.join(&name);
            let Some((handle, stat)) = self.entry(part.layer, &path)? else {
                continue;
            };
            if self.whiteout(&handle, &stat, &path)? {
                break;
            }
            if kind(&stat) != SFlag::S_IFDIR {
                if merged.is_empty() {
                    return Ok(Found::Other(stat.st_ctime, stat.st_ctime_nsec));
                }
                break;
            }
            let opaque = self.marks.opaque(&handle, &path)?;
            let redirect = self.marks.redirect(&handle, &path)?;
            merged.push(Part {
                layer: part.layer,
                path,
            });
            if opaque {
                break;
            }
            match redirect {
                Some(target) if target.starts_with(b"/") => {
                    let below = self.roots_below(part.layer + 1);
                    let target = super::anchor::normal(Path::new(OsStr::from_bytes(&target[1..])));
                    if let Found::Directory(rest) = self.descend(below, &target)? {
                        merged.extend(rest.0);
                    }
                    break;
                }
                Some(target) => name = OsString::from_vec(target),
                None => {}
            }
        }
        Ok(if merged.is_empty() {
            Found::Nothing
        } else {
            Found::Directory(LowerDir(merged))
        })
    }

    fn descend(&self, mut dir: LowerDir, path: &Path) -> Result<Found, PathError> {
        for name in path {
            match self.child(&dir, name)? {
                Found::Directory(next) => dir = next,
                other => return Ok(other),
            }
        }
        Ok(Found::Directory(dir))
    }

    /// Names in a directory, without those that are deleted, in order.
    pub(super) fn names(&self, dir: &LowerDir) -> Result<Vec<OsString>, PathError> {
        let mut names = BTreeSet::new();
        for part in &dir.0 {
            let listed = self.layers[part.layer].names(&part.path);
            names
                .extend(listed.map_err(|e| PathError::new("list layer directory", &part.path, e))?);
        }
        let mut seen = Vec::new();
        for name in names {
            if !matches!(self.child(dir, &name)?, Found::Nothing) {
                seen.push(name);
            }
        }
        Ok(seen)
    }

    fn entry(&self, layer: usize, path: &Path) -> Result<Option<(OwnedFd, FileStat)>, PathError> {
        let failed = |errno| PathError::new("look up in a layer", path, errno);
        let Some(handle) = self.layers[layer].find(path).map_err(failed)? else {
            return Ok(None);
        };
        let stat = fstat(&handle).map_err(failed)?;
        Ok(Some((handle, stat)))
    }

    fn whiteout(&self, handle: &OwnedFd, stat: &FileStat, path: &Path) -> Result<bool, PathError> {
        Ok(match kind(stat) {
            SFlag::S_IFCHR => stat.st_rdev == 0,
            SFlag::S_IFREG if stat.st_size == 0 => {
                mark(handle, path, self.marks.whiteout)?.is_some()
            }
            _ => false,
        })
    }
}
