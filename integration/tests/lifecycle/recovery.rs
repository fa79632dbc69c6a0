//! When containerd or the shim dies.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use kybernate_hooks::cri::v1::{ContainerState, PodSandboxState};
use kybernate_integration::{
    Case, Distro, Handler, Suite, eventually,
    tasks::{self, Exec, ExecOptions},
};

pub fn add(suite: Suite) -> Suite {
    suite
        .case("containerd_restart", containerd_restart)
        .alone()
        .case(
            "containerd_restart_while_paused",
            containerd_restart_while_paused,
        )
        .alone()
        .case(
            "containerd_down_at_the_pods_end",
            containerd_down_at_the_pods_end,
        )
        .alone()
        .case("shim_killed", shim_killed)
        .alone()
}

async fn containerd_restart(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let counter = pod
        .container("counter")
        .shell("i=0; while true; do i=$((i+1)); echo count $i; sleep 0.1; done")
        .start()
        .await?;
    let short = pod
        .container("short")
        .shell("sleep 2; exit 5")
        .start()
        .await?;
    let options = ExecOptions {
        stdin: true,
        ..Default::default()
    };
    let mut cat = Exec::start(&cx.lab, &counter.id, "cat", &["cat"], options).await?;
    counter.wait_stdout("count 3\n").await?;
    let (pid, shims) = (counter.pid().await?, pod.shims()?);

    cx.lab.kill_containerd().await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(
        cx.lab.path(format!("/proc/{pid}")).exists(),
        "died with containerd"
    );
    let before = last_count(&counter.stdout()?)?;
    cx.lab.start_containerd().await?;

    ensure!(counter.is_running().await?);
    ensure!(counter.pid().await? == pid && pod.shims()? == shims);
    // containerd forgets a task without processes when it starts, and with it the exit code.
    ensure!([5, 255].contains(&short.wait_exit().await?.exit_code));
    counter
        .wait_stdout(&format!("count {}\n", before + 40))
        .await?;
    let log = counter.stdout()?;
    let counts: Vec<u32> = log
        .lines()
        .filter_map(|line| line.split(' ').nth(1)?.parse().ok())
        .collect();
    let gap = counts.windows(2).find(|pair| pair[1] != pair[0] + 1);
    ensure!(gap.is_none(), "lines lost or doubled at {gap:?}");
    ensure!(counter.shell("echo still here").await? == "still here");
    // An exec of before goes on: its streams belong to its client and the shim.
    cat.write("after the restart\n")?;
    cat.wait_stdout("after the restart\n").await?;
    cat.close_stdin().await?;
    ensure!(cat.finish().await? == 0);
    let late = pod.container("late").shell("echo late").start().await?;
    ensure!(late.wait_exit().await?.exit_code == 0);
    counter.stop(1).await?;
    Ok(())
}

fn last_count(log: &str) -> Result<u32> {
    let line = log.lines().last().context("an empty log")?;
    Ok(line.rsplit(' ').next().unwrap_or_default().parse()?)
}

async fn containerd_restart_while_paused(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod
        .container("app")
        .command(["memhog", "1"])
        .start()
        .await?;
    app.wait_stdout("t=3\n").await?;
    cx.lab
        .exec(&["ctr", "-n", "k8s.io", "tasks", "pause", &app.id])?;
    cx.lab.kill_containerd().await?;
    cx.lab.start_containerd().await?;
    let task = tasks::get(&cx.lab, &app.id).await?;
    ensure!(format!("{:?}", task.status()) == "Paused", "{task:?}");
    let before = app.stdout()?.lines().count();
    cx.lab
        .exec(&["ctr", "-n", "k8s.io", "tasks", "resume", &app.id])?;
    app.wait_stdout(&format!("t={}", before + 5)).await?;
    Ok(())
}

async fn containerd_down_at_the_pods_end(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod.container("app").shell("sleep 1000").start().await?;
    let pid = app.pid().await?;
    cx.lab.kill_containerd().await?;
    cx.lab.kill("KILL", pid)?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    cx.lab.start_containerd().await?;
    ensure!([137, 255].contains(&app.wait_exit().await?.exit_code));
    let next = pod.container("next").shell("exit 0").start().await?;
    ensure!(next.wait_exit().await?.exit_code == 0);
    Ok(())
}

async fn shim_killed(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod.container("app").shell("sleep 1000").start().await?;
    let pid = app.pid().await?;
    let shims = pod.shims()?;
    ensure!(shims.len() == 1, "{shims:?}");
    cx.lab.kill("KILL", shims[0])?;
    let limit = Duration::from_secs(20);
    eventually("containerd to notice", limit, || async {
        let exited = app.status().await?.state() == ContainerState::ContainerExited;
        let down = pod.status().await?.state() == PodSandboxState::SandboxNotready;
        Ok((exited && down).then_some(()))
    })
    .await?;
    pod.remove().await?;
    let process = cx.lab.path(format!("/proc/{pid}"));
    if cx.handler == Handler::Runc && cx.lab.distro() == Distro::Forky {
        // containerd 2.x asks to clean up after the sandbox alone, and the stock shim does just
        // that: the container goes on without anybody who knows of it.
        if process.exists() {
            cx.lab.kill("KILL", pid)?;
        }
    }
    eventually("the pod's processes to be gone", limit, || async {
        Ok((!process.exists()).then_some(()))
    })
    .await?;
    let mounts = fs::read_to_string(cx.lab.path("/proc/1/mounts"))?;
    ensure!(!mounts.contains(&pod.id), "mounts left: {mounts}");
    let next = cx.pod().start().await?;
    let app = next.container("app").shell("exit 0").start().await?;
    ensure!(app.wait_exit().await?.exit_code == 0);
    Ok(())
}
