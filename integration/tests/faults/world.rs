//! What has to hold after a fault.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use kybernate_config::names;
use kybernate_integration::{
    Case, Container, Lab, Pod,
    checkpoint::{Archive, take},
    cri::ContainerBuilder,
    eventually, gpu,
    node::Node,
    tasks,
    workload::Workload,
};

pub use kybernate_integration::node::{nothing_left, remove};

/// Bytes of memory that the containers may have.
const LIMIT: i64 = 96 << 20;
/// The bound of the promise.
pub const PROMISE: Duration = Duration::from_secs(10);

/// Whether a workload has GPU state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Has {
    /// Memory and files.
    Cpu,
    /// The state of a GPU's double, in two processes.
    Gpu,
}

impl Has {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Gpu => "GPU double",
        }
    }

    /// What runs.
    pub fn workload(self) -> Workload {
        match self {
            Self::Cpu => Workload::counter(),
            Self::Gpu => Workload::gpu(2),
        }
    }
}

/// A container of a kind, with a memory limit that its GPU state does not fit below, so that
/// checkpoints raise it.
pub fn container(has: Has, work: &Workload, pod: &Pod, lab: &Lab) -> Result<ContainerBuilder> {
    Ok(match has {
        Has::Cpu => work.container(pod),
        Has::Gpu => gpu::container(work, pod, lab)?,
    }
    .resources(|resources| resources.memory_limit_in_bytes = LIMIT))
}

/// A workload that counts.
#[derive(Debug)]
pub struct World {
    pub has: Has,
    pub work: Workload,
    pub pod: Pod,
    pub container: Container,
}

impl World {
    /// Starts one in a pod of its own.
    pub async fn new(cx: &Case, has: Has) -> Result<Self> {
        let (work, pod) = (has.workload(), cx.pod().start().await?);
        let container = container(has, &work, &pod, &cx.lab)?.start().await?;
        work.is_well(&container, 0).await?;
        Ok(Self {
            has,
            work,
            pod,
            container,
        })
    }

    /// One whose output nobody need read: without a shim nobody does.
    pub async fn mute(cx: &Case, has: Has) -> Result<Self> {
        let (work, pod) = (has.workload(), cx.pod().start().await?);
        let program = if has == Has::Gpu { "gpu 2" } else { "counter" };
        let container = container(has, &work, &pod, &cx.lab)?
            .shell(&format!("trap '' PIPE; exec {program}"))
            .start()
            .await?;
        work.is_well(&container, 0).await?;
        Ok(Self {
            has,
            work,
            pod,
            container,
        })
    }

    fn lab(&self) -> &Arc<Lab> {
        &self.container.lab
    }

    /// It goes on, the node is as before, and a checkpoint of it can be taken.
    pub async fn is_unharmed(&self, before: u64, node: &Node) -> Result<()> {
        let counted = self.work.is_well(&self.container, before).await;
        counted.context("the workload")?;
        node.is_unchanged().await?;
        nothing_left(self.lab())?;
        self.remains().await?.have_their_limit()?;
        let archive = take(&self.container, &["--level", "fast"]).await;
        fs::remove_file(archive.context("the next checkpoint")?.file())?;
        Ok(())
    }

    /// What is needed to look at it once nobody serves it any more.
    pub async fn remains(&self) -> Result<Remains> {
        let mut pids = tasks::pids(self.lab(), &self.container.id).await?;
        pids.sort_unstable();
        let first = *pids.first().context("no process")?;
        let cgroup = cgroup_of(self.lab(), first, "freezer")?;
        let memory = cgroup_of(self.lab(), first, "memory")?;
        Ok(Remains {
            lab: self.lab().clone(),
            has: self.has,
            pids,
            cgroup,
            memory,
        })
    }
}

/// Processes of a container, and the cgroup that freezes them.
#[derive(Debug)]
pub struct Remains {
    lab: Arc<Lab>,
    has: Has,
    pids: Vec<u32>,
    cgroup: PathBuf,
    memory: PathBuf,
}

