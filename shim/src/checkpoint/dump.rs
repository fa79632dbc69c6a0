//! One run of `runc checkpoint` with this shim as CRIU's page server.

use std::{path::PathBuf, time::Duration};

use super::{
    error::CheckpointError,
    page_server::{PageImages, PageServer, PageServerError, Received},
    stop::{Stop, StopReason},
};
use crate::{container::Container, criu::log, runc::RuncChild};

/// CRIU's log of a dump, in the work directory.
pub const LOG: &str = "dump.log";
/// CRIU's statistics of a dump, in the work directory.
pub const STATS: &str = "stats-dump";

/// How long CRIU may take to undo a dump whose page connection was closed. Longer means that
/// it hangs; then it is killed, and the kernel lets its processes go.
const UNDO_TIMEOUT: Duration = Duration::from_secs(30);
/// The same when the processes were killed: there is nothing to undo, CRIU may wait for a
/// parasite that died with its process, and until it ends none of them can.
const KILLED_TIMEOUT: Duration = Duration::from_secs(1);

/// What to dump, and where the small images go.
#[derive(Debug)]
pub struct Plan {
    /// Directory for every image that is no page image.
    pub images: PathBuf,
    /// Directory for CRIU's log and statistics.
    pub work: PathBuf,
    /// Whether the processes live on.
    pub leave_running: bool,
    /// Keep established TCP connections (they are closed otherwise).
    pub tcp_established: bool,
}

/// Dumps `container` into `sink` and the plan's directories. On every failure the processes
/// are as they were.
pub async fn dump<S>(
    container: &Container,
    plan: &Plan,
    mut sink: S,
    stop: &Stop,
) -> Result<(Received, S), CheckpointError>
where
    S: PageImages + Send + 'static,
{
    let id = || container.id.clone();
    let server =
        PageServer::bind().map_err(|source| CheckpointError::Pages { id: id(), source })?;
    let line = server.line();
    let mut command = container.runc.command("checkpoint");
    command
        .args([
            "--page-server",
            &server.address().to_string(),
            "--file-locks",
            "--ext-unix-sk",
        ])
        .arg("--image-path")
        .arg(&plan.images)
        .arg("--work-path")
        .arg(&plan.work);
    if plan.leave_running {
        command.arg("--leave-running");
    }
    if plan.tcp_established {
        command.arg("--tcp-established");
    }
    command.arg(&container.id);
    let mut child = container
        .runc
        .spawn(command)
        .map_err(|source| CheckpointError::Runc { id: id(), source })?;
    let runc_pid = child.pid();
    let log = plan.leave_running.then(|| plan.work.join(LOG));
    let serving = tokio::task::spawn_blocking(move || {
        let received = server.serve(runc_pid, log, &mut sink);
        (received, sink)
    });

    let exited = tokio::select! {
        exited = child.wait() => exited,
        reason = stop.stopped() => {
            line.cancel();
            let grace = match reason {
                StopReason::Killed => KILLED_TIMEOUT,
                _ => UNDO_TIMEOUT,
            };
            undo(&mut child, grace).await
        }
    };
    if exited.is_err() {
        // CRIU is gone: whoever waits for its connection or its pages waits in vain.
        line.cancel();
    }
    let (received, sink) = serving
        .await
        .map_err(|source| CheckpointError::Panic { id: id(), source })?;

    if let Some(reason) = stop.reason() {
        return Err(CheckpointError::Stopped { id: id(), reason });
    }
    match (exited, received) {
        (Ok(()), Ok(received)) => Ok((received, sink)),
        // The archive or the disk failed first, and CRIU in consequence.
        (_, Err(source @ PageServerError::Store(_))) => {
            Err(CheckpointError::Pages { id: id(), source })
        }
        (Err(runc), _) => {
            let criu = log::explain(&plan.work.join(LOG));
            Err(CheckpointError::Dump {
                id: id(),
                runc,
                criu,
            })
        }
        (Ok(()), Err(source)) => Err(CheckpointError::Pages { id: id(), source }),
    }
}

async fn undo(child: &mut RuncChild, grace: Duration) -> Result<(), crate::runc::RuncError> {
    match tokio::time::timeout(grace, child.wait()).await {
        Ok(exited) => exited,
        Err(_) => {
            tracing::error!(pid = child.pid(), "CRIU does not end; killing it");
            for pid in super::tree::descendants(child.pid()).into_iter().rev() {
                let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
                // One that is gone meanwhile is what is wanted.
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
            }
            child.wait().await
        }
    }
}
