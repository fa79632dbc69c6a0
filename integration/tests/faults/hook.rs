//! The hook between kubelet and containerd dies in the middle of a checkpoint that it has asked for.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kybernate_integration::{
    Case, eventually,
    hook::{CHECKPOINTS, Hook, SOCKET, checkpoint, left},
    node::Node,
};

use crate::{
    checkpoint::steps,
    fault::{Fault, Kind},
    table::Run,
    world::{Has, PROMISE, World},
};

/// The call's own.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The shim finds out that nobody waits any more: after each fault the container goes on and can be
/// checkpointed, and the next hook leaves no partial archive.
pub async fn killed(cx: Case, has: Has, all: bool) -> Result<()> {
    let steps = if all { steps(has) } else { vec!["pages"] };
    let mut table = Run::default();
    let operation = format!("checkpoint through the hook, {}", has.name());
    let mut world = World::new(&cx, has).await?;
    // What the first one leaves behind stays.
    drop(Hook::start(&cx.lab).await?);
    for step in steps {
        let begun = Instant::now();
        let result = dies(&cx, &world, step).await;
        if !table.note(&operation, (step, Kind::KillHook.name()), begun, result) {
            world = World::new(&cx, has).await?;
        }
    }
    table.end()
}

async fn dies(cx: &Case, world: &World, step: &'static str) -> Result<()> {
    let node = Node::look(&cx.lab)?;
    let before = world.work.count(&world.container)?;
    let hook = Hook::start(&cx.lab).await?;
    let path = format!("{CHECKPOINTS}/killed-{step}.tar");
    let fault = Fault::set(&cx.lab, step, Kind::KillHook)?;
    let taking = {
        let (container, path) = (world.container.clone(), path.clone());
        tokio::spawn(async move { checkpoint(&container, &path, TIMEOUT).await })
    };
    let struck = fault.strike(Kind::KillHook, &[]).await;
    let answer = taking.await?;
    struck?;
    answer.err().context("an answer of a killed hook")?;
    drop(hook);
    ensure!(!cx.lab.path(&path).exists(), "an archive that nobody got");
    world
        .work
        .is_well(&world.container, before)
        .await
        .context("the workload without the hook")?;

    // As its supervisor starts it.
    let next = Hook::spawn(&cx.lab, &[], None).await?;
    cx.lab.route_cri(Some(SOCKET));
    next.answers().await?;
    eventually("nothing in kubelet's directory", PROMISE, || async {
        let left = left(&cx.lab)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(Some(()))
    })
    .await?;
    checkpoint(&world.container, &path, TIMEOUT)
        .await
        .context("the next checkpoint through the hook")?;
    std::fs::remove_file(cx.lab.path(&path))?;
    drop(next);
    world.is_unharmed(before, &node).await
}
