//! Pods: some last as long as the soak, the others move their containers to another pod.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use kybernate_hooks::cri::v1::ListPodSandboxRequest;
use kybernate_integration::{Lab, Pod, cri::remove_pod, node};

use crate::{
    random::Random,
    slot::Slot,
    tally::Outcome,
    world::{TRIES, World},
};

/// Containers of a pod.
const SLOTS: u64 = 3;
const MOVE: &str = "move of a pod";

#[derive(Debug)]
pub struct PodOfSlots {
    world: Arc<World>,
    random: Random,
    pub pod: Pod,
    slots: Vec<Slot>,
}

impl PodOfSlots {
    /// Starts a pod and its containers.
    pub async fn start(world: &Arc<World>, number: u64) -> Result<Self> {
        let slots = (0..SLOTS).map(|slot| Slot::new(world, number, slot));
        let mut this = Self {
            world: world.clone(),
            random: Random::new(world.seed, 10_000 + number),
            pod: world.cx.pod().start().await?,
            slots: slots.collect(),
        };
        for slot in &mut this.slots {
            slot.bring_back(&this.pod).await?;
        }
        Ok(this)
    }

    /// Works until the end of the soak.
    pub async fn work(&mut self, lasts: bool) {
        while !self.world.is_over() {
            let turn = self.random.millis(15_000, 45_000);
            let until = (Instant::now() + turn).min(self.world.end);
            let pod = &self.pod;
            let mut slots = self.slots.iter_mut();
            let (a, b, c) = (slots.next(), slots.next(), slots.next());
            tokio::join!(
                each(a, pod, until),
                each(b, pod, until),
                each(c, pod, until)
            );
            if lasts || self.world.is_over() {
                continue;
            }
            if let Err(error) = self.move_on().await {
                let id = &self.pod.id;
                self.world
                    .fail(&error.context(format!("{MOVE}, {id} at first")));
            }
        }
    }

    /// All containers into archives, the pod away, and all of them back in another one.
    async fn move_on(&mut self) -> Result<()> {
        let world = self.world.clone();
        let _gate = world.gate.read().await;
        let _busy = world.busy.acquire_many(2).await?;
        let began = world.restarts();
        let (pod, slots) = (self.pod.clone(), &mut self.slots);
        archive_all(slots, &pod).await?;
        again(&world, "removal of a pod", || node::remove(&pod, &pod.lab)).await?;
        let tried = Arc::new(Mutex::new(Vec::new()));
        let start = || another(world.clone(), tried.clone());
        self.pod = again(&world, "another pod", start).await?;
        for slot in &mut self.slots {
            let restarts = world.restarts();
            match slot.bring_back(&self.pod).await {
                Err(error) if world.excuses(restarts, &error) => slot.settle(&self.pod).await?,
                other => other?,
            }
        }
        let outcome = if world.was_away(began) {
            Outcome::Failed("containerd restarted")
        } else {
            Outcome::Done
        };
        world.tally.note(MOVE, outcome);
        Ok(())
    }

    /// Everything goes on, and the pod goes.
    pub async fn end(mut self) -> Result<()> {
        for slot in &mut self.slots {
            slot.goes_on().await.context("at the end")?;
            slot.remove().await.context("at the end")?;
            if let Some(saved) = slot.saved.take() {
                std::fs::remove_file(saved.archive.file())?;
            }
        }
        node::remove(&self.pod, &self.pod.lab).await
    }
}

async fn each(slot: Option<&mut Slot>, pod: &Pod, until: Instant) {
    let Some(slot) = slot else { return };
    while Instant::now() < until && !slot.world.is_over() {
        if let Err(error) = slot.turn(pod).await {
            slot.world.fail(&error);
        }
        let pause = slot.random.millis(100, 1500);
        tokio::time::sleep(pause).await;
    }
}

async fn archive_all(slots: &mut [Slot], pod: &Pod) -> Result<()> {
    for slot in slots {
        for tried in 0.. {
            slot.replace_unknown(pod).await?;
            let restarts = slot.world.restarts();
            let error = match slot.exit().await {
                Ok(()) => break,
                Err(error) => error,
            };
            if !slot.world.excuses(restarts, &error) || tried == TRIES {
                return Err(error);
            }
            slot.settle(pod).await?;
        }
        slot.ending = true;
        slot.container = None;
    }
    Ok(())
}

/// Does something again for as long as containerd's restarts cut it off.
async fn again<T, F, Fut>(world: &World, what: &str, work: F) -> Result<T>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    for _ in 0..TRIES {
        let restarts = world.containerd().await?;
        match work().await {
            Err(error) if world.excuses(restarts, &error) => {}
            other => return other.context(what.to_owned()),
        }
    }
    bail!("{what}: cut off {TRIES} times")
}

/// Starts a pod, and removes what is left of those whose start was cut off before.
async fn another(world: Arc<World>, tried: Arc<Mutex<Vec<String>>>) -> Result<Pod> {
    let before = tried.lock().map(|names| names.clone()).unwrap_or_default();
    for name in before {
        remove_named(&world.cx.lab, &name).await?;
    }
    let builder = world.cx.pod();
    let name = builder.config.metadata.clone().unwrap_or_default().name;
    if let Ok(mut names) = tried.lock() {
        names.push(name);
    }
    let _making = world.making.read().await;
    builder.start().await
}

/// Removes what is left of a pod whose start has failed.
async fn remove_named(lab: &Lab, name: &str) -> Result<()> {
    let mut cri = lab.cri();
    let listed = cri
        .list_pod_sandbox(ListPodSandboxRequest::default())
        .await?;
    for pod in listed.into_inner().items {
        if pod.metadata.is_some_and(|metadata| metadata.name == name) {
            remove_pod(lab, &pod.id).await?;
        }
    }
    Ok(())
}
