//! One container of a pod and what is known of it, whatever becomes of its runtime.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use kybernate_config::names;
use kybernate_hooks::{
    containerd::{task::Status, tasks::ResumeTaskRequest},
    cri::v1::ContainerState,
};
use kybernate_integration::{
    Container, Pod,
    checkpoint::{Archive, run},
    cri::{ContainerBuilder, remove_containers},
    eventually, gpu, tasks,
    workload::Workload,
};

use crate::{
    random::Random,
    tally::Outcome,
    world::{World, promised},
};

/// How long a container that runs may take to show it, on a machine that is busy.
const ALIVE: Duration = Duration::from_secs(40);
/// No workload counts faster than this, in numbers a second.
const FASTEST: f64 = 10.0;
/// How far a log may be behind.
const BEHIND: Duration = Duration::from_secs(30);

/// What runs in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ledger,
    Counter,
    Gpu,
}

/// An archive, and between which numbers it was taken.
#[derive(Debug, Clone)]
pub struct Saved {
    pub archive: Archive,
    from: u64,
    to: u64,
}

#[derive(Debug)]
pub struct Slot {
    pub world: Arc<World>,
    pub random: Random,
    pub kind: Kind,
    pub work: Workload,
    name: String,
    attempt: u32,
    /// What runs, or should.
    pub container: Option<Container>,
    /// Whether it is about to be ended.
    pub ending: bool,
    /// What it has counted to, at least.
    pub floor: u64,
    /// containerd's restarts after which it was looked at.
    seen: u64,
    pub saved: Option<Saved>,
}

impl Slot {
    pub fn new(world: &Arc<World>, pod: u64, number: u64) -> Self {
        // The double of a GPU costs two more programs, so there are few.
        let kind = match (pod % 3, number) {
            (0, 0) => Kind::Gpu,
            (_, 2) => Kind::Counter,
            _ => Kind::Ledger,
        };
        let work = match kind {
            Kind::Ledger => Workload::ledger(4),
            Kind::Counter => Workload::counter(),
            Kind::Gpu => Workload::gpu(1),
        };
        Self {
            world: world.clone(),
            random: Random::new(world.seed, pod * 100 + number),
            kind,
            work,
            name: format!("app-{number}"),
            attempt: 0,
            container: None,
            ending: false,
            floor: 0,
            seen: 0,
            saved: None,
        }
    }

