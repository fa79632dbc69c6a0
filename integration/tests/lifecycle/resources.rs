//! Limits, statistics, and what happens at the limit.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use kybernate_hooks::cri::v1::LinuxContainerResources;
use kybernate_integration::{
    Case, Container, Suite,
    events::{Event, Recorder},
    eventually,
};

pub fn add(suite: Suite) -> Suite {
    suite
        .case("limits_and_update", limits_and_update)
        .case("statistics", statistics)
        .case("out_of_memory", out_of_memory)
        .case("out_of_memory_of_a_child", out_of_memory_of_a_child)
}

/// Reads a file of the container's cgroup, by its name in version 1 or 2.
async fn cgroup(container: &Container, controller: &str, v1: &str, v2: &str) -> Result<String> {
    let lab = &container.lab;
    let text = fs::read_to_string(lab.path(format!("/proc/{}/cgroup", container.pid().await?)))?;
    let unified = lab.path("/sys/fs/cgroup/cgroup.controllers").exists();
    let line = text
        .lines()
        .find(|line| {
            let controllers = line.split(':').nth(1).unwrap_or_default();
            if unified {
                controllers.is_empty()
            } else {
                controllers.split(',').any(|found| found == controller)
            }
        })
        .with_context(|| format!("no {controller} cgroup in {text}"))?;
    let path = line.splitn(3, ':').nth(2).unwrap_or_default();
    let path = &path[path.find("/kubepods").context("not in a pod's cgroup")?..];
    let file = if unified {
        format!("/sys/fs/cgroup{path}/{v2}")
    } else {
        format!("/sys/fs/cgroup/{controller}{path}/{v1}")
    };
    Ok(fs::read_to_string(lab.path(file))?.trim().to_owned())
}

async fn memory_limit(app: &Container) -> Result<String> {
    cgroup(app, "memory", "memory.limit_in_bytes", "memory.max").await
}

async fn limits_and_update(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod
        .container("app")
        .resources(|resources| {
            resources.memory_limit_in_bytes = 64 << 20;
            resources.cpu_period = 100_000;
            resources.cpu_quota = 50_000;
        })
        .shell("sleep 1000")
        .start()
        .await?;
    ensure!(memory_limit(&app).await? == (64 << 20).to_string());
    let quota = cgroup(&app, "cpu", "cpu.cfs_quota_us", "cpu.max").await?;
    ensure!(quota.starts_with("50000"), "{quota}");

    app.update(LinuxContainerResources {
        memory_limit_in_bytes: 96 << 20,
        cpu_period: 100_000,
        cpu_quota: 20_000,
        ..Default::default()
    })
    .await?;
    let limit = memory_limit(&app).await?;
    ensure!(limit == (96 << 20).to_string(), "{limit}");
    let quota = cgroup(&app, "cpu", "cpu.cfs_quota_us", "cpu.max").await?;
    ensure!(quota.starts_with("20000"), "{quota}");
    ensure!(app.shell("echo alive").await? == "alive");
    Ok(())
}

async fn statistics(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod
        .container("app")
        .command(["memhog", "32"])
        .start()
        .await?;
    app.wait_stdout("t=5\n").await?;
    let stats = app.stats().await?;
    let memory = stats.memory.context("no memory statistics")?;
    let used = memory.working_set_bytes.unwrap_or_default().value;
    ensure!((32 << 20..200 << 20).contains(&used), "working set {used}");
    let cpu = |stats: Option<kybernate_hooks::cri::v1::CpuUsage>| {
        let usage = stats.and_then(|cpu| cpu.usage_core_nano_seconds);
        usage.map(|nanos| nanos.value).context("no CPU statistics")
    };
    let before = cpu(stats.cpu)?;
    ensure!(before > 0, "no CPU time used");
    eventually("CPU time to grow", Duration::from_secs(10), || async {
        let now = cpu(app.stats().await?.cpu)?;
        Ok((now > before).then_some(()))
    })
    .await
}

async fn out_of_memory(cx: Case) -> Result<()> {
    let events = Recorder::subscribe(&cx.lab).await?;
    let pod = cx.pod().start().await?;
    let neighbour = pod
        .container("neighbour")
        .shell("sleep 1000")
        .start()
        .await?;
    let app = pod
        .container("app")
        .resources(|resources| resources.memory_limit_in_bytes = 32 << 20)
        .command(["memhog", "256"])
        .start()
        .await?;
    let status = app.wait_exit().await?;
    ensure!(
        status.exit_code == 137 && status.reason == "OOMKilled",
        "{status:?}"
    );
    events.wait(&app.id, &Event::Oom).await?;
    ensure!(neighbour.is_running().await?);
    ensure!(!events.of(&neighbour.id).contains(&Event::Oom));
    Ok(())
}

async fn out_of_memory_of_a_child(cx: Case) -> Result<()> {
    let events = Recorder::subscribe(&cx.lab).await?;
    let pod = cx.pod().start().await?;
    let app = pod
        .container("app")
        .resources(|resources| resources.memory_limit_in_bytes = 32 << 20)
        .shell("memhog 256; echo child ended with $?; sleep 1000")
        .start()
        .await?;
    app.wait_stdout("child ended with 137\n").await?;
    events.wait(&app.id, &Event::Oom).await?;
    ensure!(app.is_running().await?);
    Ok(())
}
