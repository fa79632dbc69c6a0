//! What a container changed in its file system: taken from overlayfs while the container is
//! frozen, put back onto a fresh root at restore.
//!
//! ```text
//!   upperdir ──── which paths ───┐
//!   lowerdirs ─── what a fresh ──┤   diff    ┌─ rootfs-diff.tar   new and changed entries
//!                 root holds     ├──────────►┤
//!   merged mount ─ content and ──┘           └─ deleted.files     JSON array of "/path"
//!                  metadata
//!
//!   fresh root ◄── apply: 1 the tar's entries, 2 the deletions, 3 directories' metadata
//! ```
//!
//! The order of `apply` is podman's and CRI-O's (containers/podman v5
//! `pkg/checkpoint/crutils`: untar, then remove what `deleted.files` names), so the tar holds
//! no whiteouts and the list never names anything that the tar holds.
//!
//! The tar is POSIX pax: ustar headers, `x` records only where a value does not fit
//! (`path`, `linkpath`, `size`, `uid`, `gid`, `mtime`) and for extended attributes
//! (`SCHILY.xattr.NAME`). Holes are written as zeros and made again when the tar is applied.
//! A deleted name that is not UTF-8 cannot stand in JSON; it travels in a pax global header
//! (`KYBERNATE.deleted`), which other readers skip.

mod anchor;
mod apply;
mod bounds;
mod decode;
mod diff;
mod encode;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod index;
mod lower;
mod member;
mod overlay;
mod pack;
mod pax;
pub mod tree;

use std::fmt;
use std::io;
use std::path::PathBuf;

pub use apply::{Applied, ApplyError, apply};
pub use bounds::{Devices, Excess, LIST_LIMIT, Limits};
pub use decode::TarError;
pub use diff::{Diff, DiffError, diff};
pub use overlay::{MountError, Overlay};

/// Longest path below a root, in bytes: the kernel's own limit for one path.
pub const PATH_LIMIT: usize = 4095;

/// Something left out or not kept, which whoever reads the result should know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Note {
    /// A unix socket: tar has no form for it, and CRIU makes bound sockets again.
    Socket(PathBuf),
    /// Another file system is mounted there; what lies below it belongs to that mount.
    MountPoint(PathBuf),
    /// An extended attribute that the file system there cannot hold.
    XattrUnsupported(PathBuf, String),
    /// An extended attribute that a tar must not set here.
    XattrRefused(PathBuf, String),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "{}: unix socket left out", path.display()),
            Self::MountPoint(path) => {
                write!(
                    f,
                    "{}: mount point, what it hides is left out",
                    path.display()
                )
            }
            Self::XattrUnsupported(path, name) => write!(
                f,
                "{}: extended attribute {name} not set, the file system has no room for its kind",
                path.display()
            ),
            Self::XattrRefused(path, name) => write!(
                f,
                "{}: extended attribute {name} not set, it belongs to the host",
                path.display()
            ),
        }
    }
}

/// Whether an extended attribute belongs to the container's data rather than to overlayfs or
/// to the host's security policy (SELinux labels, IMA, EVM).
fn carried(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || name == b"security.capability"
        || name == b"system.posix_acl_access"
        || name == b"system.posix_acl_default"
        || (name.starts_with(b"trusted.") && !name.starts_with(b"trusted.overlay."))
}

/// A failed call on a path below a root.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct PathError {
    /// What was tried.
    pub action: &'static str,
    /// On which path, relative to the root.
    pub path: PathBuf,
    /// What the kernel said.
    pub source: io::Error,
}

impl PathError {
    fn new(action: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self {
            action,
            path: path.into(),
            source: source.into(),
        }
    }
}
