//! Start, pause, resume, update and delete.

use std::{fs, sync::Arc, time::Duration};

use containerd_shim_protos::events::task::{TaskPaused, TaskResumed, TaskStart};
use protobuf::well_known_types::any::Any;
use tokio_util::sync::CancellationToken;

use super::{Container, ContainerError, INIT_PID_FILE, ROOTFS, create::blocking, lock, read_pid};
use crate::{
    fault, gpu, mount,
    process::{Process, ProcessState},
    restore,
};

/// How long a deleted init may take to be reaped.
const REAP: Duration = Duration::from_secs(2);

impl Container {
    /// `Start` of init: `runc start`, or the restore that was prepared, which is undone once `gone`
    /// says that nobody waits for it.
    pub async fn start(self: &Arc<Self>, gone: CancellationToken) -> Result<u32, ContainerError> {
        let _operation = self.operation.write().await;
        let state = self.state();
        if state != ProcessState::Created {
            return Err(self.wrong_state("start", state));
        }
        let _starting = self.starting.lock().await;
        let prepared = lock(&self.restore).take();
        let claim = match prepared {
            Some(prepared) => Some(self.start_restored(prepared, &gone).await?),
            None => {
                self.runc.start(&self.id).await?;
                None
            }
        };
        self.init.enter(ProcessState::Running);
        let pid = self.init.pid().unwrap_or(0);
        self.events().send(&TaskStart {
            container_id: self.id.clone(),
            pid,
            ..TaskStart::default()
        });
        if let Some(claim) = claim {
            self.follow_init(claim);
        }
        Ok(pid)
    }

    async fn start_restored(
        &self,
        prepared: restore::Prepared,
        gone: &CancellationToken,
    ) -> Result<crate::reaper::Claim, ContainerError> {
        let mut stdio = match self.init.take_stdio() {
            Some(stdio) => stdio,
            None => self.stdio(&self.init).await?,
        };
        let pid_file = self.bundle.join(INIT_PID_FILE);
        let operation = self.shared.reaper.begin();
        let wake = restore::start(prepared, &self.facts(), &mut stdio, &pid_file, gone).await?;
        let pid = read_pid(&pid_file).map_err(self.host_error("read", &pid_file))?;
        let claim = operation.claim(pid);
        self.init.set_pid(pid);
        self.init
            .keep_streams(stdio.start(&self.shared.reaper).await?);
        self.adopt_cgroup(pid);
        match wake {
            Some(wake) => self.wake(&wake, pid, claim, gone).await,
            None => Ok(claim),
        }
    }

    /// Brings GPU state back. A container whose GPU state is lost must not pass for a restored one:
    /// it is killed.
    async fn wake(
        &self,
        wake: &gpu::Wake,
        init: u32,
        claim: crate::reaper::Claim,
        gone: &CancellationToken,
    ) -> Result<crate::reaper::Claim, ContainerError> {
        let cgroup = self.cgroup();
        let pids = cgroup.as_ref().map_or_else(Vec::new, |group| group.pids());
        let spec = self.whole_spec()?;
        let woken = async {
            let begun = fault::at("gpu-wake").await;
            begun.map_err(|error| {
                gpu::GpuError::Host(format!("cannot begin the step gpu-wake: {error}"))
            })?;
            wake.wake(init, &pids, &spec).await
        };
        let woken = tokio::select! {
            biased;
            () = gone.cancelled() => Err(restore::RestoreError::Stopped),
            woken = woken => woken.map_err(restore::RestoreError::from),
        };
        match woken {
            Ok(took) => {
                let ms = took.as_millis();
                tracing::info!(id = %self.id, ms, "GPU state restored");
                Ok(claim)
            }
            Err(error) => {
                if let Some(cgroup) = cgroup
                    && let Err(error) = blocking(move || cgroup.kill()).await
                {
                    tracing::error!(id = %self.id, %error, "cannot end the container");
                }
                wake.give_up().await;
                let exit = claim.exit().await;
                self.init.set_exited(exit);
                Err(error.into())
            }
        }
    }

