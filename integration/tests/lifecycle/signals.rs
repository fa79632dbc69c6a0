//! Signals, stopping, and processes that lose their parent.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use kybernate_hooks::cri::v1::NamespaceMode;
use kybernate_integration::{Case, Suite, eventually, tasks};

pub fn add(suite: Suite) -> Suite {
    suite
        .case("stop_is_polite_first", stop_is_polite_first)
        .case("stop_kills_after_the_grace", stop_kills_after_the_grace)
        .case("signals_by_number", signals_by_number)
        .case("kill_of_the_dead", kill_of_the_dead)
        .case("orphans_are_reaped", orphans_are_reaped)
}

async fn stop_is_polite_first(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod
        .container("app")
        .shell("trap 'echo bye; exit 7' TERM; echo ready; while true; do sleep 0.1; done")
        .start()
        .await?;
    app.wait_stdout("ready\n").await?;
    let started = Instant::now();
    app.stop(20).await?;
    ensure!(started.elapsed() < Duration::from_secs(10));
    let status = app.wait_exit().await?;
    ensure!(status.exit_code == 7, "{status:?}");
    ensure!(app.stdout()? == "ready\nbye\n");
    app.stop(1).await // stopping what has stopped is no error
}

async fn stop_kills_after_the_grace(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod
        .container("app")
        .shell("trap '' TERM; echo ready; while true; do sleep 0.1; done")
        .start()
        .await?;
    app.wait_stdout("ready\n").await?;
    let started = Instant::now();
    app.stop(1).await?;
    let took = started.elapsed();
    ensure!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(10),
        "stop took {took:?}"
    );
    ensure!(app.wait_exit().await?.exit_code == 137);
    Ok(())
}

async fn signals_by_number(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod
        .container("app")
        .shell(
            "trap 'echo one' USR1; trap 'echo hup' HUP; echo ready; while true; do sleep 0.1; done",
        )
        .start()
        .await?;
    app.wait_stdout("ready\n").await?;
    tasks::kill(&cx.lab, &app.id, 10, false).await?;
    app.wait_stdout("one\n").await?;
    tasks::kill(&cx.lab, &app.id, 1, false).await?;
    if let Err(error) = app.wait_stdout("hup\n").await {
        // Whether it is the signal that did not arrive, or the output.
        let pid = app.pid().await?;
        let status = fs::read_to_string(cx.lab.path(format!("/proc/{pid}/status")))?;
        let signals = status.lines().filter(|line| line.contains("Sig"));
        let signals: Vec<_> = signals.chain(status.lines().take(3)).collect();
        return Err(error.context(format!("{:?}; {signals:?}", app.stdout()?)));
    }
    ensure!(app.is_running().await?);
    Ok(())
}

async fn kill_of_the_dead(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod.container("app").shell("exit 0").start().await?;
    app.wait_exit().await?;
    let error = tasks::kill(&cx.lab, &app.id, 9, false).await.unwrap_err();
    let code = error
        .downcast_ref::<tonic::Status>()
        .map(tonic::Status::code);
    ensure!(code == Some(tonic::Code::NotFound), "{error:#}");
    Ok(())
}

async fn orphans_are_reaped(cx: Case) -> Result<()> {
    // In the node's PID namespace the shim is the nearest subreaper.
    let pod = cx
        .pod()
        .namespaces(|namespaces| namespaces.set_pid(NamespaceMode::Node))
        .start()
        .await?;
    let app = pod.container("app").shell("sleep 1000").start().await?;
    app.shell("for i in $(seq 20); do (sh -c 'sleep 0.2 &'); done")
        .await?;
    let shim = pod.shims()?[0];
    tokio::time::sleep(Duration::from_millis(500)).await;
    eventually(
        "no zombie below the shim",
        Duration::from_secs(5),
        || async { Ok(zombies_of(&cx, shim)?.is_empty().then_some(())) },
    )
    .await
}

fn zombies_of(cx: &Case, parent: u32) -> Result<Vec<String>> {
    let mut zombies = Vec::new();
    for entry in fs::read_dir(cx.lab.path("/proc"))? {
        // "pid (name) state parent …"; the name may hold anything but the last parenthesis.
        let Ok(stat) = fs::read_to_string(entry?.path().join("stat")) else {
            continue;
        };
        let after = stat.rsplit(") ").next().unwrap_or_default();
        let mut words = after.split(' ');
        if words.next() == Some("Z") && words.next() == Some(&parent.to_string()) {
            zombies.push(stat);
        }
    }
    Ok(zombies)
}
