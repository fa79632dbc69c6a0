//! With the plugin or containerd away for a while. Containers are created all the same.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kybernate_integration::Case;

use crate::plugin::{Plugin, is_prepared};

/// NRI's limit of a request, and time for the rest of a creation.
const HUNG: Duration = Duration::from_secs(8);

pub async fn plugin_killed(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let plugin = Plugin::start(&cx.lab).await?;
    let first = pod.container("first").shell("sleep 60").start().await?;
    plugin.end("KILL").await?;
    let without = pod.container("without").shell("sleep 60").start().await?;
    let plugin = Plugin::start(&cx.lab).await?;
    let again = pod.container("again").shell("sleep 60").start().await?;

    ensure!(is_prepared(&cx.lab, &first.id).await?);
    ensure!(!is_prepared(&cx.lab, &without.id).await?);
    ensure!(is_prepared(&cx.lab, &again.id).await?);
    let log = plugin.log()?;
    ensure!(
        log.contains("count=1 ") && log.contains("container=\"without\""),
        "what was created meanwhile is not told: {log}"
    );
    Ok(())
}

pub async fn plugin_hung(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let plugin = Plugin::start(&cx.lab).await?;
    plugin.signal("STOP")?;
    let started = Instant::now();
    let without = pod.container("without").shell("sleep 60").start().await?;
    let took = started.elapsed();
    println!("a creation beside a hung plugin took {took:?}");
    ensure!(took < HUNG, "{took:?}");
    ensure!(!is_prepared(&cx.lab, &without.id).await?);
    // Only the first creation waits: containerd has closed the plugin.
    let started = Instant::now();
    pod.container("next").shell("sleep 60").start().await?;
    ensure!(
        started.elapsed() < Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    plugin.signal("CONT")?;
    plugin.in_service(2).await?;
    let again = pod.container("again").shell("sleep 60").start().await?;
    ensure!(is_prepared(&cx.lab, &again.id).await?);
    Ok(())
}

pub async fn containerd_restarted(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let plugin = Plugin::start(&cx.lab).await?;
    for times in 2..=3 {
        cx.lab.kill_containerd().await?;
        cx.lab.start_containerd().await?;
        plugin.in_service(times).await?;
        let name = format!("after-{times}");
        let container = pod.container(&name).shell("sleep 60").start().await?;
        ensure!(is_prepared(&cx.lab, &container.id).await?, "{name}");
    }
    // A plugin that comes before containerd waits for it.
    plugin.end("TERM").await?;
    cx.lab.kill_containerd().await?;
    let plugin = Plugin::spawn(&cx.lab)?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    ensure!(plugin.log()?.contains("nri.sock"), "{}", plugin.log()?);
    cx.lab.start_containerd().await?;
    plugin.in_service(1).await?;
    let last = pod.container("last").shell("sleep 60").start().await?;
    ensure!(is_prepared(&cx.lab, &last.id).await?);
    Ok(())
}

/// How many containers are created: `KYBERNATE_NRI_CREATES`, or 100.
fn creates() -> Result<usize> {
    std::env::var("KYBERNATE_NRI_CREATES").map_or(Ok(100), |text| {
        text.parse()
            .with_context(|| format!("KYBERNATE_NRI_CREATES={text:?}"))
    })
}

pub async fn killed_every_second(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let lab = cx.lab.clone();
    Plugin::start(&lab).await?.end("KILL").await?;
    let dying = tokio::spawn(async move {
        loop {
            let plugin = Plugin::spawn(&lab)?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            plugin.end("KILL").await?;
        }
        #[allow(unreachable_code)]
        anyhow::Ok(())
    });
    let mut prepared = 0;
    let (count, started) = (creates()?, Instant::now());
    for number in 0..count {
        let container = pod
            .container("app")
            .attempt(number as u32)
            .shell("true")
            .create()
            .await
            .with_context(|| format!("create {number}"))?;
        prepared += usize::from(is_prepared(&cx.lab, &container.id).await?);
        container.remove().await?;
    }
    ensure!(!dying.is_finished(), "{:?}", dying.await);
    dying.abort();
    let _ = dying.await;
    println!(
        "{count} creates in {:?}, {prepared} of them prepared",
        started.elapsed()
    );
    ensure!(
        prepared > 0 && prepared <= count,
        "{prepared} of {count} prepared"
    );
    Ok(())
}