impl Remains {
    /// All processes run within the promise: none is frozen, traced or waits for its GPU.
    pub async fn run(&self) -> Result<()> {
        eventually("thawed and untraced", PROMISE, || async {
            ensure!(!is_frozen(&self.cgroup), "the cgroup is frozen");
            for pid in &self.pids {
                let status = self.lab.path(format!("/proc/{pid}/status"));
                let status = fs::read_to_string(status).context("a process has ended")?;
                ensure!(
                    field(&status, "TracerPid:") == "0",
                    "process {pid} is traced"
                );
            }
            Ok(Some(()))
        })
        .await?;
        let before = self.switches()?;
        eventually("processes that run", PROMISE, || async {
            let now = self.switches()?;
            let moves = before.iter().zip(&now).all(|(before, now)| now > before);
            Ok(moves.then_some(()))
        })
        .await?;
        if self.has == Has::Gpu {
            for pid in &self.pids {
                self.runs_on_its_gpu(*pid).await?;
            }
        }
        eventually("the memory limit", PROMISE, || async {
            self.have_their_limit().map(Some)
        })
        .await
    }

    /// Their memory limit is what it was.
    pub fn have_their_limit(&self) -> Result<()> {
        let limits = ["memory.max", "memory.limit_in_bytes"];
        let mut limits = limits
            .iter()
            .filter_map(|name| fs::read_to_string(self.memory.join(name)).ok());
        let limit = limits.next().context("no memory limit")?;
        ensure!(
            limit.trim() == LIMIT.to_string(),
            "the memory limit is {limit}"
        );
        Ok(())
    }

    async fn runs_on_its_gpu(&self, pid: u32) -> Result<()> {
        let library = format!("{}/libcuda.so.1", kybernate_integration::lab::DOUBLE);
        let pid = pid.to_string();
        let ask = [
            names::CUDA_BINARY,
            "--get-state",
            "--pid",
            &pid,
            "--libcuda",
            &library,
        ];
        eventually("RUNNING", PROMISE, || async {
            let state = self.lab.exec(&ask)?;
            ensure!(
                state.trim() == "running",
                "process {pid} is {}",
                state.trim()
            );
            Ok(Some(()))
        })
        .await
    }

    /// How often each process has waited so far: one that runs does it again and again.
    fn switches(&self) -> Result<Vec<u64>> {
        let of = |pid: &u32| -> Result<u64> {
            let status = self.lab.path(format!("/proc/{pid}/status"));
            let status = fs::read_to_string(status).context("a process has ended")?;
            Ok(field(&status, "voluntary_ctxt_switches:").parse()?)
        };
        self.pids.iter().map(of).collect()
    }

    /// Nothing of them is there any more, within the promise.
    pub async fn are_gone(&self) -> Result<()> {
        eventually("an end of the processes", PROMISE, || async {
            let left: BTreeSet<_> = self
                .pids
                .iter()
                .filter(|pid| self.lab.path(format!("/proc/{pid}")).exists())
                .collect();
            ensure!(left.is_empty(), "processes {left:?} are there");
            ensure!(!self.cgroup.exists(), "the cgroup is there");
            Ok(Some(()))
        })
        .await
    }
}

/// The node, once what was removed before is gone.
pub async fn look(lab: &Arc<Lab>) -> Result<Node> {
    // A shim ends a moment after its pod.
    tokio::time::sleep(Duration::from_millis(500)).await;
    Node::look(lab)
}

/// No archive, whole or in part.
pub fn no_archive(archive: &Archive, lab: &Lab) -> Result<()> {
    ensure!(
        !archive.file().exists(),
        "an archive of a failed checkpoint"
    );
    let directory = lab.path(kybernate_integration::checkpoint::ARCHIVES);
    for staging in fs::read_dir(directory)?.flatten() {
        let partial = staging.path().join("archive.tar.zst");
        ensure!(!partial.exists(), "{} is left", partial.display());
    }
    Ok(())
}

/// The cgroup of a process for a controller, seen from here.
fn cgroup_of(lab: &Lab, pid: u32, controller: &str) -> Result<PathBuf> {
    // Read in the lab, whose cgroup namespace shows paths below its own root.
    let text = lab.exec(&["cat", &format!("/proc/{pid}/cgroup")])?;
    let find = |controller: &str| {
        text.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            (controllers == controller).then(|| path.trim_start_matches('/').to_owned())
        })
    };
    if lab.path("/sys/fs/cgroup/cgroup.controllers").exists() {
        let path = find("").context("no cgroup")?;
        return Ok(lab.path("/sys/fs/cgroup").join(path));
    }
    let path = find(controller).with_context(|| format!("no {controller} cgroup"))?;
    Ok(lab.path("/sys/fs/cgroup").join(controller).join(path))
}

fn is_frozen(cgroup: &Path) -> bool {
    let read = |name: &str| fs::read_to_string(cgroup.join(name)).unwrap_or_default();
    let state = read("freezer.state");
    (!state.is_empty() && state.trim() != "THAWED") || read("cgroup.events").contains("frozen 1")
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_default().trim()
}
