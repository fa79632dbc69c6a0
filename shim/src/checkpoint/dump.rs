//! One run of `runc checkpoint` with this shim as CRIU's page server.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use kybernate_cuda::process::Process;

use super::{
    course::Course,
    error::CheckpointError,
    page_server::{PageImages, PageServer, PageServerError, Pages, Received},
    stop::{Stop, StopReason},
    tree,
};
use crate::{
    container::Container,
    criu::log,
    fault,
    journal::{Journal, Strays},
};

/// CRIU's log of a dump, in the work directory.
pub const LOG: &str = "dump.log";
/// CRIU's statistics of a dump, in the work directory.
pub const STATS: &str = "stats-dump";

/// How long CRIU may take to undo a dump whose page connection was closed. Longer means that
/// it hangs; then it is killed, and the kernel lets its processes go.
const UNDO_TIMEOUT: Duration = Duration::from_secs(15);
/// The same when the processes were killed: there is nothing to undo, CRIU may wait for a
/// parasite that died with its process, and until it ends none of them can.
const KILLED_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the thread that stores pages may take to see that its connection is closed.
const SETTLING: Duration = Duration::from_secs(1);

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
    sink: S,
    course: &Course,
) -> Result<(Received, S), CheckpointError>
where
    S: PageImages + Send + 'static,
{
    let id = || container.id.clone();
    let stop = &course.stop;
    course.enter("dump").await?;
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
    let strays = Strays {
        programs: Process::now(runc_pid).into_iter().collect(),
        cgroup: container.freezer().map(|f| f.directory().to_owned()),
        ..Strays::default()
    };
    let noted = course.journal.programs([runc_pid]);
    let mut sink = Noting {
        sink,
        journal: Arc::clone(&course.journal),
        runc: Some(runc_pid),
        stop: stop.clone(),
    };
    let log = plan.leave_running.then(|| plan.work.join(LOG));
    let mut serving = tokio::task::spawn_blocking(move || {
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
            end(strays.clone(), grace).await;
            child.wait().await
        }
    };
    if exited.is_err() {
        // runc is gone: whoever waits for CRIU's connection or its pages waits in vain. CRIU
        // itself may be there yet, if runc was killed.
        line.cancel();
        end(strays, UNDO_TIMEOUT).await;
    }
    if let Some(reason) = stop.reason() {
        // What it makes has to be there by now, to be removed.
        let _ = tokio::time::timeout(SETTLING, &mut serving).await;
        return Err(CheckpointError::Stopped { id: id(), reason });
    }
    let (received, Noting { sink, .. }) = course.thread(serving).await?;
    noted.map_err(|source| CheckpointError::Step {
        id: id(),
        step: "dump",
        source,
    })?;

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

/// Waits for runc and CRIU, and kills them when they do not end.
async fn end(strays: Strays, grace: Duration) {
    let ended = tokio::task::spawn_blocking(move || strays.end(grace)).await;
    if let Ok(Err(error)) = ended {
        tracing::error!(error);
    }
}

/// Page images that tell the journal who sends them.
struct Noting<S> {
    sink: S,
    journal: Arc<Journal>,
    /// Until it is noted.
    runc: Option<u32>,
    /// Nothing new is made once the dump is being undone.
    stop: Stop,
}

impl<S: PageImages> PageImages for Noting<S> {
    fn pages(&mut self, name: &str) -> io::Result<Box<dyn Pages + '_>> {
        if let Some(runc) = self.runc.take() {
            self.journal.step("pages")?;
            self.journal.programs(tree::descendants(runc))?;
            fault::block_at("pages")?;
        }
        if let Some(reason) = self.stop.reason() {
            return Err(io::Error::other(reason));
        }
        self.sink.pages(name)
    }
}
