//! Faults in the middle of a restore: the container is not there, and nothing of it. Or it is, where
//! the fault is none for it.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use kybernate_config::names;
use kybernate_integration::{
    Case, Container,
    checkpoint::{Archive, take},
    cri::ContainerBuilder,
    eventually,
    workload::Workload,
};

use crate::{
    fault::{Fault, Kind},
    table::Run,
    world::{Has, PROMISE, World, container, look, nothing_left, remove},
};

const STEPS: [&str; 4] = ["stage", "apply", "restore", "restored"];
/// At every step.
const KINDS: [Kind; 7] = [
    Kind::Error,
    Kind::Full,
    Kind::Hang,
    Kind::Panic,
    Kind::KillGuardian,
    Kind::KillContainerd,
    Kind::KillShim,
];
/// While CRIU runs, which is for most of this step.
const IN_CRIU: [Kind; 3] = [Kind::KillCriu, Kind::StopCriu, Kind::KillRunc];
/// The deadline of a call whose restore hangs.
const DEADLINE: Duration = Duration::from_secs(2);

/// A few of them, for every run of the tests.
const SHORT: [(&str, Kind); 4] = [
    ("stage", Kind::Hang),
    ("apply", Kind::Full),
    ("restore", Kind::KillRunc),
    ("restored", Kind::KillShim),
];

fn cells(has: Has) -> Vec<(&'static str, Kind)> {
    let gpu = (has == Has::Gpu).then_some("gpu-wake");
    let mut cells = Vec::new();
    for step in STEPS.into_iter().chain(gpu) {
        // By then the restore is done for the journal, and nobody guards it.
        let guarded = |kind: &Kind| step != "gpu-wake" || *kind != Kind::KillGuardian;
        let kinds = KINDS.into_iter().filter(guarded);
        cells.extend(kinds.map(|kind| (step, kind)));
        if step == "restore" {
            cells.extend(IN_CRIU.map(|kind| (step, kind)));
        }
        if has == Has::Gpu && matches!(step, "restored" | "gpu-wake") {
            cells.push((step, Kind::KillHelper));
        }
    }
    cells
}

pub async fn faults(cx: Case, has: Has, all: bool) -> Result<()> {
    let mut cells = cells(has);
    if !all {
        cells.retain(|cell| SHORT.contains(cell));
    }
    let world = World::new(&cx, has).await?;
    let archive = take(&world.container, &["--exit"]).await?;
    world.container.wait_exit().await?;
    let at = world.work.count(&world.container)?;
    remove(&world.pod, &cx.lab).await?;
    let mut table = Run::default();
    let operation = format!("restore, {}", has.name());
    for (step, kind) in cells {
        let begun = Instant::now();
        let result = fails(&cx, has, &world.work, &archive, at, (step, kind)).await;
        table.note(&operation, (step, kind.name()), begun, result);
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
    let fault = if IN_CRIU.contains(&kind) {
        Fault::in_criu(&cx.lab, "restore.log")?
    } else {
        Fault::set(&cx.lab, step, kind)?
    };
    let limit = match kind {
        Kind::Hang => Some(DEADLINE),
        // It has to get there.
        Kind::StopCriu => Some(DEADLINE * 3),
        _ => None,
    };
    let restoring = {
        let container = container(has, work, &pod, &cx.lab)?;
        let path = archive.path.clone();
        tokio::spawn(async move { restore(container, &path, limit).await })
    };
    // What hangs, hangs for as long as it is looked at.
    let mut hangs = None;
    if kind.waits() {
        let struck = fault.strike(kind, &[]).await;
        if struck.is_err() {
            let _ = restoring.await;
            return struck;
        }
    } else {
        hangs = Some(fault);
    }
    let restored = restoring.await?;
    if kind == Kind::KillContainerd {
        cx.lab.start_containerd().await?;
    }
    if kind == Kind::KillGuardian {
        work.went_on(&restored?, at).await?;
    } else {
        let error = restored.err().context("restored all the same")?;
        refused(&format!("{error:#}"), step, kind)?;
    }
    if kind != Kind::Hang {
        hangs = None;
    }
    remove(&pod, &cx.lab).await?;
    eventually("nothing left", PROMISE, || async {
        nothing_left(&cx.lab).map(Some)
    })
    .await?;
    eventually("an end of the shim", PROMISE, || async {
        ensure!(pod.shims()?.is_empty(), "the shim of the pod is there");
        Ok(Some(()))
    })
    .await?;
    drop(hangs);
    if kind != Kind::KillContainerd {
        node.is_unchanged().await?;
    }
    let next = cx.pod().start().await?;
    let next_one = container(has, work, &next, &cx.lab)?;
    let restored = restore(next_one, &archive.path, None).await;
    work.went_on(&restored.context("the next restore")?, at)
        .await?;
    remove(&next, &cx.lab).await
}

fn refused(message: &str, step: &str, kind: Kind) -> Result<()> {
    if matches!(kind, Kind::Hang | Kind::StopCriu) {
        // The caller's own deadline, and in its own words.
        let says = ["was cancelled", "Deadline"].map(|part| message.contains(part));
        ensure!(says.contains(&true), "no deadline in: {message}");
        return Ok(());
    }
    let cause = kind.cause().unwrap_or_default();
    ensure!(message.contains(cause), "no cause {cause:?} in: {message}");
    if matches!(kind, Kind::Error | Kind::Full) {
        ensure!(message.contains(step), "no step {step} in: {message}");
    }
    Ok(())
}

async fn restore(
    container: ContainerBuilder,
    archive: &str,
    limit: Option<Duration>,
) -> Result<Container> {
    let container = container
        .attempt(1)
        .annotation(names::RESTORE_FROM, archive)
        .create()
        .await?;
    container.start_within(limit).await?;
    Ok(container)
}
