//! Signals.

use nix::libc::{ESRCH, SIGKILL};

use super::{Container, ContainerError};
use crate::process::ProcessState;

impl Container {
    /// `Kill`. Never waits for another operation.
    ///
    /// With `all`, every process in the container's cgroup gets the signal; otherwise init or
    /// the exec'd process. What init leaves behind when it ends is ended in any case.
    pub fn kill(&self, exec_id: &str, signal: u32, all: bool) -> Result<(), ContainerError> {
        let process = self.process(exec_id)?;
        let Some(pid) = process.pid() else {
            return Err(match exec_id {
                // Not restored yet: nothing to kill, and containerd may go on to delete.
                "" => ContainerError::Finished {
                    id: self.id.clone(),
                },
                _ => self.wrong_state("kill a process that is not started in", process.state()),
            });
        };
        let number = i32::try_from(signal).unwrap_or(0);
        let failed = |source: std::io::Error| -> ContainerError {
            if source.raw_os_error() == Some(ESRCH) {
                ContainerError::Finished {
                    id: self.id.clone(),
                }
            } else {
                ContainerError::Signal {
                    id: self.id.clone(),
                    signal,
                    source,
                }
            }
        };
        if process.state() == ProcessState::Stopped {
            return Err(ContainerError::Finished {
                id: self.id.clone(),
            });
        }
        if number == SIGKILL && exec_id.is_empty() {
            // A dump under way would keep its processes from ending until it is done.
            self.killed.cancel();
        }
        match self.cgroup().filter(|_| all && exec_id.is_empty()) {
            Some(cgroup) => {
                // init last: its end takes the others along, and with them their own handlers.
                cgroup.signal(number, &[pid]).map_err(failed)?;
                self.shared.reaper.signal(pid, number).map_err(failed)?;
            }
            None => self.shared.reaper.signal(pid, number).map_err(failed)?,
        }
        // Only with the container's own end: another process's waits for its turn, as what is
        // saved must not run meanwhile.
        if number == SIGKILL && exec_id.is_empty() {
            self.thaw();
        }
        Ok(())
    }

    /// Lets killed processes end. On cgroup v1 a frozen process does not see a SIGKILL.
    pub(super) fn thaw(&self) {
        if let Some(cgroup) = self.cgroup()
            && let Err(error) = cgroup.thaw_for_kill()
        {
            tracing::error!(id = %self.id, %error, "cannot thaw");
        }
    }
}
