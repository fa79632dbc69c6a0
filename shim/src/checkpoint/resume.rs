//! containerd pauses a container for its checkpoint and resumes it afterwards, in the context of
//! the same call. When that has run out, or containerd has died, nobody resumes it: the shim does.
//!
//! Meanwhile containerd copies the images and looks at the container's files, which must not
//! change. So it is given the time that its call has; a call without a deadline gets
//! `checkpoint.resume_within_s`.

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use kybernate_cuda::process::Process;
use rustix::net::sockopt::socket_peercred;

use super::freezer::Freezer;
use crate::{container::Container, journal::Journal};

/// A pause this recent was containerd's own, made for the checkpoint that follows it.
const FOR_CHECKPOINT: Duration = Duration::from_secs(10);
/// How long a resume may be on its way when its deadline has passed.
const SLACK: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(100);

/// Who asked for a checkpoint.
#[derive(Debug, Clone, Copy, Default)]
pub struct Caller {
    /// Until when it waits, if it has said so.
    pub deadline: Option<Instant>,
    /// containerd's process, if that is known.
    pub containerd: Option<Process>,
}

impl Caller {
    /// The containerd that serves `address` (`TTRPC_ADDRESS`), with a call that times out after so
    /// many nanoseconds, 0 for never.
    #[must_use]
    pub fn of(address: &str, timeout_nano: i64) -> Self {
        let timeout = u64::try_from(timeout_nano).ok().filter(|nano| *nano != 0);
        let address = address.strip_prefix("unix://").unwrap_or(address);
        Self {
            deadline: timeout.map(|nano| Instant::now() + Duration::from_nanos(nano)),
            containerd: listener(Path::new(address)).ok().flatten(),
        }
    }

    fn is_gone(&self, begun: Instant, limit: Duration) -> Option<&'static str> {
        if self.containerd.is_some_and(|process| !process.lives()) {
            return Some("containerd has ended");
        }
        let now = Instant::now();
        match self.deadline {
            Some(deadline) => (now >= deadline + SLACK).then_some("the call's deadline has passed"),
            None => (now >= begun + limit).then_some("resume_within_s has passed"),
        }
    }
}

/// The process that listens on a socket.
fn listener(path: &Path) -> io::Result<Option<Process>> {
    let stream = std::os::unix::net::UnixStream::connect(path)?;
    let pid = socket_peercred(&stream)?.pid.as_raw_nonzero().get();
    Ok(u32::try_from(pid).ok().and_then(Process::now))
}

/// Whether a container was paused for the checkpoint that begins now.
#[must_use]
pub fn is_paused_for_checkpoint(container: &Container) -> bool {
    container
        .paused_for()
        .is_some_and(|paused| paused < FOR_CHECKPOINT)
}

/// Thaws the container unless somebody resumes it in time. `journal` ends then; there is none to
/// end where something else is left to undo.
pub fn watch(
    container: &Arc<Container>,
    freezer: Freezer,
    journal: Option<Arc<Journal>>,
    caller: Caller,
    limit: Duration,
) {
    let (container, begun) = (Arc::clone(container), Instant::now());
    tokio::spawn(async move {
        let since = container.paused_since();
        let is_paused = || since.is_some() && container.paused_since() == since;
        let why = loop {
            if !is_paused() {
                break None;
            }
            if let Some(why) = caller.is_gone(begun, limit) {
                break Some(why);
            }
            tokio::time::sleep(POLL).await;
        };
        let _operation = container.operation().write().await;
        if let Some(why) = why.filter(|_| is_paused()) {
            tracing::warn!(id = %container.id, why, "resuming what nobody has resumed");
            match freezer.thaw() {
                Ok(()) => container.note_resumed(),
                Err(error) => {
                    tracing::error!(id = %container.id, %error, "cannot thaw");
                    return; // The guardian tries again.
                }
            }
        }
        if let Some(journal) = journal {
            journal.end();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_gone_with_its_deadline_or_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let caller = Caller::of(&format!("unix://{}", socket.display()), 0);
        let own = Process::now(std::process::id()).unwrap();
        assert_eq!(caller.containerd, Some(own));
        let (now, hour) = (Instant::now(), Duration::from_secs(3600));
        assert_eq!(caller.is_gone(now, hour), None);
        assert!(caller.is_gone(now, Duration::ZERO).is_some());
        let late = Caller {
            deadline: Some(now - SLACK),
            ..caller
        };
        assert!(late.is_gone(now, hour).unwrap().contains("deadline"));
        let start = own.start + 1;
        let dead = Caller {
            containerd: Some(Process { start, ..own }),
            ..caller
        };
        assert!(dead.is_gone(now, hour).unwrap().contains("ended"));
        assert!(Caller::of("/nowhere", 1).containerd.is_none());
    }
}
