//! Much at once.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use kybernate_integration::{Case, Suite};
use tokio::task::JoinSet;

pub fn add(suite: Suite) -> Suite {
    suite
        .case("exec_storm", exec_storm)
        .case("pods_in_parallel", pods_in_parallel)
        .alone()
        .limit(Duration::from_secs(180))
}

async fn exec_storm(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod.container("app").shell("sleep 1000").start().await?;
    let mut storm = JoinSet::new();
    for n in 0..50 {
        let app = app.clone();
        storm.spawn(async move {
            let script = format!("echo {n}; exit {}", n % 7);
            let output = app.exec_within(&["sh", "-c", &script], 60).await?;
            ensure!(
                output.stdout == format!("{n}\n") && output.exit_code == n % 7,
                "exec {n}: {output:?}"
            );
            Ok(())
        });
    }
    while let Some(done) = storm.join_next().await {
        done??;
    }
    ensure!(app.is_running().await?);
    let left = kybernate_integration::tasks::pids(&cx.lab, &app.id).await?;
    ensure!(left.len() == 1, "processes left: {left:?}");
    Ok(())
}

async fn pods_in_parallel(cx: Case) -> Result<()> {
    let mut pods = JoinSet::new();
    for n in 0..20 {
        let cx = cx.clone();
        pods.spawn(async move {
            let pod = cx.pod().start().await?;
            let app = pod
                .container("app")
                .shell(&format!("echo pod {n}; sleep 1000"))
                .start()
                .await?;
            app.wait_stdout(&format!("pod {n}\n")).await?;
            let address = pod.status().await?.network.context("no network")?.ip;
            let shims = pod.shims()?;
            ensure!(shims.len() == 1, "shims of pod {n}: {shims:?}");
            Ok((pod, address, shims[0]))
        });
    }
    let (mut addresses, mut shims, mut all) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    while let Some(done) = pods.join_next().await {
        let (pod, address, shim) = done??;
        addresses.insert(address);
        shims.insert(shim);
        all.push(pod);
    }
    ensure!(addresses.len() == 20 && shims.len() == 20);
    let mut removals = JoinSet::new();
    for pod in all {
        removals.spawn(async move { pod.remove().await });
    }
    while let Some(done) = removals.join_next().await {
        done??;
    }
    Ok(())
}
