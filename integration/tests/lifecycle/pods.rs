//! Pods and their containers: start, end, reasons, neighbours, and nothing left behind.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use kybernate_hooks::cri::v1::{ContainerState, PodSandboxState};
use kybernate_integration::{Case, Suite, eventually};

pub fn add(suite: Suite) -> Suite {
    suite
        .case("exit_codes_and_reasons", exit_codes_and_reasons)
        .case("missing_program", missing_program)
        .case("pod_stop_and_remove", pod_stop_and_remove)
        .case("containers_share_one_shim", containers_share_one_shim)
        .case("init_then_app_then_restart", init_then_app_then_restart)
        .case("environment_of_the_process", environment_of_the_process)
        .case("never_started_container", never_started_container)
}

async fn exit_codes_and_reasons(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    for (name, script, code, reason) in [
        ("good", "exit 0", 0, "Completed"),
        ("bad", "exit 3", 3, "Error"),
        ("high", "exit 255", 255, "Error"),
    ] {
        let container = pod.container(name).shell(script).start().await?;
        let status = container.wait_exit().await?;
        ensure!(
            status.exit_code == code && status.reason == reason,
            "{script}: {status:?}"
        );
        ensure!(
            status.created_at <= status.started_at && status.created_at <= status.finished_at,
            "{status:?}"
        );
    }
    let killed = pod.container("killed").shell("sleep 1000").start().await?;
    cx.lab.kill("KILL", killed.pid().await?)?;
    let status = killed.wait_exit().await?;
    ensure!(
        status.exit_code == 137 && status.reason == "Error",
        "killed: {status:?}"
    );
    Ok(())
}

async fn missing_program(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let container = pod.container("lost").command(["/no/such"]).create().await?;
    let error = format!("{:#}", container.start().await.unwrap_err());
    ensure!(
        error.contains("no such file or directory"),
        "the reason is not told: {error}"
    );
    let status = container.status().await?;
    ensure!(
        status.state() == ContainerState::ContainerExited
            && status.reason == "StartError"
            && status.exit_code == 128,
        "{status:?}"
    );
    container.remove().await?;
    let next = pod.container("next").shell("exit 0").start().await?;
    ensure!(next.wait_exit().await?.exit_code == 0);
    Ok(())
}

async fn pod_stop_and_remove(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    ensure!(pod.status().await?.state() == PodSandboxState::SandboxReady);
    let app = pod.container("app").shell("sleep 1000").start().await?;
    let (pid, shims) = (app.pid().await?, pod.shims()?);
    ensure!(shims.len() == 1, "shims of one pod: {shims:?}");
    let cgroups = cgroups_of(&cx, pid)?;

    pod.stop().await?;
    ensure!(pod.status().await?.state() == PodSandboxState::SandboxNotready);
    ensure!(!app.is_running().await?, "a stopped pod's container runs");
    ensure!(!cx.lab.path(format!("/proc/{pid}")).exists());
    pod.remove().await?;

    for path in [app.bundle(), pod.bundle()] {
        ensure!(!path.exists(), "left behind: {}", path.display());
    }
    let shim = cx.lab.path(format!("/proc/{}", shims[0]));
    eventually(
        "shim of a removed pod gone",
        Duration::from_secs(5),
        || async { Ok((!shim.exists()).then_some(())) },
    )
    .await?;
    let mounts = fs::read_to_string(cx.lab.path("/proc/1/mounts"))?;
    for id in [&app.id, &pod.id] {
        ensure!(!mounts.contains(id.as_str()), "mounts of {id}: {mounts}");
    }
    for cgroup in cgroups {
        ensure!(!cgroup.exists(), "left behind: {}", cgroup.display());
    }
    Ok(())
}

/// The process's own cgroup directories in the lab.
fn cgroups_of(cx: &Case, pid: u32) -> Result<Vec<std::path::PathBuf>> {
    let text = fs::read_to_string(cx.lab.path(format!("/proc/{pid}/cgroup")))?;
    let below = |hierarchy: &str, path: &str| {
        cx.lab
            .path(format!("/sys/fs/cgroup/{hierarchy}"))
            .join(path.trim_start_matches('/'))
    };
    // "/../kubepods/…": the reader's namespace is not the lab's. What follows is the same.
    Ok(text
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let path = &path[path.find("/kubepods")?..];
            Some(below(controllers.trim_start_matches("name="), path))
        })
        .collect())
}

async fn containers_share_one_shim(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let first = pod.container("first").shell("sleep 1000").start().await?;
    let second = pod.container("second").shell("sleep 1000").start().await?;
    let sidecar = pod.container("sidecar").shell("exit 1").start().await?;
    ensure!(sidecar.wait_exit().await?.exit_code == 1);
    let shims = pod.shims()?;
    ensure!(shims.len() == 1, "shims of one pod: {shims:?}");
    ensure!(first.is_running().await? && second.is_running().await?);

    second.stop(0).await?;
    second.remove().await?;
    ensure!(first.shell("echo alive").await? == "alive");
    ensure!(pod.shims()? == shims, "the pod's shim changed");
    Ok(())
}

async fn init_then_app_then_restart(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let shared = format!("/var/lib/kybernate/shared-{}", pod.id);
    fs::create_dir_all(cx.lab.path(&shared))?;
    let init = pod
        .container("init")
        .mount(&shared, "/shared")
        .shell("echo prepared >/shared/state")
        .start()
        .await?;
    ensure!(init.wait_exit().await?.exit_code == 0);
    init.remove().await?;

    for attempt in 0..3 {
        let app = pod
            .container("app")
            .attempt(attempt)
            .mount(&shared, "/shared")
            .shell("cat /shared/state; exit 1")
            .start()
            .await?;
        ensure!(app.wait_exit().await?.exit_code == 1);
        ensure!(app.stdout()? == "prepared\n", "attempt {attempt}");
    }
    Ok(())
}

async fn environment_of_the_process(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod
        .container("app")
        .env("COLOUR", "blue and green")
        .edit(|config| config.working_dir = "/home/new".into())
        .edit(|config| config.args = vec!["one".into(), "two words".into()])
        .command(["/bin/sh", "-c", r#"echo "$COLOUR|$PWD|$0|$1|$(hostname)""#])
        .start()
        .await?;
    ensure!(app.wait_exit().await?.exit_code == 0);
    let expected = format!(
        "blue and green|/home/new|one|two words|{}\n",
        pod.config.hostname
    );
    ensure!(app.stdout()? == expected, "{:?}", app.stdout()?);
    Ok(())
}

async fn never_started_container(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let container = pod.container("idle").shell("sleep 1000").create().await?;
    ensure!(container.status().await?.state() == ContainerState::ContainerCreated);
    ensure!(
        container.exec(&["true"]).await.is_err(),
        "exec in a container that was never started"
    );
    container.remove().await
}
