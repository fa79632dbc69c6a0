//! GPU state that comes back.

use anyhow::{Context, Result, ensure};
use kybernate_config::names;
use kybernate_hooks::{
    containerd::tasks::{PauseTaskRequest, ResumeTaskRequest},
    cri::v1::CheckpointContainerRequest,
};
use kybernate_integration::{
    Case, Container, Pod,
    checkpoint::{Archive, take},
    gpu,
    workload::Workload,
};

/// Restores a workload's container into a pod.
pub async fn restore(
    cx: &Case,
    work: &Workload,
    pod: &Pod,
    archive: &Archive,
) -> Result<Container> {
    gpu::container(work, pod, &cx.lab)?
        .attempt(1)
        .annotation(names::RESTORE_FROM, &archive.path)
        .start()
        .await
}

/// Nothing of an operation is left: no helper, no kernel setting.
pub fn nothing_left(cx: &Case) -> Result<()> {
    let helpers = cx.lab.pids_of(names::CUDA_BINARY)?;
    ensure!(helpers.is_empty(), "helpers are left: {helpers:?}");
    let records = cx.lab.path("/run/kybernate/levers");
    let left: Vec<_> = std::fs::read_dir(records)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name())
        .filter(|name| name != "lock")
        .collect();
    ensure!(left.is_empty(), "settings are left: {left:?}");
    Ok(())
}

pub async fn goes_on(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::gpu(1);
    let container = gpu::start(&work, &pod, &cx.lab).await?;
    let before = work.count(&container)?;
    let archive = take(&container, &[]).await?;
    work.is_well(&container, before).await?;
    nothing_left(&cx)?;

    let manifest = archive.manifest()?;
    let gpu = manifest.gpu.context("the manifest has no GPU state")?;
    ensure!(gpu.driver == "580.0.double", "{gpu:?}");
    ensure!(
        gpu.devices.len() == 1 && gpu.devices[0].used_bytes == 65536,
        "{gpu:?}"
    );
    ensure!(
        gpu.processes.len() == 1 && gpu.processes[0].pid == 1,
        "{gpu:?}"
    );
    let phases: Vec<_> = manifest.phases.iter().map(|p| p.name.as_str()).collect();
    let expected = [
        "gpu-lock",
        "gpu-checkpoint",
        "freeze",
        "dump",
        "rootfs",
        "gpu-restore",
    ];
    ensure!(phases.starts_with(&expected), "{phases:?}");
    Ok(())
}

pub async fn three_rounds(cx: Case) -> Result<()> {
    let work = Workload::gpu(1);
    let mut pod = cx.pod().start().await?;
    let mut container = gpu::start(&work, &pod, &cx.lab).await?;
    for round in 1..=3 {
        let at = work.count(&container)?;
        let archive = take(&container, &["--exit"]).await?;
        container.wait_exit().await?;
        pod.remove().await?;
        pod = cx.pod().start().await?;
        container = restore(&cx, &work, &pod, &archive)
            .await
            .with_context(|| format!("round {round}"))?;
        work.went_on(&container, at)
            .await
            .with_context(|| format!("round {round}"))?;
        nothing_left(&cx)?;
    }
    Ok(())
}

pub async fn several_processes(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::gpu(3);
    let container = gpu::start(&work, &pod, &cx.lab).await?;
    let at = work.count(&container)?;
    let archive = take(&container, &["--exit"]).await?;
    let gpu = archive.manifest()?.gpu.context("no GPU state")?;
    ensure!(gpu.processes.len() == 3, "{gpu:?}");
    container.wait_exit().await?;
    let next = cx.pod().start().await?;
    let restored = restore(&cx, &work, &next, &archive).await?;
    work.went_on(&restored, at).await?;
    Ok(())
}

pub async fn paused_stays_paused(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::gpu(1);
    let container = gpu::start(&work, &pod, &cx.lab).await?;
    let container_id = container.id.clone();
    cx.lab
        .tasks()
        .pause(PauseTaskRequest { container_id })
        .await?;
    let archive = take(&container, &[]).await?;
    ensure!(archive.manifest()?.container.state == "paused");
    let count = work.count(&container)?;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    ensure!(work.count(&container)? == count, "it runs");
    let container_id = container.id.clone();
    cx.lab
        .tasks()
        .resume(ResumeTaskRequest { container_id })
        .await?;
    work.is_well(&container, count).await?;
    Ok(())
}

/// It is thawed to ask the driver, which has nothing to save: it must be frozen again for the dump,
/// and stay so.
pub async fn paused_without_gpu_state(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let container = work.start(&pod).await?;
    container.exec(&["touch", "/dev/nvidia0"]).await?;
    let container_id = container.id.clone();
    let pause = PauseTaskRequest { container_id };
    cx.lab.tasks().pause(pause).await?;
    let archive = take(&container, &[]).await?;
    ensure!(archive.manifest()?.container.state == "paused");
    let count = work.count(&container)?;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    ensure!(work.count(&container)? == count, "it runs");
    let container_id = container.id.clone();
    let resume = ResumeTaskRequest { container_id };
    cx.lab.tasks().resume(resume).await?;
    work.is_well(&container, count).await?;
    nothing_left(&cx)
}

/// containerd freezes the container before it asks for the checkpoint.
pub async fn cri_checkpoint(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::gpu(1);
    let container = gpu::start(&work, &pod, &cx.lab).await?;
    let before = work.count(&container)?;
    let request = CheckpointContainerRequest {
        container_id: container.id.clone(),
        location: "/var/lib/kybernate/gpu-cri.tar".into(),
        timeout: 60,
    };
    cx.lab
        .cri()
        .checkpoint_container(request)
        .await
        .context("CheckpointContainer")?;
    work.is_well(&container, before).await?;
    nothing_left(&cx)
}
