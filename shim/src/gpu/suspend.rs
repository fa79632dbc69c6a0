//! Before a dump: every CUDA process of a container gives up its GPUs. After it: takes them again.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use kybernate_config::settings::GpuSettings;
use kybernate_cuda::protocol::{Facts, Op, State};
use kybernate_oci::manifest::{Gpu, GpuDevice, GpuProcess};
use tokio::task::JoinSet;

use super::{GpuError, evidence, helper::Helper, huge, preflight, wake::revive};
use crate::{
    checkpoint::{Course, Freezer},
    container::Container,
    fault,
};

/// How long a process that runs may take to tell its state.
const STATE: Duration = Duration::from_secs(20);
/// Rounds in which processes are found that were started meanwhile.
const ROUNDS: u32 = 5;
/// A process that has opened a GPU and has no CUDA state yet is still starting: how often it is
/// looked at again, and the first pause, which doubles.
const STARTING: u32 = 6;
const STARTING_PAUSE: Duration = Duration::from_millis(50);

/// Processes whose GPU state is in their host memory. When this is dropped, the helper brings it
/// back by itself.
#[derive(Debug)]
pub struct Suspended {
    helper: Arc<Helper>,
    container: Arc<Container>,
    settings: GpuSettings,
    course: Course,
    pids: BTreeSet<u32>,
    facts: Gpu,
    /// Names and durations of the steps so far.
    pub steps: Vec<(&'static str, Duration)>,
}

/// Moves all GPU state of a container into host memory. `None` when it has none. On every failure
/// the processes run as before, or the error says which does not.
///
/// `ahead` is told early how many bytes will come.
///
/// The processes must not be frozen. `freezer` is what thaws them should this shim die.
pub async fn suspend(
    container: &Arc<Container>,
    freezer: &Freezer,
    settings: &GpuSettings,
    course: &Course,
    ahead: &(dyn Fn(u64) + Sync),
) -> Result<Option<Suspended>, GpuError> {
    let helper = start(container, settings)?;
    let facts = helper.facts().await?;
    let mut suspended = Suspended {
        helper,
        container: Arc::clone(container),
        settings: settings.clone(),
        course: course.clone(),
        pids: BTreeSet::new(),
        facts: Gpu::default(),
        steps: Vec::new(),
    };
    let taken = tokio::select! {
        taken = suspended.take(facts, freezer, ahead) => taken,
        // A step that is under way ends before its processes tell their state, so what follows,
        // which is the caller's, waits for it.
        _ = course.stop.stopped() => Ok(()),
    };
    match taken {
        Ok(()) if suspended.pids.is_empty() => {
            suspended.release().await?;
            Ok(None)
        }
        Ok(()) => Ok(Some(suspended)),
        Err(first) => match suspended.resume().await {
            Ok(_) => Err(first),
            Err(GpuError::Lost { left, .. }) => Err(GpuError::Lost {
                first: first.to_string(),
                left,
            }),
            Err(second) => Err(GpuError::Lost {
                first: first.to_string(),
                left: second.to_string(),
            }),
        },
    }
}

impl Suspended {
    async fn take(
        &mut self,
        facts: Facts,
        freezer: &Freezer,
        ahead: &(dyn Fn(u64) + Sync),
    ) -> Result<(), GpuError> {
        let stop = self.course.stop.clone();
        let mut pids = self.find().await?;
        if pids.is_empty() {
            return Ok(());
        }
        preflight::check(&facts, &pids)?;
        self.note(&pids)?;
        let (path, value) = freezer.thaw_file();
        let guard = Op::Guard {
            path: path.to_string_lossy().into_owned(),
            value: value.into(),
        };
        self.helper.set("guard the freezer", guard).await?;
        let memory = preflight::device_memory(&facts, &pids);
        if let Some(cgroup) = self.container.cgroup() {
            let may_raise = self.settings.raise_memory_limit;
            preflight::make_room(&self.helper, &cgroup, memory, may_raise).await?;
        }
        ahead(memory);
        let huge = huge::hold(&self.helper, self.settings.thp, memory).await;
        self.facts = describe(&facts, &pids, huge);

        for _ in 0..ROUNDS {
            let begun = Instant::now();
            self.enter("gpu-lock").await?;
            self.note(&pids)?;
            self.lock(&pids).await?;
            self.steps.push(("gpu-lock", begun.elapsed()));
            if stop.reason().is_some() {
                // The caller sees the reason; here it is enough that nothing more is begun.
                return Ok(());
            }
            let begun = Instant::now();
            self.enter("gpu-checkpoint").await?;
            self.checkpoint(&pids).await?;
            self.steps.push(("gpu-checkpoint", begun.elapsed()));
            // Processes that were started meanwhile.
            pids = self.find().await?;
            if pids.is_empty() || stop.reason().is_some() {
                break;
            }
        }
        self.verify().await
    }

