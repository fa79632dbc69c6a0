//! Faults in the middle of a checkpoint that containerd itself asks for, into a directory that
//! holds no request.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use kybernate_integration::{
    Case,
    checkpoint::{ARCHIVES, into_directory},
    eventually,
    node::Node,
};
use tonic::Status;

use crate::{
    fault::{Fault, Kind},
    table::Run,
    world::{Has, PROMISE, World, look, nothing_left, remove},
};

const OPERATION: &str = "plain checkpoint, CPU";
const STEPS: [&str; 5] = ["freeze", "dump", "pages", "thaw", "sync"];
/// What is in the directory before.
const MINE: &str = "mine";
const DEADLINE: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(60);
/// How long a checkpoint that hangs may take to be undone.
const UNDONE: Duration = Duration::from_secs(30);

fn cells(all: bool) -> Vec<(&'static str, Kind)> {
    if !all {
        return vec![("pages", Kind::KillCriu), ("sync", Kind::Full)];
    }
    let mut cells = Vec::new();
    for step in STEPS {
        let kinds = [Kind::Error, Kind::Full, Kind::Hang, Kind::Panic];
        cells.extend(kinds.map(|kind| (step, kind)));
        if step == "pages" {
            let kinds = [Kind::KillCriu, Kind::StopCriu, Kind::KillRunc];
            cells.extend(kinds.map(|kind| (step, kind)));
        }
        let kinds = [Kind::KillGuardian, Kind::KillContainerd, Kind::KillShim];
        cells.extend(kinds.map(|kind| (step, kind)));
    }
    cells
}

pub async fn faults(cx: Case, all: bool) -> Result<()> {
    let mut table = Run::default();
    let mut world = World::new(&cx, Has::Cpu).await?;
    for (step, kind) in cells(all) {
        let begun = Instant::now();
        let result = if kind == Kind::KillShim {
            dies(&cx, step).await
        } else {
            survives(&cx, &world, step, kind).await
        };
        if !table.note(OPERATION, (step, kind.name()), begun, result) {
            world = World::new(&cx, Has::Cpu).await?;
        }
    }
    table.end()
}

/// A directory of somebody else's.
fn directory(cx: &Case, world: &World) -> Result<String> {
    let path = format!("{ARCHIVES}/plain-{}", world.container.id);
    fs::create_dir_all(cx.lab.path(&path))?;
    fs::write(cx.lab.path(&path).join(MINE), "")?;
    Ok(path)
}

/// Nothing in it has come since.
fn is_as_it_was(cx: &Case, path: &str) -> Result<()> {
    let entries = fs::read_dir(cx.lab.path(path))?.flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    names.retain(|name| name != MINE);
    ensure!(names.is_empty(), "{path} holds {names:?}");
    Ok(())
}

async fn survives(cx: &Case, world: &World, step: &'static str, kind: Kind) -> Result<()> {
    let path = directory(cx, world)?;
    // The guardian of the cell before ends a moment after its checkpoint.
    eventually("nothing left", PROMISE, || async {
        nothing_left(&cx.lab).map(Some)
    })
    .await?;
    let node = Node::look(&cx.lab)?;
    let before = world.work.count(&world.container)?;
    let fault = Fault::set(&cx.lab, step, kind)?;
    let hangs = matches!(kind, Kind::Hang | Kind::StopCriu);
    let taking = {
        let (lab, id, path) = (cx.lab.clone(), world.container.id.clone(), path.clone());
        let limit = if hangs { DEADLINE } else { LONG };
        tokio::spawn(async move { into_directory(&lab, &id, &path, Some(limit)).await })
    };
    let mut set = None;
    if kind.waits() {
        let struck = fault.strike(kind, &[]).await;
        if struck.is_err() {
            let _ = taking.await;
            return struck;
        }
    } else {
        set = Some(fault);
    }
    let taken = taking.await?;
    if kind == Kind::KillContainerd {
        cx.lab.start_containerd().await?;
    }
    // The caller may be told before all is undone, and CRIU has 15 s for its part.
    eventually("the end of the checkpoint", UNDONE, || async {
        Ok(nothing_left(&cx.lab).is_ok().then_some(()))
    })
    .await?;
    drop(set);
    match (kind.cause(), taken) {
        (None, Ok(())) => {
            let inventory = cx.lab.path(&path).join("inventory.img");
            ensure!(inventory.exists(), "no images of a good checkpoint");
            let images = fs::read_dir(cx.lab.path(&path))?.flatten();
            for image in images.filter(|image| image.file_name() != MINE) {
                fs::remove_file(image.path())?;
            }
        }
        (_, taken) => {
            let status = taken.err().context("taken all the same")?;
            refused(&status, step, kind)?;
            is_as_it_was(cx, &path)?;
        }
    }
    let node = match kind {
        Kind::KillContainerd => Node::look(&cx.lab)?,
        _ => node,
    };
    world.is_unharmed(before, &node).await?;
    // The same once more, without a fault.
    let again = into_directory(&cx.lab, &world.container.id, &path, Some(LONG)).await;
    again.context("the next plain checkpoint")?;
    fs::remove_dir_all(cx.lab.path(&path))?;
    Ok(())
}

fn refused(status: &Status, step: &str, kind: Kind) -> Result<()> {
    let said = status.message();
    match kind {
        // Its own deadline, and no containerd to say anything.
        Kind::Hang | Kind::StopCriu | Kind::KillContainerd => Ok(()),
        _ => {
            let cause = kind.cause().unwrap_or_default();
            ensure!(said.contains(cause), "no cause {cause:?} in: {said}");
            ensure!(said.contains(step), "no step {step} in: {said}");
            Ok(())
        }
    }
}

async fn dies(cx: &Case, step: &'static str) -> Result<()> {
    let node = look(&cx.lab).await?;
    let world = World::mute(cx, Has::Cpu).await?;
    let remains = world.remains().await?;
    let path = directory(cx, &world)?;
    let fault = Fault::set(&cx.lab, step, Kind::KillShim)?;
    let taken = into_directory(&cx.lab, &world.container.id, &path, Some(LONG)).await;
    drop(fault);
    taken.err().context("taken by a dead shim")?;
    remains.are_gone().await?;
    eventually("an empty directory", PROMISE, || async {
        is_as_it_was(cx, &path).map(Some)
    })
    .await?;
    remove(&world.pod, &cx.lab).await?;
    fs::remove_dir_all(cx.lab.path(&path))?;
    eventually("nothing left", PROMISE, || async {
        nothing_left(&cx.lab).map(Some)
    })
    .await?;
    node.is_unchanged().await
}