    /// `Pause`.
    pub async fn pause(&self) -> Result<(), ContainerError> {
        let _operation = self.operation.write().await;
        if !self.init.enter(ProcessState::Pausing) {
            return Err(self.wrong_state("pause", self.state()));
        }
        match self.runc.pause(&self.id).await {
            Ok(()) => {
                self.note_paused();
                Ok(())
            }
            Err(error) => {
                self.init.enter(ProcessState::Running);
                Err(error.into())
            }
        }
    }

    /// `Resume`.
    pub async fn resume(&self) -> Result<(), ContainerError> {
        let _operation = self.operation.write().await;
        let state = self.state();
        if state != ProcessState::Paused {
            return Err(self.wrong_state("resume", state));
        }
        self.runc.resume(&self.id).await?;
        self.note_resumed();
        Ok(())
    }

    /// The container is frozen now.
    pub fn note_paused(&self) {
        self.init.enter(ProcessState::Pausing);
        if self.init.enter(ProcessState::Paused) {
            let container_id = self.id.clone();
            self.events().send(&TaskPaused {
                container_id,
                ..TaskPaused::default()
            });
        }
    }

    /// The container is thawed now.
    pub fn note_resumed(&self) {
        if self.init.enter(ProcessState::Running) {
            let container_id = self.id.clone();
            self.events().send(&TaskResumed {
                container_id,
                ..TaskResumed::default()
            });
        }
    }

    /// `Update`: `resources` is the JSON of an OCI `LinuxResources`.
    pub async fn update(&self, resources: Option<&Any>) -> Result<(), ContainerError> {
        let _operation = self.operation.write().await;
        let state = self.state();
        if state == ProcessState::Stopped || self.init.pid().is_none() {
            return Err(self.wrong_state("update", state));
        }
        let text = resources
            .map(|any| any.value.as_slice())
            .unwrap_or_default();
        serde_json::from_slice::<serde::de::IgnoredAny>(text).map_err(|source| {
            ContainerError::Json {
                what: "resources",
                id: self.id.clone(),
                source,
            }
        })?;
        let path = self.bundle.join("resources.json");
        fs::write(&path, text).map_err(self.host_error("write", &path))?;
        let updated = self.runc.update(&self.id, &path).await;
        let _ = fs::remove_file(&path);
        Ok(updated?)
    }

    /// `Delete` of the container. What it held is released, also when runc knows it no more.
    pub async fn delete(&self) -> Result<Arc<Process>, ContainerError> {
        let _operation = self.operation.write().await;
        match self.state() {
            ProcessState::Created => {
                self.runc_delete(true).await?;
                if self.init.pid().is_some() {
                    // Its exit comes before its deletion.
                    let _ = tokio::time::timeout(REAP, self.init.wait()).await;
                }
                self.drain().await;
            }
            ProcessState::Stopped => {
                self.drain().await;
                self.runc_delete(false).await?;
            }
            state => return Err(self.wrong_state("delete", state)),
        }
        self.shut_trigger().await;
        lock(&self.restore).take();
        lock(&self.oom).take();
        let rootfs = self.bundle.join(ROOTFS);
        blocking(move || mount::unmount_all(&rootfs)).await?;
        Ok(Arc::clone(&self.init))
    }

    async fn drain(&self) {
        drop(self.init.take_stdio());
        if let Some(streams) = self.init.take_streams() {
            streams.drain().await;
        }
    }

    /// A dump that ends its processes removes runc's state, too.
    async fn runc_delete(&self, force: bool) -> Result<(), ContainerError> {
        match self.runc.delete(&self.id, force).await {
            Err(error) if error.is_unknown_container() => Ok(()),
            Err(error) if !force => {
                tracing::warn!(id = %self.id, %error, "deleting by force");
                match self.runc.delete(&self.id, true).await {
                    Err(error) if !error.is_unknown_container() => Err(error.into()),
                    _ => Ok(()),
                }
            }
            other => Ok(other?),
        }
    }
}
