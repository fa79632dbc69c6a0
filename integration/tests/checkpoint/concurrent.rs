//! Checkpoints beside other calls.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kybernate_hooks::containerd::tasks::MetricsRequest;
use kybernate_integration::{
    Case,
    checkpoint::{self, Archive, take},
    tasks,
    workload::Workload,
};

/// What containerd waits for at most before it gives a task up.
const PATIENCE: Duration = Duration::from_secs(2);

pub async fn answers_during_a_dump(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::memory_checked(1024, 50);
    let big = work.start(&pod).await?;
    let sibling = Workload::counter().start(&pod).await?;
    let archive = Archive::new(&cx.lab)?;

    let taking = tokio::spawn({
        let (archive, id) = (archive.clone(), big.id.clone());
        async move { archive.try_take(&id, &[]).await }
    });
    let mut asked = 0;
    let mut worst = (Duration::ZERO, "");
    while !taking.is_finished() {
        let lab = &cx.lab;
        for call in ["State", "Pids", "Metrics", "status", "exec in a sibling"] {
            let begun = Instant::now();
            match call {
                "State" => drop(tasks::get(lab, &big.id).await?),
                "Pids" => {
                    ensure!(!tasks::pids(lab, &big.id).await?.is_empty(), "no pids");
                }
                "Metrics" => {
                    let filters = vec![format!("id=={}", big.id)];
                    lab.tasks()
                        .metrics(MetricsRequest { filters })
                        .await
                        .context("Metrics")?;
                }
                "status" => ensure!(big.is_running().await?, "not running"),
                _ => drop(sibling.shell("true").await?),
            }
            worst = worst.max((begun.elapsed(), call));
            asked += 1;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    taking.await??.ok()?;
    ensure!(asked >= 10, "the checkpoint was over after {asked} calls");
    ensure!(
        worst.0 < PATIENCE,
        "{} took {:?} during the dump",
        worst.1,
        worst.0
    );
    work.is_well(&big, 0).await?;
    Ok(())
}

pub async fn containers_of_a_pod_at_once(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let works = [
        Workload::counter(),
        Workload::threads(8),
        Workload::memory(64),
    ];
    let mut containers = Vec::new();
    for work in &works {
        containers.push(work.start(&pod).await?);
    }
    let (a, b, c) = tokio::join!(
        take(&containers[0], &[]),
        take(&containers[1], &[]),
        take(&containers[2], &[]),
    );
    let archives = [a?, b?, c?];
    let mut counts = Vec::new();
    for (work, container) in works.iter().zip(&containers) {
        counts.push(work.is_well(container, work.count(container)?).await?);
        container.stop(0).await?;
        container.remove().await?;
    }
    let next = cx.pod().start().await?;
    for (work, archive) in works.iter().zip(&archives) {
        let restored = work.restore(&next, archive).await?;
        work.is_well(&restored, 0).await?;
    }
    Ok(())
}

pub async fn one_container_twice_at_once(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::memory(128);
    let container = work.start(&pod).await?;
    // One waits for the other, or is told that it must: both are right, a broken one is not.
    let (first, second) = (Archive::new(&cx.lab)?, Archive::new(&cx.lab)?);
    let (a, b) = tokio::join!(
        first.try_take(&container.id, &[]),
        second.try_take(&container.id, &[])
    );
    let mut taken = 0;
    for (archive, finished) in [(first, a?), (second, b?)] {
        if finished.code == 0 {
            checkpoint::run(&cx.lab, &["kybernate", "verify", &archive.path])
                .await?
                .ok()?;
            taken += 1;
        } else {
            ensure!(
                !archive.file().exists(),
                "an archive of a failed checkpoint"
            );
        }
    }
    ensure!(taken >= 1, "neither checkpoint was taken");
    work.is_well(&container, work.count(&container)?).await?;
    Ok(())
}
