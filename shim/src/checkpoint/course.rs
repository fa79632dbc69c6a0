//! A checkpoint on its way: where it is, and whether it goes on.

use std::{io, sync::Arc};

use tokio::task::JoinHandle;

use super::{
    CheckpointError,
    stop::{Phase, Stop},
};
use crate::{fault, journal::Journal};

/// A checkpoint on its way.
#[derive(Debug, Clone)]
pub struct Course {
    /// What stops it.
    pub stop: Stop,
    /// What is to be undone.
    pub journal: Arc<Journal>,
    phase: Phase,
    id: Arc<str>,
}

impl Course {
    /// A checkpoint of container `id` that has done nothing yet.
    #[must_use]
    pub fn new(id: &str, stop: Stop, journal: Arc<Journal>) -> Self {
        Self {
            stop,
            journal,
            phase: Phase::default(),
            id: id.into(),
        }
    }

    /// The name of the step that runs now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase.clone()
    }

    /// Begins a step, unless the checkpoint was stopped. The journal says so first.
    pub async fn enter(&self, step: &'static str) -> Result<(), CheckpointError> {
        self.phase.set(step);
        let failed = |source| CheckpointError::Step {
            id: self.id.to_string(),
            step,
            source,
        };
        self.journal.step(step).map_err(failed)?;
        self.unless_stopped(async { fault::at(step).await.map_err(failed) })
            .await
    }

    /// Begins a step of undoing, which nothing stops. What the journal can't take is lost.
    pub async fn enter_undo(&self, step: &'static str) -> io::Result<()> {
        if let Err(error) = self.journal.step(step) {
            tracing::error!(id = %self.id, step, %error, "cannot write to the record");
        }
        fault::at(step).await
    }

    /// Waits for a thread, which goes on alone when the checkpoint is stopped: a disk that hangs
    /// must not keep the container.
    pub async fn thread<T>(&self, thread: JoinHandle<T>) -> Result<T, CheckpointError> {
        self.unless_stopped(async {
            thread.await.map_err(|source| CheckpointError::Panic {
                id: self.id.to_string(),
                source,
            })
        })
        .await
    }

    /// Waits for something that may never end. What it has begun is undone by the caller.
    pub async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T, CheckpointError>>,
    ) -> Result<T, CheckpointError> {
        tokio::select! {
            biased;
            reason = self.stop.stopped() => Err(CheckpointError::Stopped {
                id: self.id.to_string(),
                reason,
            }),
            done = work => done,
        }
    }
}
