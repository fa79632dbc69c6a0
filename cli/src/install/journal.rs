//! What `journal.json` says while a change is under way, and why one was not made.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    file::Facts,
    receipt::{Kind, Receipt},
};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// How far a change has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Contents go beside their files.
    Staging,
    /// Files are replaced.
    Swapping,
    /// Services restart.
    Activating,
    /// The new state is the one to keep.
    Committed,
}

/// A change that is being made.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Journal {
    /// How far it has come.
    pub phase: Phase,
    /// The boot in which it was begun.
    pub boot_id: String,
    /// Every file.
    pub changes: Vec<Step>,
    /// Directories that are made, the outermost first.
    pub directories: Vec<PathBuf>,
    /// What will be installed; nothing after an uninstallation.
    pub receipt: Option<Receipt>,
}

/// One file of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Where, in the node's root.
    pub path: PathBuf,
    /// What for.
    pub kind: Kind,
    /// What it was.
    pub before: Option<Facts>,
    /// What it is to be.
    pub after: Option<Facts>,
}

/// Why a change was not made, or not recorded.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Somebody else is at it.
    #[error("another installation is under way: {0} is locked")]
    Busy(PathBuf),
    /// Something could not be written.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It could not be made, and all of it was undone.
    #[error("{why}; nothing has been changed")]
    Undone {
        /// What happened.
        why: String,
    },
    /// It was made, and is not recorded yet.
    #[error(
        "Kybernate is {done}, and that could not be recorded: {why}; run the same again to do so"
    )]
    Unrecorded {
        /// What was made.
        done: &'static str,
        /// What happened.
        why: String,
    },
    /// Services did not come back.
    #[error("{why}; everything was put back as it was")]
    Activation {
        /// What happened.
        why: String,
    },
    /// The undoing failed too.
    #[error(
        "{why}; and putting things back failed: {rollback}. Run `kybernate install` again to \
         finish; the old contents are in {state}/backup"
    )]
    Stuck {
        /// What happened.
        why: String,
        /// What happened then.
        rollback: String,
        /// The state directory.
        state: PathBuf,
    },
}

/// What tells this boot from others.
pub fn boot_id() -> String {
    fs::read_to_string(BOOT_ID)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// An error about a file.
pub fn io_error<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> ApplyError + 'a {
    move |source| ApplyError::Io {
        what,
        path: path.into(),
        source,
    }
}
