//! `repair`: brings back what dead shims have left. `kybernate doctor --repair` runs it.
//!
//! Prints a line for each operation that it has undone, and fails when one could not be.

use std::io::{self, Write};

use kybernate_config::{Settings, settings::SettingsError};

use crate::journal;

/// Why the repair is not complete.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// Where the records are.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// stdout.
    #[error("cannot print: {0}")]
    Output(#[from] io::Error),
    /// Something could not be undone.
    #[error("{0}")]
    Left(String),
}

/// Runs the action.
pub fn run() -> Result<(), RepairError> {
    let settings = Settings::load()?;
    let mut left = Vec::new();
    for undone in journal::repair(&settings.checkpoint.journal_dir) {
        match undone {
            Ok(what) => writeln!(io::stdout(), "{what}")?,
            Err(what) => left.push(what),
        }
    }
    if left.is_empty() {
        Ok(())
    } else {
        Err(RepairError::Left(left.join("\n")))
    }
}

/// Does the same in the background of a shim that starts, and logs it.
pub fn quietly() {
    let Ok(settings) = Settings::load() else {
        return; // Whoever needs them complains.
    };
    for undone in journal::repair(&settings.checkpoint.journal_dir) {
        match undone {
            Ok(what) => tracing::warn!(what, "undone"),
            Err(left) => tracing::error!(left, "cannot undo"),
        }
    }
}
