//! A container that stands still for its dump, and goes on after it.
//!
//! ```text
//! begin  (thaw what was paused, if it has a GPU) ─> GPU state into host memory ─> freeze
//! go_on  thaw ─> GPU state back, verified ─> (freeze again what was paused)
//! ```
//!
//! When a [`Still`] is dropped the processes are thawed, and the GPU helper brings their GPU state
//! back by itself.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kybernate_config::Settings;
use kybernate_oci::manifest::Gpu;

use super::{
    CheckpointError,
    course::Course,
    freezer::{Freezer, Thaw},
    phases::Phases,
};
use crate::{
    container::Container,
    gpu::{self, GpuError, Suspended},
    process::ProcessState,
};

/// How often to try a freeze that the kernel does not finish.
const FREEZES: u32 = 5;
/// How long a freeze may take that nobody wants any more.
const PAUSING: Duration = Duration::from_secs(2);

/// A container that stands still.
#[derive(Debug)]
pub struct Still {
    container: Arc<Container>,
    freezer: Freezer,
    course: Course,
    was_paused: bool,
    /// Whether it was thawed nevertheless, for the driver's sake.
    was_thawed: bool,
    /// Present while it is frozen by this.
    thaw: Option<Thaw>,
    gpu: Option<Suspended>,
}

impl Still {
    /// Makes a container stand still. One without GPU state is frozen only if `freeze` says so:
    /// CRIU can do that itself. `ahead` is told how many bytes of device memory will be memory of
    /// the processes.
    pub async fn begin(
        container: &Arc<Container>,
        freezer: &Freezer,
        freeze: bool,
        settings: &Settings,
        course: &Course,
        phases: &mut Phases,
        ahead: &(dyn Fn(u64) + Sync),
    ) -> Result<Self, CheckpointError> {
        let mut still = Self {
            container: Arc::clone(container),
            freezer: freezer.clone(),
            course: course.clone(),
            was_paused: container.state() == ProcessState::Paused,
            was_thawed: false,
            thaw: None,
            gpu: None,
        };
        if still.sees_gpu().await? {
            still.suspend(settings, phases, ahead).await?;
        }
        let begun = Instant::now();
        let frozen = async {
            course.enter("freeze").await?;
            if freeze || still.was_paused {
                still.freeze().await?;
                phases.end("freeze", begun);
            }
            Ok(())
        };
        match frozen.await {
            Ok(()) => Ok(still),
            Err(error) => Err(still.go_on_after(error).await),
        }
    }

    async fn sees_gpu(&self) -> Result<bool, CheckpointError> {
        let pids = self
            .container
            .cgroup()
            .map_or_else(Vec::new, |cgroup| cgroup.pids());
        let Some(init) = self.container.init_pid() else {
            return Ok(false);
        };
        tokio::task::spawn_blocking(move || gpu::sees_gpu(init, &pids))
            .await
            .map_err(|source| CheckpointError::Panic {
                id: self.container.id.clone(),
                source,
            })
    }

    async fn suspend(
        &mut self,
        settings: &Settings,
        phases: &mut Phases,
        ahead: &(dyn Fn(u64) + Sync),
    ) -> Result<(), CheckpointError> {
        if self.was_paused {
            // Frozen processes don't answer the driver.
            self.freezer
                .thaw()
                .map_err(|source| self.not_thawed(source))?;
            self.was_thawed = true;
        }
        let container = &self.container;
        match gpu::suspend(container, &self.freezer, &settings.gpu, &self.course, ahead).await {
            Ok(suspended) => {
                for (name, took) in suspended.iter().flat_map(|s| &s.steps) {
                    phases.add(name, *took);
                }
                self.gpu = suspended;
                Ok(())
            }
            Err(source) => {
                if self.was_paused
                    && let Err(error) = self.runc_pause().await
                {
                    tracing::error!(%error, "cannot pause the container again");
                }
                Err(self.gpu_error(source))
            }
        }
    }

    /// Freezes what runs.
    async fn freeze(&mut self) -> Result<(), CheckpointError> {
        if self.was_paused && !self.was_thawed {
            return Ok(());
        }
        // First, so that a freeze that was cut short is undone, too.
        self.thaw = Some(Thaw::at_end(Some(self.freezer.clone())));
        for _ in 1..FREEZES {
            match self.runc_pause_unless_stopped().await {
                Err(CheckpointError::Runc { source, .. }) if source.could_not_freeze() => {
                    tracing::warn!(id = %self.container.id, %source, "freezes once more");
                }
                other => return other,
            }
        }
        self.runc_pause_unless_stopped().await
    }

