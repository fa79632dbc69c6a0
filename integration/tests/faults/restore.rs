//! Faults in the middle of a restore: the container is not there, and nothing of it.

use std::{fs, time::Instant};

use anyhow::{Context, Result, ensure};
use kybernate_config::names;
use kybernate_integration::{
    Case, Container, Pod,
    checkpoint::{Archive, take},
    workload::Workload,
};

use crate::{
    fault::{Fault, Kind},
    table::Run,
    world::{Has, World, container, look, nothing_left, remove},
};

const STEPS: [&str; 4] = ["stage", "apply", "restore", "restored"];
const KINDS: [Kind; 4] = [Kind::Error, Kind::Full, Kind::Panic, Kind::KillShim];

pub async fn faults(cx: Case, has: Has, all: bool) -> Result<()> {
    let mut cells = Vec::new();
    let gpu = (has == Has::Gpu).then_some("gpu-wake");
    for step in STEPS.into_iter().chain(gpu) {
        cells.extend(KINDS.map(|kind| (step, kind)));
    }
    if !all {
        cells.retain(|cell| [("apply", Kind::Full), ("restored", Kind::KillShim)].contains(cell));
    }
    let world = World::new(&cx, has).await?;
    let archive = take(&world.container, &["--exit"]).await?;
    world.container.wait_exit().await?;
    let at = world.work.count(&world.container)?;
    remove(&world.pod, &cx.lab).await?;
    let mut table = Run::default();
    let operation = format!("restore, {}", has.name());
    for cell in cells {
        let begun = Instant::now();
        let result = fails(&cx, has, &world.work, &archive, at, cell).await;
        table.note(&operation, cell, begun, result);
    }
    fs::remove_file(archive.file())?;
    table.end()
}

async fn fails(
    cx: &Case,
    has: Has,
    work: &Workload,
    archive: &Archive,
    at: u64,
    (step, kind): (&'static str, Kind),
) -> Result<()> {
    let node = look(&cx.lab).await?;
    let pod = cx.pod().start().await?;
    {
        let _fault = Fault::set(&cx.lab, step, kind)?;
        let error = restore(cx, has, work, &pod, archive).await.err();
        let message = format!("{:#}", error.context("restored all the same")?);
        if let Some(cause) = kind.cause() {
            ensure!(message.contains(cause), "no cause {cause:?} in: {message}");
        }
        if matches!(kind, Kind::Error | Kind::Full) {
            ensure!(message.contains(step), "no step {step} in: {message}");
        }
    }
    remove(&pod, &cx.lab).await?;
    node.is_unchanged().await?;
    nothing_left(&cx.lab)?;
    let next = cx.pod().start().await?;
    let restored = restore(cx, has, work, &next, archive).await;
    work.went_on(&restored.context("the next restore")?, at)
        .await?;
    remove(&next, &cx.lab).await
}

async fn restore(
    cx: &Case,
    has: Has,
    work: &Workload,
    pod: &Pod,
    archive: &Archive,
) -> Result<Container> {
    container(has, work, pod, &cx.lab)?
        .attempt(1)
        .annotation(names::RESTORE_FROM, &archive.path)
        .start()
        .await
}
