//! containerd's Tasks API and `ctr`: pausing, waiting, response times, containers without CRI.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kybernate_hooks::containerd::{
    task::Status,
    tasks::{MetricsRequest, PauseTaskRequest, ResumeTaskRequest, WaitRequest},
};
use kybernate_hooks::cri::v1::StatusRequest;
use kybernate_integration::{Case, Distro, Handler, Suite, image::catalog, tasks, within};

pub fn add(suite: Suite) -> Suite {
    suite
        .case("pause_and_resume", pause_and_resume)
        .case("wait_while_paused", wait_while_paused)
        .case("kill_while_paused", kill_while_paused)
        .case("answers_are_quick", answers_are_quick)
        .case("metrics", metrics)
        .case("features_like_the_stock_shims", features_like_the_stock_shims)
        // containerd 1.7 does not ask for them, and 2.1 not runtime types other than runc's.
        .distros(&[Distro::Forky])
        .handlers(&[Handler::Kybernate])
        .case("ctr_lifecycle", ctr_lifecycle)
        .case("ctr_foreground", ctr_foreground)
}

async fn pause(cx: &Case, id: &str) -> Result<()> {
    let request = PauseTaskRequest {
        container_id: id.into(),
    };
    cx.lab.tasks().pause(request).await.context("Pause")?;
    Ok(())
}

async fn resume(cx: &Case, id: &str) -> Result<()> {
    let request = ResumeTaskRequest {
        container_id: id.into(),
    };
    cx.lab.tasks().resume(request).await.context("Resume")?;
    Ok(())
}

async fn pause_and_resume(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod
        .container("app")
        .command(["memhog", "1"])
        .start()
        .await?;
    app.wait_stdout("t=3\n").await?;
    pause(&cx, &app.id).await?;
    let task = tasks::get(&cx.lab, &app.id).await?;
    ensure!(task.status() == Status::Paused, "{task:?}");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let still = app.stdout()?;
    tokio::time::sleep(Duration::from_millis(700)).await;
    ensure!(app.stdout()? == still, "a paused container goes on");
    resume(&cx, &app.id).await?;
    let task = tasks::get(&cx.lab, &app.id).await?;
    ensure!(task.status() == Status::Running, "{task:?}");
    let last = still.lines().filter(|line| line.starts_with("t=")).count();
    app.wait_stdout(&format!("t={}", last + 5)).await?;
    ensure!(!app.stdout()?.contains("CORRUPT"));
    Ok(())
}

