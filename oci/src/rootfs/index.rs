//! Changes that show under names which the upper directory does not have.
//!
//! With the mount option `index=on` overlayfs keeps the names of a file together when it
//! copies it up: the copy is found through `index/` in the work directory, and a change made
//! under one name shows under all of them. The upper directory has at most the name that was
//! used, and not even that once it is deleted. Engines mount with `index=off`; this search
//! through the whole tree is for hosts where somebody decided otherwise.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::SFlag;

use super::PathError;
use super::anchor::{Anchor, kind};
use super::diff::{DiffError, Walk};
use super::lower::Found;
use super::pack::Opened;

/// Packs every such name, and the directories above it.
pub(super) fn other_names(walk: &mut Walk<'_>, work: &Path) -> Result<(), DiffError> {
    match Anchor::at(work)?.names(Path::new("index")) {
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(PathError::new("list the overlay's", "index", errno).into()),
        Ok(copies) if copies.is_empty() => return Ok(()),
        Ok(_) => {}
    }
    let mut pending = vec![(PathBuf::new(), walk.lower.root())];
    while let Some((dir, fresh)) = pending.pop() {
        let source = &walk.packer.source;
        let names = source
            .names(&dir)
            .map_err(|e| PathError::new("list directory", &dir, e))?;
        for name in names {
            let path = dir.join(&name);
            let Opened::Entry(_, stat) = walk.packer.open(&path)? else {
                continue;
            };
            match (walk.lower.child(&fresh, &name)?, upper(walk, &path)?) {
                // A directory that stands alone was packed in full.
                (Found::Directory(fresh), upper)
                    if kind(&stat) == SFlag::S_IFDIR
                        && (upper.is_none() || !walk.stands_alone(&path)?) =>
                {
                    pending.push((path, fresh));
                }
                // The copy is a younger inode than what was copied.
                (Found::Other(sec, nsec), None)
                    if (stat.st_ctime, stat.st_ctime_nsec) != (sec, nsec) =>
                {
                    for above in path.ancestors().skip(1) {
                        walk.packer.add(above)?;
                    }
                    walk.packer.add(&path)?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn upper(walk: &Walk<'_>, path: &Path) -> Result<Option<OwnedFd>, DiffError> {
    let found = walk.upper.find(path);
    Ok(found.map_err(|errno| PathError::new("look up in the upper directory", path, errno))?)
}