    async fn enter(&self, step: &'static str) -> Result<(), GpuError> {
        let failed = |error| GpuError::Host(format!("cannot begin the step {step}: {error}"));
        self.course.phase().set(step);
        self.course.journal.step(step).map_err(failed)?;
        fault::at(step).await.map_err(failed)
    }

    /// Notes who is about to be locked, for whoever has to undo it.
    fn note(&self, pids: &[u32]) -> Result<(), GpuError> {
        let noted = self.course.journal.locks(self.helper.pid(), pids);
        noted.map_err(|error| GpuError::Host(format!("cannot note the processes: {error}")))
    }

    /// Processes with CUDA state that is not in host memory yet.
    async fn find(&self) -> Result<Vec<u32>, GpuError> {
        let mut found = Vec::new();
        for (pid, state) in self.states(&self.members()).await? {
            match state {
                State::Running => found.push(pid),
                State::None if self.is_starting(pid).await? => found.push(pid),
                State::None => {}
                _ if self.pids.contains(&pid) => {}
                State::Failed => {
                    let name = evidence::name(pid);
                    return Err(GpuError::Unsupported {
                        what: format!("the CUDA state of process {pid} ({name}) has failed"),
                        remedy: "restart the container",
                    });
                }
                state => {
                    return Err(GpuError::Taken {
                        pid,
                        name: evidence::name(pid),
                        state: state.as_str(),
                    });
                }
            }
        }
        Ok(found)
    }

    /// Whether a process without CUDA state has some a moment later. One that has opened a GPU is
    /// watched for a while, and refused when the driver keeps knowing nothing of it.
    async fn is_starting(&self, pid: u32) -> Result<bool, GpuError> {
        let mut pause = STARTING_PAUSE;
        for _ in 0..STARTING {
            if evidence::held(pid).is_none() {
                return Ok(false);
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
            if self.helper.state(pid, STATE).await? == State::Running {
                return Ok(true);
            }
        }
        let remedy = "Programs that use a GPU without CUDA (graphics, video, monitoring) can't be \
                      checkpointed while they hold it";
        self.let_go(pid, State::None, remedy).map(|()| false)
    }

    /// Fails by name when a process holds a GPU.
    fn let_go(&self, pid: u32, state: State, remedy: &'static str) -> Result<(), GpuError> {
        evidence::held(pid).map_or(Ok(()), |device| {
            Err(GpuError::Holder {
                pid,
                name: evidence::name(pid),
                device,
                state: state.as_str(),
                remedy,
            })
        })
    }

    /// All processes of the container.
    fn members(&self) -> Vec<u32> {
        self.container
            .cgroup()
            .map_or_else(Vec::new, |cgroup| cgroup.pids())
    }

    async fn states(&self, pids: &[u32]) -> Result<Vec<(u32, State)>, GpuError> {
        let mut states = Vec::new();
        for pid in pids {
            states.push((*pid, self.helper.state(*pid, STATE).await?));
        }
        Ok(states)
    }

    async fn lock(&mut self, pids: &[u32]) -> Result<(), GpuError> {
        let seconds = self.settings.lock_timeout_s;
        let timeout_ms = u32::try_from(seconds.saturating_mul(1000)).unwrap_or(u32::MAX);
        // Noted first: one that is locked must be unlocked, whatever became of the others.
        self.pids.extend(pids);
        let limit = Duration::from_secs(seconds) + STATE;
        let op = |pid| Op::Lock { pid, timeout_ms };
        all(&self.helper, "lock", pids, limit, op).await
    }

    async fn checkpoint(&self, pids: &[u32]) -> Result<(), GpuError> {
        let limit = Duration::from_secs(self.settings.timeout_s);
        let op = |pid| Op::Checkpoint { pid };
        all(&self.helper, "checkpoint", pids, limit, op).await
    }

    /// Every process is checkpointed, and none holds a GPU any more.
    async fn verify(&mut self) -> Result<(), GpuError> {
        let pids: Vec<u32> = self.pids.iter().copied().collect();
        for (pid, state) in self.states(&pids).await? {
            match state {
                State::Checkpointed => {}
                State::None if !std::path::Path::new(&format!("/proc/{pid}")).exists() => {
                    self.pids.remove(&pid);
                }
                state => {
                    return Err(GpuError::Holder {
                        pid,
                        name: evidence::name(pid),
                        device: evidence::held(pid).unwrap_or_else(|| "no device".into()),
                        state: state.as_str(),
                        remedy: "Ask the workload's owner what it does with the GPU",
                    });
                }
            }
        }
        for pid in self.members() {
            if evidence::held(pid).is_some() {
                let state = self.helper.state(pid, STATE).await?;
                let remedy = "The driver has not let go of the device; see its log (dmesg)";
                self.let_go(pid, state, remedy)?;
            }
        }
        Ok(())
    }

    /// What the manifest says.
    #[must_use]
    pub fn facts(&self) -> Gpu {
        self.facts.clone()
    }

    /// Bytes that the processes have more in host memory than before.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.facts.processes.iter().map(|p| p.used_bytes).sum()
    }

