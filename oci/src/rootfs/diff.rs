//! Finding what changed, and packing it.
//!
//! The upper directory says which paths may have changed; everything else comes through the
//! merged mount, where the kernel has already dealt with metacopy, redirects and layers of
//! layers. Two ways of walking:
//!
//! - **merge**: a directory that is merged with lower ones. Only names in the upper directory
//!   are looked at; one that the merged mount does not show is a whiteout.
//! - **full**: a directory that hides (`overlay.opaque`) or moved (`overlay.redirect`) what a
//!   fresh root has there. Its whole subtree is packed, and what a fresh root would show
//!   besides is listed as deleted.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::anchor::Anchor;
use super::bounds::Excess;
use super::lower::{Found, Lower, LowerDir, Marks};
use super::pack::{Added, Packer};
use super::{Note, Overlay, PathError, index};

/// What a diff came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Diff {
    /// Paths that a fresh root has and the container removed, in the form of `deleted.files`:
    /// absolute as the container sees them. A directory stands for everything below it.
    pub deleted: Vec<String>,
    /// Entries in the tar, directories among them.
    pub files: u64,
    /// Bytes of file content in the tar, holes included.
    pub bytes: u64,
    /// What was left out.
    pub notes: Vec<Note>,
}

/// Why a diff could not be taken. What was written to the output so far is of no use.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// A layer or the merged mount could not be read.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The output failed.
    #[error("cannot write the tar: {0}")]
    Write(#[source] io::Error),
    /// Something else changed the tree meanwhile.
    #[error("{} changed while it was read: freeze whatever writes to it", path.display())]
    Changed {
        /// The entry, relative to the root.
        path: PathBuf,
    },
    /// More than a restore takes.
    #[error("the container has changed {0}, which no restore takes: keep its data in a volume")]
    Excess(#[from] Excess),
    /// A path that no restore could name.
    #[error("{} is longer than 4095 bytes: no restore could make it again", path.display())]
    TooDeep {
        /// The entry, relative to the root.
        path: PathBuf,
    },
}

/// Writes what changed in `overlay`, mounted at `merged`, as a tar to `out`.
///
/// The container must be frozen. Needs root, for overlayfs's marks and other users' files.
/// The tar always holds the root directory itself. Owners are numbers as the caller sees them
/// at `merged`: with a user namespace, those of the host.
///
/// # Errors
/// [`DiffError`].
pub fn diff(overlay: &Overlay, merged: &Path, out: &mut dyn Write) -> Result<Diff, DiffError> {
    let mut walk = Walk {
        upper: Anchor::at(&overlay.upper)?,
        lower: Lower::open(overlay)?,
        marks: Marks::of(overlay),
        packer: Packer::new(Anchor::at(merged)?, out),
        deleted: Vec::new(),
    };
    walk.run()?;
    index::other_names(&mut walk, &overlay.work)?;
    let mut deleted = Vec::new();
    let mut unlisted = false;
    for path in walk.deleted {
        walk.packer.bounds.deletion(&path)?;
        if let Some(path) = path.to_str() {
            deleted.push(format!("/{path}"));
        } else {
            walk.packer.out.deletion(&path).map_err(DiffError::Write)?;
            unlisted = true;
        }
    }
    if unlisted {
        // Some readers take a header with no member after it for a cut off tar.
        walk.packer.add(Path::new(""))?;
    }
    let packed = walk.packer.finish()?;
    Ok(Diff {
        deleted,
        files: packed.files,
        bytes: packed.bytes,
        notes: packed.notes,
    })
}

pub(super) struct Walk<'a> {
    pub(super) upper: Anchor,
    pub(super) lower: Lower,
    marks: Marks,
    pub(super) packer: Packer<'a>,
    deleted: Vec<PathBuf>,
}

/// A path still to be looked at.
struct Pending {
    path: PathBuf,
    /// What a fresh root has at this path.
    fresh: Found,
    /// Whether an ancestor is walked in full.
    full: bool,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<(), DiffError> {
        let fresh = Found::Directory(self.lower.root());
        let mut pending = vec![Pending {
            path: PathBuf::new(),
            fresh,
            full: false,
        }];
        while let Some(Pending { path, fresh, full }) = pending.pop() {
            match self.packer.add(&path)? {
                Added::Missing if full => return Err(DiffError::Changed { path }),
                Added::Missing | Added::Skipped => {
                    if !matches!(fresh, Found::Nothing) {
                        self.deleted.push(path);
                    }
                }
                Added::Leaf | Added::MountPoint => {}
                Added::Directory => {
                    let fresh = if let Found::Directory(dir) = fresh {
                        Some(dir)
                    } else {
                        None
                    };
                    let full = full || self.stands_alone(&path)?;
                    // Last in, first out: the order in the tar is that of the names.
                    let below = self.below(&path, fresh.as_ref(), full)?;
                    pending.extend(below.into_iter().rev());
                }
            }
        }
        Ok(())
    }

    /// Whether a directory shows less than, or other than, the merge of the layers' directories
    /// of the same path.
    pub(super) fn stands_alone(&self, path: &Path) -> Result<bool, DiffError> {
        let handle = self.upper.node(path);
        let handle = handle.map_err(|e| PathError::new("open in the upper directory", path, e))?;
        Ok(self.marks.opaque(&handle, path)? || self.marks.redirect(&handle, path)?.is_some())
    }

    fn below(
        &mut self,
        path: &Path,
        fresh: Option<&LowerDir>,
        full: bool,
    ) -> Result<Vec<Pending>, DiffError> {
        let from = if full {
            &self.packer.source
        } else {
            &self.upper
        };
        let names = from
            .names(path)
            .map_err(|e| PathError::new("list changed directory", path, e))?;
        if let (true, Some(fresh)) = (full, fresh) {
            for name in self.lower.names(fresh)? {
                if names.binary_search(&name).is_err() {
                    self.deleted.push(path.join(name));
                }
            }
        }
        let pending = |name: OsString| {
            let fresh = match fresh {
                Some(dir) => self.lower.child(dir, &name)?,
                None => Found::Nothing,
            };
            Ok(Pending {
                path: path.join(name),
                fresh,
                full,
            })
        };
        names.into_iter().map(pending).collect()
    }
}
