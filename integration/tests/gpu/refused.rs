//! What can't work is refused by name, and the container goes on.

use std::fs;

use anyhow::{Context, Result, ensure};
use kybernate_integration::{
    Case,
    checkpoint::{Archive, take},
    gpu::{self, Faults},
    lab::DOUBLE,
    workload::Workload,
};

use crate::back::{nothing_left, restore};

/// What is wrong with the double, and what the refusal says.
const FAULTS: [(&str, &[&str]); 9] = [
    ("lock-timeout", &["lock", "gpu.lock_timeout_s"]),
    ("checkpoint-error 801", &["managed memory", "runs on"]),
    ("checkpoint-error 999", &["checkpoint", "999"]),
    ("checkpoint-lie", &["locked", "missing from the archive"]),
    ("state-failed", &["failed", "restart"]),
    ("driver 565.57.01", &["565.57.01", "570"]),
    ("mig", &["MIG"]),
    ("mps", &["MPS"]),
    (
        "memory 99999999999999",
        &["host memory", "free host memory"],
    ),
];

pub async fn what_cannot_work(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::gpu(2);
    let container = gpu::start(&work, &pod, &cx.lab).await?;
    for (fault, words) in FAULTS {
        let message = {
            let _faults = Faults::new(&cx.lab, fault)?;
            let archive = Archive::new(&cx.lab)?;
            let finished = archive.try_take(&container.id, &[]).await?;
            ensure!(!archive.file().exists(), "{fault}: an archive is left");
            finished.refused().with_context(|| fault.to_owned())?
        };
        for word in words {
            ensure!(message.contains(word), "{fault}: no {word:?} in {message}");
        }
        work.is_well(&container, work.count(&container)?)
            .await
            .with_context(|| format!("after {fault}"))?;
        nothing_left(&cx).with_context(|| format!("after {fault}"))?;
    }
    take(&container, &[]).await.context("without a fault")?;
    Ok(())
}

pub async fn no_library(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::gpu(1);
    let container = gpu::start(&work, &pod, &cx.lab).await?;
    let library = cx.lab.path(format!("{DOUBLE}/libcuda.so.1"));
    let away = library.with_extension("away");
    fs::rename(&library, &away)?;
    let refused = Archive::new(&cx.lab)?.try_take(&container.id, &[]).await;
    fs::rename(&away, &library)?;
    let message = refused?.refused()?;
    ensure!(
        message.contains("libcuda.so.1") && message.contains("gpu.driver_roots"),
        "{message}"
    );
    work.is_well(&container, work.count(&container)?).await?;
    nothing_left(&cx)
}

pub async fn other_gpu_at_restore(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::gpu(1);
    let container = gpu::start(&work, &pod, &cx.lab).await?;
    let at = work.count(&container)?;
    let archive = take(&container, &["--exit"]).await?;
    container.wait_exit().await?;
    for (fault, word) in [
        (
            "name Another model\nuuid GPU-00000000-0000-0000-0000-00000000d0b2",
            "Another model",
        ),
        ("driver 575.1", "575.1"),
        ("free 1000", "spare"),
        ("mig", "MIG"),
    ] {
        let _faults = Faults::new(&cx.lab, fault)?;
        let next = cx.pod().start().await?;
        let error = restore(&cx, &work, &next, &archive)
            .await
            .err()
            .with_context(|| format!("{fault}: restored all the same"))?;
        ensure!(format!("{error:#}").contains(word), "{fault}: {error:#}");
    }
    // A GPU of the same model under another UUID takes over.
    let _faults = Faults::new(&cx.lab, "uuid GPU-00000000-0000-0000-0000-00000000d0b2")?;
    let next = cx.pod().start().await?;
    let restored = restore(&cx, &work, &next, &archive).await?;
    work.went_on(&restored, at).await?;
    nothing_left(&cx)
}

pub async fn failed_restore(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::gpu(1);
    let container = gpu::start(&work, &pod, &cx.lab).await?;
    let archive = take(&container, &["--exit"]).await?;
    container.wait_exit().await?;
    let before = cx.lab.pids_of("gpu")?;
    {
        let _faults = Faults::new(&cx.lab, "restore-error 999")?;
        let next = cx.pod().start().await?;
        let error = restore(&cx, &work, &next, &archive)
            .await
            .err()
            .context("a container without its GPU state was started")?;
        ensure!(format!("{error:#}").contains("999"), "{error:#}");
    }
    ensure!(cx.lab.pids_of("gpu")? == before, "its processes are left");
    nothing_left(&cx)
}
