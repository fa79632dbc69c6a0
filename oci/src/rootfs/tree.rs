//! A whole directory as a tar: `devshm-checkpoint.tar`, which holds a pod's /dev/shm.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::anchor::Anchor;
use super::apply::{Applied, ApplyError};
use super::bounds::Limits;
use super::diff::{Diff, DiffError};
use super::pack::{Added, Packer};
use super::{PathError, apply};

/// Writes everything below `dir`, and the directory's own metadata, as a tar to `out`, by the
/// rules of [`rootfs::diff`](super::diff()). Nothing is listed as deleted.
///
/// # Errors
/// [`DiffError`].
pub fn pack(dir: &Path, out: &mut dyn Write) -> Result<Diff, DiffError> {
    let mut packer = Packer::new(Anchor::at(dir)?, out);
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        match packer.add(&path)? {
            Added::Missing => return Err(DiffError::Changed { path }),
            Added::Skipped | Added::MountPoint | Added::Leaf => {}
            Added::Directory => {
                let names = packer.source.names(&path);
                let names = names.map_err(|e| PathError::new("list directory", &path, e))?;
                pending.extend(names.into_iter().rev().map(|name| path.join(name)));
            }
        }
    }
    packer.finish()
}

/// Puts such a tar into `dir`, by the rules of [`rootfs::apply`](super::apply()). What is there
/// already stays, except where the tar has an entry of the same name.
///
/// # Errors
/// [`ApplyError`].
pub fn unpack(dir: &Path, tar: impl Read, limits: &Limits) -> Result<Applied, ApplyError> {
    apply(dir, tar, &[], limits)
}
