//! containerd pauses, asks for a checkpoint, and never resumes.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use kybernate_hooks::containerd::tasks::{PauseTaskRequest, ResumeTaskRequest};
use kybernate_integration::{
    Case,
    checkpoint::{ARCHIVES, into_directory},
    eventually,
    node::Node,
};

use crate::world::{Has, World, nothing_left};

/// How long the call that pauses has; some of it passes before the checkpoint.
const CALL: Duration = Duration::from_secs(5);
/// When its container has to run again after that.
const LATE: Duration = Duration::from_secs(4);

/// Pauses and dumps as containerd does.
async fn plain(world: &World, limit: Option<Duration>) -> Result<String> {
    let lab = &world.container.lab;
    let container_id = world.container.id.clone();
    let path = format!("{ARCHIVES}/unresumed-{}", world.container.id);
    fs::create_dir_all(lab.path(&path))?;
    lab.tasks().pause(PauseTaskRequest { container_id }).await?;
    into_directory(lab, &world.container.id, &path, limit).await?;
    Ok(path)
}

/// It stands still now, and runs within `limit`.
async fn is_resumed(world: &World, limit: Duration) -> Result<()> {
    let count = world.work.count(&world.container)?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    ensure!(
        world.work.count(&world.container)? <= count + 1,
        "it runs already"
    );
    eventually("a count that goes on", limit, || async {
        Ok((world.work.count(&world.container)? > count + 2).then_some(()))
    })
    .await
}

/// The container is as ever, and so is the node.
async fn is_well(world: &World, node: &Node, path: &str) -> Result<()> {
    fs::remove_dir_all(world.container.lab.path(path))?;
    let before = world.work.count(&world.container)?;
    world.is_unharmed(before, node).await
}

pub async fn deadline(cx: Case, has: Has) -> Result<()> {
    let world = World::new(&cx, has).await?;
    let node = Node::look(&cx.lab)?;
    let path = plain(&world, Some(CALL)).await?;
    is_resumed(&world, CALL + LATE).await?;
    is_well(&world, &node, &path).await
}

pub async fn no_deadline(cx: Case) -> Result<()> {
    let world = World::new(&cx, Has::Cpu).await?;
    let node = Node::look(&cx.lab)?;
    let settings = cx.lab.path("/etc/kybernate/config.toml");
    let before = fs::read_to_string(&settings)?;
    fs::write(
        &settings,
        format!("{before}[checkpoint]\nresume_within_s = 2\n"),
    )?;
    let path = plain(&world, None).await;
    fs::write(&settings, before)?;
    let path = path?;
    is_resumed(&world, Duration::from_secs(2) + LATE).await?;
    is_well(&world, &node, &path).await
}

pub async fn containerd_died(cx: Case, has: Has) -> Result<()> {
    let world = World::new(&cx, has).await?;
    let remains = world.remains().await?;
    let path = plain(&world, None).await?;
    cx.lab.kill_containerd().await?;
    // Its output goes through containerd.
    let resumed = remains.run().await;
    cx.lab.start_containerd().await?;
    resumed?;
    fs::remove_dir_all(cx.lab.path(path))?;
    let node = Node::look(&cx.lab)?;
    let before = world.work.count(&world.container)?;
    world.is_unharmed(before, &node).await
}

/// A resume in time is containerd's own, and ends the watch.
pub async fn in_time(cx: Case) -> Result<()> {
    let world = World::new(&cx, Has::Cpu).await?;
    let node = Node::look(&cx.lab)?;
    let path = plain(&world, Some(Duration::from_secs(60))).await?;
    let container_id = world.container.id.clone();
    cx.lab
        .tasks()
        .resume(ResumeTaskRequest { container_id })
        .await?;
    eventually("the end of the watch", Duration::from_secs(2), || async {
        nothing_left(&cx.lab).map(Some)
    })
    .await?;
    is_well(&world, &node, &path).await
}