    /// Replaces a container that containerd has lost track of, as kubelet does: the CRI says so of
    /// one that was paused when containerd started, or whose shim did not answer within 2 s then.
    pub async fn replace_unknown(&mut self, pod: &Pod) -> Result<()> {
        let world = self.world.clone();
        while self.seen != world.restarts() {
            let restarts = world.containerd().await?;
            let Some(container) = self.container.clone() else {
                break;
            };
            match container.status().await {
                Ok(status) => {
                    if status.state() == ContainerState::ContainerUnknown {
                        self.ending = true;
                        self.settle(pod).await?;
                        let lost = Outcome::Failed("containerd lost track of it");
                        world.tally.note("restart of containerd", lost);
                    }
                    self.seen = restarts;
                }
                Err(error) if world.excuses(restarts, &error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn builder(&self, pod: &Pod) -> Result<ContainerBuilder> {
        let builder = match self.kind {
            Kind::Gpu => gpu::container(&self.work, pod, &pod.lab)?,
            _ => self.work.container(pod),
        };
        let named = builder.edit(|config| {
            config.metadata.get_or_insert_default().name = self.name.clone();
        });
        Ok(named.attempt(self.attempt))
    }

    pub fn running(&self) -> Result<&Container> {
        self.container.as_ref().context("nothing runs")
    }

    /// It counts beyond what it had counted to, and never was wrong.
    pub async fn goes_on(&mut self) -> Result<()> {
        let container = self.container.clone().context("nothing runs")?;
        let floor = self.floor;
        let what = format!("{} counts beyond {floor}", self.work.name);
        let counted = eventually(&what, ALIVE, || async {
            let count = self.work.counted(&container)?;
            Ok((count > floor).then_some(count))
        })
        .await;
        let counted = match counted {
            Ok(counted) => counted,
            Err(error) => {
                let now = self.work.counted(&container).unwrap_or(0);
                promised!(
                    now >= floor,
                    "{} went back from {floor} to {now}",
                    container.id
                );
                return Err(error.context(format!("{} stands still at {now}", container.id)));
            }
        };
        self.floor = counted;
        Ok(())
    }

    /// The number now, before a checkpoint.
    pub fn mark(&self) -> Result<(u64, Instant)> {
        Ok((self.work.counted(self.running()?)?, Instant::now()))
    }

    /// Keeps a good archive in place of the one before.
    pub async fn keep(&mut self, archive: Archive, (from, since): (u64, Instant)) -> Result<()> {
        let lab = &self.world.cx.lab;
        let verified = run(lab, &["kybernate", "verify", &archive.path]).await?;
        promised!(
            verified.code == 0,
            "an archive that was published: {}",
            verified.stderr
        );
        let passed = (since.elapsed() + BEHIND).as_secs_f64();
        let to = from + (passed * FASTEST).ceil() as u64;
        if let Some(old) = self.saved.replace(Saved { archive, from, to }) {
            fs::remove_file(old.archive.file())?;
        }
        Ok(())
    }

    /// Takes the container away, which has ended or is to.
    pub async fn remove(&mut self) -> Result<()> {
        self.ending = true;
        let container = self.running()?.clone();
        self.work
            .was_never_wrong(&container)
            .map_err(|error| crate::world::Broken(format!("{error:#}")))?;
        container.stop(0).await?;
        container.remove().await?;
        self.container = None;
        Ok(())
    }

    /// Lets it go on from its archive, or begin anew where there is none.
    pub async fn bring_back(&mut self, pod: &Pod) -> Result<()> {
        self.attempt += 1;
        let mut builder = self.builder(pod)?;
        let saved = self.saved.clone();
        if let Some(saved) = &saved {
            builder = builder.annotation(names::RESTORE_FROM, &saved.archive.path);
        }
        let world = self.world.clone();
        let started = async {
            let created = {
                let _making = world.making.read().await;
                builder.create().await?
            };
            created.start().await?;
            Ok::<_, anyhow::Error>(created)
        };
        let what = if saved.is_some() { "restore" } else { "start" };
        let started = started.await.context(what)?;
        self.container = Some(started.clone());
        self.ending = false;
        self.floor = saved.as_ref().map_or(0, |saved| saved.from);
        self.goes_on().await?;
        if let Some(Saved { from, to, .. }) = saved {
            let first = self.work.first(&started)?;
            promised!(
                (from..=to).contains(&first),
                "taken between {from} and {to}, {} goes on at {first}",
                started.id
            );
        }
        Ok(())
    }

    /// After something was cut off: what nobody has ended has to run, what was to end is brought
    /// back.
    pub async fn settle(&mut self, pod: &Pod) -> Result<()> {
        let world = self.world.clone();
        for _ in 0..crate::world::TRIES {
            let restarts = world.containerd().await?;
            match self.try_settle(pod).await {
                Err(error) if world.excuses(restarts, &error) => {}
                other => return other,
            }
        }
        anyhow::bail!("cut off too often")
    }

    async fn try_settle(&mut self, pod: &Pod) -> Result<()> {
        if let Some(container) = self.container.clone().filter(|_| !self.ending) {
            let lab = &self.world.cx.lab;
            let status = tasks::get(lab, &container.id).await?.status();
            promised!(
                matches!(status, Status::Running | Status::Paused),
                "nobody has ended {}, and it is {status:?}",
                container.id
            );
            let known = container.status().await?.state();
            if known == ContainerState::ContainerUnknown {
                self.ending = true;
                self.clear(pod).await?;
                return self.bring_back(pod).await;
            }
            if status == Status::Paused {
                let container_id = container.id.clone();
                let resume = ResumeTaskRequest { container_id };
                lab.tasks().resume(resume).await?;
            }
            return self.goes_on().await;
        }
        self.clear(pod).await?;
        self.bring_back(pod).await
    }

    /// Removes all that is in the pod of this slot, as kubelet does when it has lost track.
    async fn clear(&mut self, pod: &Pod) -> Result<()> {
        remove_containers(&pod.lab, &pod.id, |name| name == self.name).await?;
        self.container = None;
        Ok(())
    }

    /// Whether a checkpoint that failed has left nothing that looks like an archive.
    pub fn has_no_archive(archive: &Archive, said: &str) -> Result<()> {
        promised!(
            !archive.file().exists(),
            "an archive of a checkpoint that failed with: {said}"
        );
        ensure!(!said.trim().is_empty(), "a failure without a word");
        Ok(())
    }
}
