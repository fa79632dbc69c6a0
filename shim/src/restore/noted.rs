//! A restore and its journal.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kybernate_config::Settings;
use kybernate_cuda::process::Process;
use tokio_util::sync::CancellationToken;

use super::RestoreError;
use crate::{
    checkpoint::workdir::WorkDir,
    container::ContainerFacts,
    fault,
    journal::{self, By, Intent, Journal, Operation, Paused},
};

/// How long a thread may take to notice that nobody waits for it any more. Longer means that a disk
/// hangs; then the thread is left to itself.
const NOTICING: Duration = Duration::from_secs(3);

/// The journal of a restore, which ends when this is dropped. After a panic the guardian looks
/// what is left.
#[derive(Debug, Clone)]
pub struct Noted {
    journal: Arc<Journal>,
    halted: Arc<AtomicBool>,
}

impl Drop for Noted {
    fn drop(&mut self) {
        if !std::thread::panicking() && Arc::strong_count(&self.journal) == 1 {
            self.journal.end();
        }
    }
}

impl Noted {
    /// Writes down that a container is about to be restored.
    pub async fn begin(facts: &ContainerFacts, settings: &Settings) -> Result<Self, RestoreError> {
        let left = |left| RestoreError::Unsettled {
            id: facts.id.clone(),
            left,
        };
        let places = [&settings.restore.memory_dir, &settings.restore.disk_dir];
        let intent = Intent {
            version: journal::VERSION,
            operation: Operation::Restore,
            namespace: facts.namespace.clone(),
            id: facts.id.clone(),
            shim: Process::own().map_err(left)?,
            freezer: None,
            paused: Paused::No,
            gpu: settings.gpu.clone(),
            remove: places
                .map(|place| WorkDir::place(place, &facts.namespace, &facts.id))
                .to_vec(),
            results: Vec::new(),
            fills: None,
            cgroups: journal::made::by_restore(&facts.spec),
            runc: Some(facts.runc.root().join(&facts.id)).filter(|state| !state.exists()),
        };
        let directory = &settings.checkpoint.journal_dir;
        let journal = journal::open(directory, intent, facts.runc.reaper()).await;
        Ok(Self {
            journal: Arc::new(journal.map_err(left)?),
            halted: Arc::default(),
        })
    }

    /// Runs a part of the restore on a thread that may block, until it is done or nobody waits for
    /// it any more. What it has done is undone then, also while the thread hangs.
    pub async fn blocking<T: Send + 'static>(
        &self,
        gone: &CancellationToken,
        work: impl FnOnce() -> Result<T, RestoreError> + Send + 'static,
    ) -> Result<T, RestoreError> {
        let mut thread = tokio::task::spawn_blocking(work);
        tokio::select! {
            done = &mut thread => return done.map_err(RestoreError::Panic)?,
            () = gone.cancelled() => {}
        }
        self.halted.store(true, Ordering::Relaxed);
        if tokio::time::timeout(NOTICING, thread).await.is_err() {
            self.undo().await;
            self.journal.end();
        }
        Err(RestoreError::Stopped)
    }

    /// Set once nobody waits for the restore any more.
    #[must_use]
    pub fn halted(&self) -> &AtomicBool {
        &self.halted
    }

    /// Notes programs that the step has started.
    pub fn programs(&self, pids: impl IntoIterator<Item = u32>) -> io::Result<()> {
        self.journal.programs(pids)
    }

    /// Notes the GPU helper that is about to change kernel settings.
    pub fn helper(&self, pid: u32) -> io::Result<()> {
        self.journal.locks(pid, &[])
    }

    /// Begins a step, on a thread that may block.
    pub fn step(&self, step: &'static str) -> Result<(), RestoreError> {
        let begun = self.journal.step(step).and_then(|()| fault::block_at(step));
        begun.map_err(|source| RestoreError::Step { step, source })?;
        if self.halted.load(Ordering::Relaxed) {
            return Err(RestoreError::Stopped);
        }
        Ok(())
    }

    /// Begins a step.
    pub async fn enter(&self, step: &'static str) -> Result<(), RestoreError> {
        let begun = self.journal.step(step);
        let begun = match begun {
            Ok(()) => fault::at(step).await,
            failed => failed,
        };
        begun.map_err(|source| RestoreError::Step { step, source })
    }

    /// Ends whatever a failed step has started.
    pub async fn undo(&self) {
        let journal = Arc::clone(&self.journal);
        let undone = tokio::task::spawn_blocking(move || journal.undo(By::Owner)).await;
        if let Err(left) = undone.unwrap_or_else(|bug| Err(bug.to_string())) {
            tracing::error!(left, "a restore has left something");
        }
    }
}
