//! Faults in the middle of a checkpoint.

use std::{fs, time::Instant};

use anyhow::{Context, Result, ensure};
use kybernate_integration::{
    Case,
    checkpoint::{Archive, Finished, run},
    eventually,
    node::Node,
};

use crate::{
    fault::{Fault, Kind},
    table::Run,
    world::{Has, PROMISE, World, look, no_archive, nothing_left, remove},
};

/// Steps of a checkpoint without a GPU.
const STEPS: [&str; 7] = [
    "freeze", "dump", "pages", "rootfs", "thaw", "compress", "sync",
];
/// Steps that a GPU adds.
const GPU_STEPS: [&str; 3] = ["gpu-lock", "gpu-checkpoint", "gpu-restore"];

/// All steps, in their order.
pub fn steps(has: Has) -> Vec<&'static str> {
    let mut steps = STEPS.to_vec();
    if has == Has::Gpu {
        steps.splice(0..0, GPU_STEPS[..2].iter().copied());
        let thaw = steps.iter().position(|step| *step == "thaw").unwrap_or(0);
        steps.insert(thaw + 1, GPU_STEPS[2]);
    }
    steps
}

/// Faults after which the shim lives.
fn survived(has: Has, step: &str) -> Vec<Kind> {
    let mut kinds = vec![Kind::Error, Kind::Full, Kind::Hang, Kind::Panic];
    if step == "pages" {
        kinds.extend([Kind::KillCriu, Kind::StopCriu, Kind::KillRunc]);
    }
    if has == Has::Gpu && !["gpu-lock", "compress", "sync"].contains(&step) {
        kinds.push(Kind::KillHelper);
    }
    kinds.extend([Kind::KillGuardian, Kind::KillContainerd]);
    kinds
}

/// A few of them, for every run of the tests.
fn short(has: Has) -> Vec<(&'static str, Kind)> {
    match has {
        Has::Cpu => vec![
            ("freeze", Kind::Panic),
            ("pages", Kind::Full),
            ("pages", Kind::KillRunc),
            ("rootfs", Kind::Hang),
            ("sync", Kind::Error),
        ],
        Has::Gpu => vec![
            ("gpu-checkpoint", Kind::Hang),
            ("pages", Kind::KillHelper),
            ("gpu-restore", Kind::Panic),
        ],
    }
}

/// The shim lives: after each fault the container goes on and can be checkpointed.
pub async fn survived_faults(cx: Case, has: Has, all: bool) -> Result<()> {
    let cells = if all {
        let of = |step| {
            survived(has, step)
                .into_iter()
                .map(move |kind| (step, kind))
        };
        steps(has).into_iter().flat_map(of).collect()
    } else {
        short(has)
    };
    let mut table = Run::default();
    let operation = format!("checkpoint, {}", has.name());
    let mut world = World::new(&cx, has).await?;
    for cell in cells {
        let begun = Instant::now();
        let result = survives(&cx, &world, cell).await;
        if !table.note(&operation, (cell.0, cell.1.name()), begun, result) {
            world = World::new(&cx, has).await?;
        }
    }
    table.end()
}