async fn wait_while_paused(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod.container("app").shell("sleep 1000").start().await?;
    let request = WaitRequest {
        container_id: app.id.clone(),
        exec_id: String::new(),
    };
    let mut client = cx.lab.tasks();
    let early = request.clone();
    let waiting = tokio::spawn(async move { client.wait(early).await });
    pause(&cx, &app.id).await?;
    let mut client = cx.lab.tasks();
    let waiting_too = tokio::spawn(async move { client.wait(request).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    ensure!(
        !waiting.is_finished() && !waiting_too.is_finished(),
        "Wait returned while the container was paused"
    );
    resume(&cx, &app.id).await?;
    tasks::kill(&cx.lab, &app.id, 9, true).await?;
    for waiting in [waiting, waiting_too] {
        let limit = Duration::from_secs(10);
        let done = within("Wait", limit, async { Ok(waiting.await??) }).await?;
        ensure!(done.into_inner().exit_status == 137);
    }
    Ok(())
}

async fn kill_while_paused(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod.container("app").shell("sleep 1000").start().await?;
    pause(&cx, &app.id).await?;
    // Removing a pod whose container is frozen must not hang.
    within("StopContainer", Duration::from_secs(20), app.stop(1)).await?;
    ensure!(app.wait_exit().await?.exit_code == 137);
    Ok(())
}

async fn answers_are_quick(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod.container("app").shell("sleep 1000").start().await?;
    let mut slowest = Duration::ZERO;
    for _ in 0..50 {
        let started = Instant::now();
        tasks::get(&cx.lab, &app.id).await?;
        let pids = tasks::pids(&cx.lab, &app.id).await?;
        ensure!(!pids.is_empty(), "a running container without processes");
        slowest = slowest.max(started.elapsed());
    }
    // containerd gives up on State after 2 s; other cases run at the same time.
    ensure!(
        slowest < Duration::from_secs(1),
        "slowest answer {slowest:?}"
    );
    Ok(())
}

async fn metrics(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod.container("app").shell("sleep 1000").start().await?;
    let request = MetricsRequest {
        filters: vec![format!("id=={}", app.id)],
    };
    let response = cx.lab.tasks().metrics(request).await.context("Metrics")?;
    let metrics = response.into_inner().metrics;
    ensure!(metrics.len() == 1 && metrics[0].id == app.id, "{metrics:?}");
    let data = metrics[0].data.as_ref().context("metrics without data")?;
    let v2 = cx.lab.path("/sys/fs/cgroup/cgroup.controllers").exists();
    let version = if v2 { "v2" } else { "v1" };
    let expected = format!("io.containerd.cgroups.{version}.Metrics");
    ensure!(data.type_url == expected, "{}", data.type_url);
    ensure!(
        data.value.len() > 50,
        "{} bytes of metrics",
        data.value.len()
    );
    Ok(())
}

async fn features_like_the_stock_shims(cx: Case) -> Result<()> {
    let status = cx
        .lab
        .cri()
        .status(StatusRequest::default())
        .await
        .context("Status")?;
    let handlers = status.into_inner().runtime_handlers;
    let features = |handler: Handler| {
        let found = handlers
            .iter()
            .find(|found| found.name == handler.to_string());
        let found = found.with_context(|| format!("{handler} is not among {handlers:?}"))?;
        found
            .features
            .with_context(|| format!("{handler} tells no features"))
    };
    let (stock, ours) = (features(Handler::Runc)?, features(cx.handler)?);
    ensure!(stock == ours, "stock {stock:?}, ours {ours:?}");
    Ok(())
}

/// What to give to `ctr --runtime`.
fn runtime(handler: Handler) -> &'static str {
    match handler {
        Handler::Kybernate => "/usr/local/bin/containerd-shim-kybernate-v1",
        other => other.runtime_type(),
    }
}

fn ctr(cx: &Case, args: &[&str]) -> Result<String> {
    cx.lab.exec(&[&["ctr", "-n", "k8s.io"], args].concat())
}

async fn ctr_lifecycle(cx: Case) -> Result<()> {
    let id = format!("ctr-{}", cx.handler);
    let shell = [
        "sh",
        "-c",
        "trap 'exit 9' TERM; while true; do sleep 0.1; done",
    ];
    let run = [
        "run",
        "-d",
        "--runtime",
        runtime(cx.handler),
        catalog::TOOLS,
        &id,
    ];
    ctr(&cx, &[&run[..], &shell[..]].concat())?;
    let steps = async {
        let list = ctr(&cx, &["tasks", "ls"])?;
        let line = list.lines().find(|line| line.starts_with(&id));
        ensure!(line.is_some_and(|line| line.contains("RUNNING")), "{list}");
        let said = ctr(
            &cx,
            &["tasks", "exec", "--exec-id", "e1", &id, "echo", "hi"],
        )?;
        ensure!(said == "hi\n", "{said:?}");
        let pid = tasks::pid(&cx.lab, &id).await?;
        let ps = ctr(&cx, &["tasks", "ps", &id])?;
        ensure!(ps.contains(&pid.to_string()), "{pid} not in {ps}");
        ctr(&cx, &["tasks", "pause", &id])?;
        ensure!(ctr(&cx, &["tasks", "ls"])?.contains("PAUSED"));
        ctr(&cx, &["tasks", "resume", &id])?;
        ensure!(ctr(&cx, &["tasks", "metrics", &id])?.contains("memory"));
        ctr(&cx, &["tasks", "kill", "-s", "TERM", &id])?;
        let request = WaitRequest {
            container_id: id.clone(),
            exec_id: String::new(),
        };
        let mut client = cx.lab.tasks();
        let waited = within("Wait", Duration::from_secs(10), async {
            Ok(client.wait(request).await?)
        })
        .await?;
        ensure!(waited.into_inner().exit_status == 9);
        Ok(())
    }
    .await;
    let _ = ctr(&cx, &["tasks", "kill", "-s", "KILL", &id]);
    // ctr says what the task that it deletes has ended with.
    let deleted = cx
        .lab
        .command("ctr")
        .args(["-n", "k8s.io", "tasks", "rm", &id])
        .output()?;
    ctr(&cx, &["containers", "rm", &id])?;
    steps?;
    let said = String::from_utf8_lossy(&deleted.stderr);
    ensure!(said.contains("exit code 9"), "tasks rm: {deleted:?}");
    Ok(())
}

async fn ctr_foreground(cx: Case) -> Result<()> {
    let id = format!("ctr-fg-{}", cx.handler);
    let output = cx
        .lab
        .command("ctr")
        .args([
            "-n",
            "k8s.io",
            "run",
            "--rm",
            "--runtime",
            runtime(cx.handler),
        ])
        .args([
            catalog::TOOLS,
            &id,
            "sh",
            "-c",
            "echo to stdout; echo to stderr >&2; exit 4",
        ])
        .output()?;
    ensure!(output.status.code() == Some(4), "{output:?}");
    ensure!(
        output.stdout == b"to stdout\n" && output.stderr == b"to stderr\n",
        "{output:?}"
    );
    Ok(())
}
