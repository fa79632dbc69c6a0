//! The guardian of an operation: this program once more, which waits for the lock of the record.
//!
//! It gets the lock when the shim has ended, in whatever way. A record that was removed by then is
//! an operation that ended well. Any other is undone at once: nobody else may come for long, since
//! containerd may be away too.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
};

use super::{By, read};
use crate::{log, reaper::Reaper};

/// Argument with which this program is a guardian; the record follows.
pub const GUARD: &str = "guard";
/// Its name in the list of processes.
const NAME: &str = "kybernate-guardian";

/// Starts a guardian for a record.
pub fn start(record: &Path, reaper: &Reaper) -> io::Result<()> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(NAME)
        .arg(GUARD)
        .arg(record)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A signal to the shim's group is not for it.
        .process_group(0);
    for name in crate::daemon::PRIVATE_ENVIRONMENT {
        command.env_remove(name);
    }
    let (_, claim) = reaper.spawn(&mut command)?;
    tokio::spawn(claim.exit());
    Ok(())
}

/// Runs as [`GUARD`].
pub fn run(arguments: impl Iterator<Item = OsString>) -> io::Result<()> {
    let missing = || io::Error::new(io::ErrorKind::InvalidInput, "which record?");
    let path = arguments.into_iter().next().ok_or_else(missing)?;
    let path = Path::new(&path);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    file.lock()?;
    let Some(found) = read(path, file)? else {
        return Ok(());
    };
    log::init(&std::env::current_dir()?, false);
    found.undo(By::Heir).map_err(|left| {
        tracing::error!(id = found.record.intent.id, left, "not everything is back");
        io::Error::other(left)
    })
}
