//! A checkpoint and its journal: what is noted before it, and what is undone after a failure.

use std::{sync::Arc, time::Duration};

use kybernate_config::{
    Settings,
    request::{ARCHIVE_FILE, RESULT_FILE},
};
use kybernate_cuda::process::Process;

use super::{
    CheckpointError, Task, plain, resume,
    stop::{Stop, StopReason},
    workdir::WorkDir,
};
use crate::{
    container::Container,
    journal::{self, By, Filled, Intent, Journal, Operation, Paused},
    process::ProcessState,
};

/// How long a checkpoint that was stopped may take to undo itself. CRIU alone gets 15 s, and clients
/// wait for 30 s.
const STOPPING: Duration = Duration::from_secs(25);

/// What is going to be done, and has to be undone should it fail.
pub fn intent(
    container: &Container,
    task: &Task,
    into_archive: bool,
    settings: &Settings,
) -> Result<Intent, CheckpointError> {
    let (namespace, id) = (&container.namespace, &container.id);
    let host = |action| {
        let path = task.path.clone();
        move |source| CheckpointError::Host {
            action,
            path,
            source,
        }
    };
    let (work, results, fills) = if into_archive {
        let files = [ARCHIVE_FILE, RESULT_FILE].map(|name| task.path.join(name));
        // What is there already is not ours.
        let results = files.into_iter().filter(|path| !path.exists()).collect();
        let work = WorkDir::place(&settings.checkpoint.work_dir, namespace, id);
        (work, results, None)
    } else {
        let filled = Filled::note(&task.path).map_err(host("list"))?;
        (container.bundle.join(plain::WORK), Vec::new(), Some(filled))
    };
    let paused = match container.state() {
        ProcessState::Paused if !into_archive && resume::is_paused_for_checkpoint(container) => {
            Paused::ForCheckpoint
        }
        ProcessState::Paused => Paused::Before,
        _ => Paused::No,
    };
    Ok(Intent {
        version: journal::VERSION,
        operation: Operation::Checkpoint,
        namespace: namespace.clone(),
        id: id.clone(),
        shim: Process::own().map_err(|left| CheckpointError::Unsettled {
            id: id.clone(),
            left,
        })?,
        freezer: container.freezer(),
        paused,
        gpu: settings.gpu.clone(),
        remove: vec![work],
        results,
        fills,
        cgroups: Vec::new(),
        runc: None,
    })
}

/// Writes the intent down and sets a guardian over it. Before that, whatever an earlier operation
/// on the container has left is undone.
pub async fn begin(
    container: &Container,
    settings: &Settings,
    intent: Intent,
) -> Result<Journal, CheckpointError> {
    let id = container.id.clone();
    journal::open(
        &settings.checkpoint.journal_dir,
        intent,
        container.runc.reaper(),
    )
    .await
    .map_err(|left| CheckpointError::Unsettled { id, left })
}

/// Runs a checkpoint to its end: a panic is an error, and what does not stop is given up.
pub async fn to_its_end(
    id: &str,
    taking: impl Future<Output = Result<(), CheckpointError>> + Send + 'static,
    stop: &Stop,
) -> Result<(), CheckpointError> {
    let mut taking = tokio::spawn(taking);
    let ended = tokio::select! {
        ended = &mut taking => ended,
        reason = stop.overdue(STOPPING) => {
            taking.abort();
            if let Ok(ended) = taking.await {
                return ended;
            }
            return Err(CheckpointError::Overdue {
                id: id.into(),
                reason,
                seconds: STOPPING.as_secs(),
            });
        }
    };
    ended.unwrap_or_else(|source| {
        Err(CheckpointError::Panic {
            id: id.into(),
            source,
        })
    })
}

/// Undoes whatever a failed checkpoint has not undone itself, and says so. `reason` is why it was
/// stopped, if it was.
pub async fn undo(
    journal: &Arc<Journal>,
    error: CheckpointError,
    reason: Option<StopReason>,
) -> CheckpointError {
    let error = error.at(&journal.current());
    let undoing = Arc::clone(journal);
    let by = match reason {
        Some(StopReason::Killed) => By::Survivor,
        _ => By::Owner,
    };
    let undone = tokio::task::spawn_blocking(move || undoing.undo(by)).await;
    match undone.unwrap_or_else(|bug| Err(bug.to_string())) {
        Ok(()) => error.undone(),
        Err(left) => CheckpointError::Left {
            source: Box::new(error),
            left,
        },
    }
}