async fn survives(cx: &Case, world: &World, (step, kind): (&'static str, Kind)) -> Result<()> {
    let node = Node::look(&cx.lab)?;
    let before = world.work.count(&world.container)?;
    let archive = Archive::new(&cx.lab)?;
    let fault = Fault::set(&cx.lab, step, kind)?;
    let taking = {
        let (archive, id) = (archive.clone(), world.container.id.clone());
        let limit = match kind {
            Kind::Hang | Kind::StopCriu => "2",
            _ => "60",
        };
        tokio::spawn(async move { archive.try_take(&id, &["--timeout", limit]).await })
    };
    if kind.waits() {
        let struck = fault.strike(kind, &[]).await;
        if struck.is_err() {
            // What it did must not be found by the next cell.
            let _ = taking.await;
            return struck;
        }
    } else {
        // Kept until the checkpoint has failed.
        let finished = taking.await??;
        drop(fault);
        refused(finished, step, kind)?;
        no_archive(&archive, &cx.lab)?;
        return world.is_unharmed(before, &node).await;
    }
    let finished = taking.await??;
    if kind == Kind::KillContainerd {
        cx.lab.start_containerd().await?;
        // Whoever was under way when containerd died goes back, or on, by himself.
        eventually("the end of the checkpoint", PROMISE, || async {
            Ok(nothing_left(&cx.lab).is_ok().then_some(()))
        })
        .await?;
    }
    match (kind.cause(), finished.code) {
        (None, 0) => {
            let verified = run(&cx.lab, &["kybernate", "verify", &archive.path]).await?;
            verified.ok().context("an archive that was reported good")?;
            fs::remove_file(archive.file())?;
        }
        _ => {
            if kind != Kind::KillContainerd {
                refused(finished, step, kind)?;
            }
            no_archive(&archive, &cx.lab)?;
        }
    }
    if kind == Kind::KillContainerd {
        // Another containerd, and other connections of it.
        world.work.is_well(&world.container, before).await?;
        let node = Node::look(&cx.lab)?;
        return world.is_unharmed(before, &node).await;
    }
    world.is_unharmed(before, &node).await
}

/// The failure names its step and its cause.
pub fn refused(finished: Finished, step: &str, kind: Kind) -> Result<()> {
    let message = finished.refused()?;
    // A deadline is the command's own, and it says so in its own words.
    if !matches!(kind, Kind::Hang | Kind::StopCriu) {
        ensure!(message.contains(step), "no step {step} in: {message}");
    }
    let cause = kind.cause().unwrap_or("");
    ensure!(message.contains(cause), "no cause {cause:?} in: {message}");
    Ok(())
}

/// The shim dies: the processes run at once, or have come to a clean end because containerd, which
/// lives, has ended them.
pub async fn shim_killed(cx: Case, has: Has, all: bool) -> Result<()> {
    let steps = match (all, has) {
        (true, _) => steps(has),
        (false, Has::Cpu) => vec!["pages"],
        (false, Has::Gpu) => vec!["pages"],
    };
    let mut table = Run::default();
    let operation = format!("checkpoint, {}", has.name());
    for step in steps {
        for kind in [Kind::KillShim, Kind::KillShimAlone] {
            let begun = Instant::now();
            let result = dies(&cx, has, (step, kind)).await;
            table.note(&operation, (step, kind.name()), begun, result);
        }
    }
    table.end()
}

async fn dies(cx: &Case, has: Has, (step, kind): (&'static str, Kind)) -> Result<()> {
    let node = look(&cx.lab).await?;
    let world = World::mute(cx, has).await?;
    let remains = world.remains().await?;
    let shims = world.pod.shims()?;
    let archive = Archive::new(&cx.lab)?;
    let fault = Fault::set(&cx.lab, step, kind)?;
    let taking = {
        let (archive, id) = (archive.clone(), world.container.id.clone());
        tokio::spawn(async move { archive.try_take(&id, &[]).await })
    };
    if kind == Kind::KillShimAlone {
        fault.strike(kind, &shims).await?;
        remains.run().await?;
        eventually("nothing left", PROMISE, || async {
            nothing_left(&cx.lab).map(Some)
        })
        .await?;
        no_archive(&archive, &cx.lab)?;
        taking.await??.refused()?;
        cx.lab.start_containerd().await?;
    } else {
        taking.await??.refused()?;
        drop(fault);
        remains.are_gone().await?;
    }
    no_archive(&archive, &cx.lab)?;
    remove(&world.pod, &cx.lab).await?;
    eventually("nothing left", PROMISE, || async {
        nothing_left(&cx.lab).map(Some)
    })
    .await?;
    if kind == Kind::KillShim {
        node.is_unchanged().await?;
    }
    let next = World::new(cx, has).await?;
    let archive = kybernate_integration::checkpoint::take(&next.container, &[]).await?;
    fs::remove_file(archive.file())?;
    remove(&next.pod, &cx.lab).await
}