    /// Freezes it, unless the checkpoint is stopped. runc has ended on return: one that was left to
    /// itself would freeze what is thawed by then.
    async fn runc_pause_unless_stopped(&self) -> Result<(), CheckpointError> {
        let id = &self.container.id;
        let failed = |source| CheckpointError::Runc {
            id: id.clone(),
            source,
        };
        let runc = &self.container.runc;
        let mut command = runc.command("pause");
        command.arg(id);
        let mut child = runc.spawn(command).map_err(failed)?;
        let noted = self.course.journal.programs([child.pid()]);
        let stop = &self.course.stop;
        let reason = tokio::select! {
            paused = child.wait() => {
                noted.map_err(|source| CheckpointError::Step {
                    id: id.clone(),
                    step: "freeze",
                    source,
                })?;
                return paused.map_err(failed);
            }
            reason = stop.stopped() => reason,
        };
        if tokio::time::timeout(PAUSING, child.wait()).await.is_err() {
            // What has ended meanwhile is what is wanted.
            let _ = child.kill();
            let _ = child.wait().await;
        }
        Err(CheckpointError::Stopped {
            id: id.clone(),
            reason,
        })
    }

    async fn runc_pause(&self) -> Result<(), CheckpointError> {
        let paused = self.container.runc.pause(&self.container.id).await;
        paused.map_err(|source| CheckpointError::Runc {
            id: self.container.id.clone(),
            source,
        })
    }

    /// Whether it was paused before.
    #[must_use]
    pub fn was_paused(&self) -> bool {
        self.was_paused
    }

    /// The GPU state that is in host memory now, for the manifest.
    #[must_use]
    pub fn gpu(&self) -> Option<Gpu> {
        self.gpu.as_ref().map(Suspended::facts)
    }

    /// Bytes of device memory that are in host memory now.
    #[must_use]
    pub fn gpu_memory(&self) -> u64 {
        self.gpu.as_ref().map_or(0, Suspended::memory)
    }

    /// Lets it go on as it was before.
    pub async fn go_on(mut self, phases: &mut Phases) -> Result<(), CheckpointError> {
        if let Some(thaw) = self.thaw.take() {
            thaw.now().map_err(|source| self.not_thawed(source))?;
        }
        if let Some(gpu) = self.gpu.take() {
            let entered = self.course.enter_undo("gpu-restore").await;
            entered.map_err(|source| CheckpointError::Step {
                id: self.container.id.clone(),
                step: "gpu-restore",
                source,
            })?;
            let steps = gpu
                .resume()
                .await
                .map_err(|source| self.gpu_error(source))?;
            for (name, took) in steps {
                phases.add(name, took);
            }
        }
        if self.was_thawed {
            self.runc_pause().await?;
        }
        self.container.runs_again();
        Ok(())
    }

    /// Lets it go on after a failure, and returns what is to be said of that.
    pub async fn go_on_after(self, error: CheckpointError) -> CheckpointError {
        let id = self.container.id.clone();
        let error = error.at(&self.course.journal.current());
        match self.go_on(&mut Phases::default()).await {
            Ok(()) => error,
            Err(second) => CheckpointError::NotAsBefore {
                id,
                first: Box::new(error),
                second: Box::new(second),
            },
        }
    }

    /// Ends every process: the checkpoint was its last deed. What fails once they are killed does
    /// not make the checkpoint worse, and is logged.
    pub async fn end(mut self) -> Result<(), CheckpointError> {
        self.was_thawed = false;
        let container = Arc::clone(&self.container);
        let kill = move || {
            let cgroup = container.cgroup();
            cgroup.map_or(Ok(()), |cgroup| cgroup.kill())
        };
        let killed =
            tokio::task::spawn_blocking(kill)
                .await
                .map_err(|source| CheckpointError::Panic {
                    id: self.container.id.clone(),
                    source,
                })?;
        let id = self.container.id.clone();
        match killed {
            // Large memory takes its time.
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
                tracing::warn!(id, %error, "killed with its checkpoint");
            }
            killed => killed.map_err(|source| CheckpointError::Host {
                action: "end the container of",
                path: self.container.bundle.clone(),
                source,
            })?,
        }
        if let Some(gpu) = self.gpu.take()
            && let Err(error) = gpu.release().await
        {
            tracing::warn!(id, %error, "after the container's end");
        }
        if let Err(error) = self.go_on(&mut Phases::default()).await {
            tracing::warn!(id, %error, "after the container's end");
        }
        Ok(())
    }

    fn not_thawed(&self, source: std::io::Error) -> CheckpointError {
        CheckpointError::Thaw {
            id: self.container.id.clone(),
            source,
        }
    }

    fn gpu_error(&self, source: GpuError) -> CheckpointError {
        CheckpointError::Gpu {
            id: self.container.id.clone(),
            source,
        }
    }
}
