//! A run of runc, from its start to its message.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{RuncError, or_status};
use crate::reaper::{Claim, Exit, Reaper};

/// A run of runc.
#[derive(Debug)]
pub struct RuncChild {
    pub(super) claim: Claim,
    pub(super) operation: String,
    pub(super) log: Option<PathBuf>,
    pub(super) exit: Option<(u32, String)>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
    pub(super) reaper: Reaper,
}

impl RuncChild {
    /// runc's pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.claim.pid
    }

    /// Waits for its end. Dropping the future loses nothing, and it may be called again.
    pub async fn wait(&mut self) -> Result<(), RuncError> {
        let (status, message) = match &self.exit {
            Some(exit) => exit.clone(),
            None => {
                let Exit { status, .. } = self.claim.wait().await;
                let message = self
                    .log
                    .take()
                    .map(|log| take_log(&log))
                    .unwrap_or_default();
                self.exit.insert((status, message)).clone()
            }
        };
        if status == 0 {
            return Ok(());
        }
        let operation = self.operation.clone();
        Err(RuncError::Failed {
            operation,
            message: or_status(message, status),
            status,
        })
    }

    /// Kills it. [`RuncChild::wait`] still has to be called. What runc itself started lives on.
    pub fn kill(&self) -> io::Result<()> {
        self.reaper
            .signal(self.claim.pid, rustix::process::Signal::KILL.as_raw())
    }
}

/// Reads a log for its last error and removes it.
fn take_log(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let _ = fs::remove_file(path);
    last_error(&text)
}

/// The message of the last line at level `error` in a log of runc.
fn last_error(log: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Line {
        level: String,
        msg: String,
    }
    serde_json::Deserializer::from_slice(log)
        .into_iter::<Line>()
        .map_while(Result::ok)
        .filter(|line| line.level == "error" || line.level == "fatal")
        .last()
        .map(|line| line.msg.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_log_is_its_message() {
        let log = br#"{"level":"warning","msg":"w","time":"t"}
{"level":"error","msg":"first","time":"t"}
{"level":"error","msg":" container \"x\" does not exist\n","time":"t"}
{"level":"info","msg":"i","time":"t"}
{"level":"err"#;
        assert_eq!(last_error(log), "container \"x\" does not exist");
        assert_eq!(last_error(b"panic: not json"), "");
    }
}
