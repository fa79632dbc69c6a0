//! A restore and its journal.

use std::{io, sync::Arc};

use kybernate_config::Settings;
use kybernate_cuda::process::Process;

use super::RestoreError;
use crate::{
    checkpoint::workdir::WorkDir,
    container::ContainerFacts,
    fault,
    journal::{self, Intent, Journal, Operation, Paused},
};

/// The journal of a restore, which ends when this is dropped. After a panic the guardian looks
/// what is left.
#[derive(Debug, Clone)]
pub struct Noted(Arc<Journal>);

impl Drop for Noted {
    fn drop(&mut self) {
        if !std::thread::panicking() && Arc::strong_count(&self.0) == 1 {
            self.0.end();
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
            shim: Process::now(std::process::id())
                .ok_or_else(|| left("/proc is not mounted".into()))?,
            freezer: None,
            paused: Paused::No,
            gpu: settings.gpu.clone(),
            remove: places
                .map(|place| WorkDir::place(place, &facts.namespace, &facts.id))
                .to_vec(),
            fills: None,
        };
        let directory = &settings.checkpoint.journal_dir;
        let journal = journal::open(directory, intent, facts.runc.reaper()).await;
        Ok(Self(Arc::new(journal.map_err(left)?)))
    }

    /// Notes programs that the step has started.
    pub fn programs(&self, pids: impl IntoIterator<Item = u32>) -> io::Result<()> {
        self.0.programs(pids)
    }

    /// Begins a step, on a thread that may block.
    pub fn step(&self, step: &'static str) -> Result<(), RestoreError> {
        let begun = self.0.step(step).and_then(|()| fault::block_at(step));
        begun.map_err(|source| RestoreError::Step { step, source })
    }

    /// Begins a step.
    pub async fn enter(&self, step: &'static str) -> Result<(), RestoreError> {
        let begun = self.0.step(step);
        let begun = match begun {
            Ok(()) => fault::at(step).await,
            failed => failed,
        };
        begun.map_err(|source| RestoreError::Step { step, source })
    }

    /// Ends whatever a failed step has started.
    pub async fn undo(&self) {
        let journal = Arc::clone(&self.0);
        let undone = tokio::task::spawn_blocking(move || journal.undo()).await;
        if let Err(left) = undone.unwrap_or_else(|bug| Err(bug.to_string())) {
            tracing::error!(left, "a restore has left something");
        }
    }
}
