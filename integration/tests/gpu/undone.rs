//! Steps that are cut short are undone.

use std::time::Duration;

use anyhow::{Result, ensure};
use kybernate_config::names;
use kybernate_integration::{
    Case,
    checkpoint::{Archive, take},
    eventually, gpu,
    gpu::Faults,
    workload::Workload,
};

use crate::back::nothing_left;

/// How long undoing may take, on a machine that does other things too.
const UNDO: Duration = Duration::from_secs(10);

pub async fn helper_killed(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::gpu(2);
    let container = gpu::start(&work, &pod, &cx.lab).await?;
    let faults = Faults::new(&cx.lab, "checkpoint-hang")?;
    let archive = Archive::new(&cx.lab)?;
    let taking = {
        let (archive, id) = (archive.clone(), container.id.clone());
        tokio::spawn(async move { archive.try_take(&id, &[]).await })
    };
    let helper = eventually("the helper", UNDO, || async {
        Ok(cx.lab.pids_of(names::CUDA_BINARY)?.first().copied())
    })
    .await?;
    // By now it waits for the driver.
    tokio::time::sleep(Duration::from_millis(500)).await;
    cx.lab.kill("KILL", helper)?;
    let message = taking.await??.refused()?;
    ensure!(message.contains("kybernate-cuda ended"), "{message}");
    drop(faults);
    work.is_well(&container, work.count(&container)?).await?;
    nothing_left(&cx)?;
    take(&container, &[]).await?;
    Ok(())
}

pub async fn deadline_while_it_hangs(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::gpu(1);
    let container = gpu::start(&work, &pod, &cx.lab).await?;
    let faults = Faults::new(&cx.lab, "checkpoint-hang")?;
    let archive = Archive::new(&cx.lab)?;
    let finished = archive.try_take(&container.id, &["--timeout", "1"]).await?;
    ensure!(finished.took < UNDO, "{:?}", finished.took);
    let message = finished.refused()?;
    ensure!(
        message.contains("deadline") || message.contains("time"),
        "{message}"
    );
    work.is_well(&container, work.count(&container)?).await?;
    drop(faults);
    eventually("the helper ends", UNDO, || async {
        Ok(nothing_left(&cx).is_ok().then_some(()))
    })
    .await?;
    take(&container, &[]).await?;
    Ok(())
}

/// The dump fails after the GPU state was moved: CRIU is not there.
pub async fn failed_dump(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::gpu(2);
    let container = gpu::start(&work, &pod, &cx.lab).await?;
    let criu = cx.lab.exec(&["sh", "-c", "command -v criu"])?;
    let criu = criu.trim();
    let away = format!("{criu}.away");
    cx.lab.exec(&["mv", criu, &away])?;
    let refused = Archive::new(&cx.lab)?.try_take(&container.id, &[]).await;
    cx.lab.exec(&["mv", &away, criu])?;
    refused?.refused()?;
    work.is_well(&container, work.count(&container)?).await?;
    nothing_left(&cx)
}
