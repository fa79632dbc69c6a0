//! CUDA state that is in host memory comes back: after a dump, after a failure, after a restore.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use kybernate_config::settings::GpuSettings;
use kybernate_cuda::protocol::{Op, State};
use kybernate_oci::manifest::Gpu;
use serde_json::Value;
use tokio::task::JoinSet;

use super::{GpuError, evidence, helper::Helper, huge, nodes, place};
use crate::{journal, reaper::Reaper};

/// A restore of a container with GPU state: what is needed once its processes are there.
#[derive(Debug)]
pub struct Wake {
    helper: Arc<Helper>,
    gpu: Gpu,
    map: Vec<(String, String)>,
    settings: GpuSettings,
}

impl Wake {
    /// Makes sure that the GPUs of this node can take the state over, for a container with `spec`.
    pub async fn prepare(
        gpu: Gpu,
        spec: &Value,
        settings: &GpuSettings,
        reaper: &Reaper,
        bundle: &Path,
    ) -> Result<Self, GpuError> {
        let helper = Arc::new(Helper::start(settings, reaper, bundle)?);
        let facts = helper.facts().await?;
        let map = place::choose(&gpu, &facts, &nodes::minors(spec))?;
        Ok(Self {
            helper,
            gpu,
            map,
            settings: settings.clone(),
        })
    }

    /// Pid of the helper.
    #[must_use]
    pub fn helper(&self) -> u32 {
        self.helper.pid()
    }

    /// Turns to huge pages for the time of the restore.
    pub async fn hold_huge_pages(&self, settings: &GpuSettings) {
        let bytes = self.gpu.processes.iter().map(|p| p.used_bytes).sum();
        huge::hold(&self.helper, settings.thp, bytes).await;
    }

    /// Brings the state of the restored processes `pids` back onto the GPUs.
    pub async fn wake(&self, init: u32, pids: &[u32], spec: &Value) -> Result<Duration, GpuError> {
        let begun = Instant::now();
        let limit = Duration::from_secs(self.settings.timeout_s);
        nodes::make(init, spec)?;
        let expected: BTreeSet<u32> = self.gpu.processes.iter().map(|p| p.pid).collect();
        let mut found = BTreeSet::new();
        let mut waiting = Vec::new();
        for pid in pids {
            if self.helper.state(*pid, limit).await? == State::Checkpointed {
                waiting.push(*pid);
                found.extend(evidence::inner_pid(*pid));
            }
        }
        if found != expected {
            return Err(GpuError::Missing {
                expected: list(&expected),
                found: list(&found),
            });
        }
        let left = revive(&self.helper, &waiting, &self.map, limit).await;
        if !left.is_empty() {
            return Err(GpuError::Lost {
                first: "the processes are restored".into(),
                left: left.join("; "),
            });
        }
        self.release().await?;
        Ok(begun.elapsed())
    }

    /// Ends the helper's watch after a failure, of which the helper's own end may be the cause: then
    /// somebody else has to put back what it held.
    pub async fn give_up(&self) {
        if self.release().await.is_ok() {
            return;
        }
        let settings = self.settings.clone();
        let put = tokio::task::spawn_blocking(move || journal::put_settings_back(&settings)).await;
        if let Err(left) = put.unwrap_or_else(|bug| Err(bug.to_string())) {
            tracing::error!(left, "kernel settings are not put back");
        }
    }

    /// Ends the helper's watch.
    pub async fn release(&self) -> Result<(), GpuError> {
        self.helper.set("release", Op::Release).await
    }
}

/// Makes processes run on their GPUs, whatever state they are in, all at the same time. Returns
/// what is to be said of those for which that failed. A process that has ended needs nothing.
pub(super) async fn revive(
    helper: &Arc<Helper>,
    pids: &[u32],
    map: &[(String, String)],
    limit: Duration,
) -> Vec<String> {
    let mut work = JoinSet::new();
    for pid in pids.iter().copied() {
        let (helper, map) = (Arc::clone(helper), map.to_vec());
        work.spawn(async move {
            let revived = revive_one(&helper, pid, &map, limit).await;
            revived
                .err()
                .filter(|_| is_there(pid))
                .map(|error| error.to_string())
        });
    }
    let mut left = Vec::new();
    while let Some(done) = work.join_next().await {
        left.extend(done.unwrap_or_else(|bug| Some(bug.to_string())));
    }
    left
}

async fn revive_one(
    helper: &Helper,
    pid: u32,
    map: &[(String, String)],
    limit: Duration,
) -> Result<(), GpuError> {
    // Twice round at most: from checkpointed to locked, and from there to running.
    for _ in 0..3 {
        match helper.state(pid, limit).await? {
            State::Running | State::None => return Ok(()),
            State::Checkpointed => {
                let device_map = map.to_vec();
                let op = Op::Restore { pid, device_map };
                helper.ask("restore", pid, op, limit).await?;
            }
            State::Locked => {
                let op = Op::Unlock { pid };
                helper.ask("unlock", pid, op, limit).await?;
            }
            State::Failed => break,
        }
    }
    let state = helper.state(pid, limit).await?;
    match state {
        State::Running | State::None => Ok(()),
        state => Err(GpuError::Host(format!(
            "process {pid} ({}) has the CUDA state {}; restart the container",
            evidence::name(pid),
            state.as_str()
        ))),
    }
}

fn is_there(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn list(pids: &BTreeSet<u32>) -> String {
    let pids: Vec<_> = pids.iter().map(ToString::to_string).collect();
    if pids.is_empty() {
        return "none".into();
    }
    pids.join(", ")
}