    /// Moves everything back and lets CUDA calls go on. The processes must not be frozen. Returns
    /// how long each step took.
    pub async fn resume(self) -> Result<Vec<(&'static str, Duration)>, GpuError> {
        let begun = Instant::now();
        let limit = Duration::from_secs(self.settings.timeout_s);
        let pids: Vec<u32> = self.pids.iter().copied().collect();
        let mut left = revive(&self.helper, &pids, &[], limit).await;
        if left.is_empty() {
            self.release().await?;
            return Ok(vec![("gpu-restore", begun.elapsed())]);
        }
        // The helper may be what failed. A step that it had begun ends without it.
        tracing::warn!(id = %self.container.id, ?left, "once more with a new helper");
        let helper = start(&self.container, &self.settings)?;
        if let Err(error) = self.course.journal.locks(helper.pid(), &[]) {
            tracing::error!(%error, "cannot note the helper");
        }
        left = revive(&helper, &pids, &[], limit).await;
        let released = helper.set("release", Op::Release).await;
        let _ = self.release().await;
        if left.is_empty() {
            released?;
            return Ok(vec![("gpu-restore", begun.elapsed())]);
        }
        Err(GpuError::Lost {
            first: "the GPU state is in host memory".into(),
            left: left.join("; "),
        })
    }

    /// Nothing is to be undone any more: the processes are gone, or run.
    pub async fn release(&self) -> Result<(), GpuError> {
        self.helper.set("release", Op::Release).await
    }
}

fn start(container: &Container, settings: &GpuSettings) -> Result<Arc<Helper>, GpuError> {
    Helper::start(settings, container.runc.reaper(), &container.bundle).map(Arc::new)
}

/// Takes a step for several processes at the same time: two on one GPU take half as long so.
async fn all(
    helper: &Arc<Helper>,
    step: &'static str,
    pids: &[u32],
    limit: Duration,
    op: impl Fn(u32) -> Op,
) -> Result<(), GpuError> {
    let mut steps = JoinSet::new();
    for pid in pids.iter().copied() {
        let (helper, op) = (Arc::clone(helper), op(pid));
        steps.spawn(async move { helper.ask(step, pid, op, limit).await.map(drop) });
    }
    let mut result = Ok(());
    while let Some(done) = steps.join_next().await {
        result = result.and(done.unwrap_or_else(|bug| Err(GpuError::Host(bug.to_string()))));
    }
    result
}

/// What the manifest says of the GPUs in use.
fn describe(facts: &Facts, pids: &[u32], huge_pages: bool) -> Gpu {
    let used = |pid: Option<u32>, device: &kybernate_cuda::protocol::Device| -> u64 {
        let users = device.users.iter();
        users
            .filter(|user| pid.map_or(pids.contains(&user.pid), |pid| user.pid == pid))
            .map(|user| user.memory)
            .sum()
    };
    let devices = facts.devices.iter().filter_map(|device| {
        let used_bytes = used(None, device);
        (used_bytes > 0).then(|| GpuDevice {
            uuid: device.uuid.clone(),
            name: device.name.clone(),
            capability: device.capability.clone(),
            minor: device.minor,
            memory_bytes: device.memory_total,
            used_bytes,
        })
    });
    let processes = pids.iter().map(|pid| GpuProcess {
        pid: evidence::inner_pid(*pid).unwrap_or(0),
        used_bytes: facts.devices.iter().map(|d| used(Some(*pid), d)).sum(),
    });
    Gpu {
        driver: facts.driver.clone(),
        cuda: facts.cuda,
        devices: devices.collect(),
        processes: processes.collect(),
        huge_pages,
    }
}
