//! A restored container is a container like any other.

use std::time::Duration;

use anyhow::{Result, ensure};
use kybernate_hooks::containerd::{
    task::Status,
    tasks::{PauseTaskRequest, ResumeTaskRequest},
};
use kybernate_integration::{Case, tasks, workload::Workload};

use crate::rounds::archived;

pub async fn is_a_container_like_any(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let (archive, at) = archived(&pod, &work).await?;
    let restored = work.restore(&pod, &archive).await?;
    let id = || restored.id.clone();
    let seen = work.went_on(&restored, at).await?;

    let output = restored
        .exec(&["/bin/sh", "-c", "echo out; echo err >&2; exit 4"])
        .await?;
    ensure!(output.stdout == "out\n" && output.stderr == "err\n" && output.exit_code == 4);
    ensure!(restored.shell("cat /counter").await?.parse::<u64>()? >= seen);
    ensure!(restored.shell("hostname").await? == pod.config.hostname);

    let stats = restored.stats().await?;
    let memory = stats
        .memory
        .and_then(|m| m.working_set_bytes)
        .map_or(0, |v| v.value);
    ensure!(memory > 0, "no memory in its statistics");
    ensure!(stats.cpu.is_some(), "no CPU time in its statistics");
    let pids = tasks::pids(&cx.lab, &restored.id).await?;
    ensure!(pids.contains(&restored.pid().await?), "{pids:?}");

    cx.lab
        .tasks()
        .pause(PauseTaskRequest { container_id: id() })
        .await?;
    ensure!(tasks::get(&cx.lab, &restored.id).await?.status() == Status::Paused);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let paused = work.count(&restored)?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    ensure!(
        work.count(&restored)? == paused,
        "it runs while it is paused"
    );
    cx.lab
        .tasks()
        .resume(ResumeTaskRequest { container_id: id() })
        .await?;
    work.is_well(&restored, paused).await?;

    restored.reopen_log().await?;
    work.is_well(&restored, paused).await?;
    restored.stop(5).await?;
    ensure!(
        restored.status().await?.exit_code == 7,
        "{:?}",
        restored.status().await?
    );
    restored.remove().await?;
    Ok(())
}

pub async fn exit_code_is_reported(cx: Case) -> Result<()> {
    let work = Workload::tree();
    for (signal, code) in [(15, 5), (9, 137)] {
        let (archive, at) = archived(&cx.pod().start().await?, &work).await?;
        // SysV segments outlive their container in its pod, so it needs one without them.
        let restored = work.restore(&cx.pod().start().await?, &archive).await?;
        work.went_on(&restored, at).await?;
        tasks::kill(&cx.lab, &restored.id, signal, false).await?;
        let status = restored.wait_exit().await?;
        ensure!(
            status.exit_code == code,
            "signal {signal} gave {}",
            status.exit_code
        );
        restored.remove().await?;
    }
    Ok(())
}

pub async fn survives_containerd(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let (archive, at) = archived(&pod, &work).await?;
    let restored = work.restore(&pod, &archive).await?;
    let seen = work.went_on(&restored, at).await?;
    cx.lab.kill_containerd().await?;
    cx.lab.start_containerd().await?;
    ensure!(
        restored.is_running().await?,
        "not running after containerd's restart"
    );
    work.is_well(&restored, seen).await?;
    ensure!(restored.shell("echo here").await? == "here");
    tasks::kill(&cx.lab, &restored.id, 15, false).await?;
    ensure!(restored.wait_exit().await?.exit_code == 7);
    Ok(())
}

/// What the archive's own spec held does not come back: the new container's does.
pub async fn its_pod_rules(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let first = work
        .container(&pod)
        .env("SECRET", "from the archive")
        .resources(|r| r.memory_limit_in_bytes = 256 << 20)
        .start()
        .await?;
    work.is_well(&first, 0).await?;
    let (archive, at) = crate::rounds::put_away(&work, &first).await?;
    let restored = work
        .container(&pod)
        .attempt(1)
        .annotation(kybernate_config::names::RESTORE_FROM, &archive.path)
        .resources(|r| r.memory_limit_in_bytes = 128 << 20)
        .start()
        .await?;
    work.went_on(&restored, at).await?;
    let stats = restored.stats().await?;
    let available = stats
        .memory
        .and_then(|m| m.available_bytes)
        .map_or(0, |v| v.value);
    ensure!(
        available > 0 && available <= 128 << 20,
        "the memory limit is not the new container's: {available} bytes available"
    );
    ensure!(
        restored.shell("echo \"[$SECRET]\"").await? == "[]",
        "an exec has the old environment"
    );
    Ok(())
}
