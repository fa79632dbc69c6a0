//! What a checkpoint leaves of its container.

use std::time::Duration;

use anyhow::{Result, ensure};
use kybernate_hooks::containerd::{
    task::Status,
    tasks::{PauseTaskRequest, ResumeTaskRequest},
};
use kybernate_integration::{
    Case,
    checkpoint::{Archive, take},
    tasks,
    workload::Workload,
};

pub async fn goes_on(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let container = work.start(&pod).await?;
    let pid = container.pid().await?;
    for _ in 0..3 {
        let before = work.count(&container)?;
        let archive = take(&container, &[]).await?;
        ensure!(archive.mode()? == 0o600, "mode {:o}", archive.mode()?);
        ensure!(
            container.is_running().await?,
            "not running after its checkpoint"
        );
        ensure!(container.pid().await? == pid, "another process than before");
        work.is_well(&container, before).await?;
        let manifest = archive.manifest()?;
        ensure!(manifest.container.id == container.id);
        ensure!(manifest.container.name == "counter" && manifest.container.state == "running");
        ensure!(manifest.container.pod.is_some_and(|p| p.sandbox == pod.id));
        ensure!(
            manifest
                .processes
                .iter()
                .any(|p| p.name == "counter" && p.pid == 1)
        );
        ensure!(
            manifest.pause_ms > 0 && manifest.pause_ms < 20_000,
            "{}",
            manifest.pause_ms
        );
    }
    ensure!(container.shell("echo $((6*7))").await? == "42");
    ensure!(container.stats().await?.cpu.is_some());
    tasks::kill(&cx.lab, &container.id, 15, false).await?;
    ensure!(
        container.wait_exit().await?.exit_code == 7,
        "its handler of SIGTERM has not run"
    );
    Ok(())
}

pub async fn ends_with_exit(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let container = work.start(&pod).await?;
    let archive = take(&container, &["--exit"]).await?;
    let status = container.wait_exit().await?;
    ensure!(status.exit_code == 137, "exit code {}", status.exit_code);
    ensure!(archive.size()? > 0);
    // The pod goes on and takes a new container of that name.
    container.remove().await?;
    let next = work.container(&pod).attempt(1).start().await?;
    work.is_well(&next, 0).await?;
    Ok(())
}

pub async fn paused_stays_paused(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let container = work.start(&pod).await?;
    let id = || container.id.clone();
    cx.lab
        .tasks()
        .pause(PauseTaskRequest { container_id: id() })
        .await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let count = work.count(&container)?;

    let archive = take(&container, &[]).await?;
    ensure!(archive.manifest()?.container.state == "paused");
    let status = tasks::get(&cx.lab, &container.id).await?.status();
    ensure!(status == Status::Paused, "{status:?} after its checkpoint");
    tokio::time::sleep(Duration::from_millis(500)).await;
    ensure!(
        work.count(&container)? == count,
        "it ran while it was paused"
    );

    cx.lab
        .tasks()
        .resume(ResumeTaskRequest { container_id: id() })
        .await?;
    work.is_well(&container, count).await?;

    // What comes back from such an archive runs.
    container.stop(0).await?;
    container.remove().await?;
    let restored = work.restore(&pod, &archive).await?;
    work.went_on(&restored, count).await?;
    Ok(())
}

pub async fn by_pod_and_name(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let container = work.start(&pod).await?;
    let archive = Archive::new(&cx.lab)?;
    let name = format!("{}/{}", pod.full_name(), work.name);
    archive.try_take(&name, &[]).await?.ok()?;
    ensure!(archive.manifest()?.container.id == container.id);
    // The start of an id does as well.
    let other = Archive::new(&cx.lab)?;
    other.try_take(&container.id[..20], &[]).await?.ok()?;
    Ok(())
}
