//! Commands run in running containers.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use kybernate_hooks::cri::v1::Int64Value;
use kybernate_integration::{
    Case, Suite, eventually,
    tasks::{Exec, ExecOptions},
};

pub fn add(suite: Suite) -> Suite {
    suite
        .case("exec_output_and_exit_code", exec_output_and_exit_code)
        .case("exec_large_output", exec_large_output)
        .case("exec_timeout_kills", exec_timeout_kills)
        .case("exec_missing_program", exec_missing_program)
        .case("exec_as_the_containers_user", exec_as_the_containers_user)
        .case("exec_stdin_and_close", exec_stdin_and_close)
        .case("exec_terminal_and_resize", exec_terminal_and_resize)
        .case("exec_killed_by_signal", exec_killed_by_signal)
        .case("exec_dies_with_its_container", exec_dies_with_its_container)
}

async fn exec_output_and_exit_code(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod.container("app").shell("sleep 1000").start().await?;
    let output = app
        .exec(&["sh", "-c", "echo out; echo err >&2; exit 7"])
        .await?;
    ensure!(
        output.stdout == "out\n" && output.stderr == "err\n" && output.exit_code == 7,
        "{output:?}"
    );
    let quiet = app.exec(&["true"]).await?;
    ensure!(quiet.stdout.is_empty() && quiet.stderr.is_empty() && quiet.exit_code == 0);
    Ok(())
}

async fn exec_large_output(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod.container("app").shell("sleep 1000").start().await?;
    let output = app.exec(&["seq", "1", "200000"]).await?;
    let expected: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    ensure!(
        output.stdout == expected,
        "{} of {} bytes",
        output.stdout.len(),
        expected.len()
    );
    Ok(())
}

async fn exec_timeout_kills(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod.container("app").shell("sleep 1000").start().await?;
    let started = Instant::now();
    let error = app.exec_within(&["sleep", "777"], 1).await.unwrap_err();
    let took = started.elapsed();
    ensure!(
        format!("{error:#}").contains("timeout") || format!("{error:#}").contains("deadline"),
        "{error:#}"
    );
    ensure!(took < Duration::from_secs(8), "the timeout took {took:?}");
    eventually("killed exec gone", Duration::from_secs(5), || async {
        let left = app.exec(&["sh", "-c", "ps | grep 'sleep 77[7]'"]).await?;
        Ok(left.stdout.is_empty().then_some(()))
    })
    .await?;
    ensure!(app.is_running().await?);
    Ok(())
}

async fn exec_missing_program(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod.container("app").shell("sleep 1000").start().await?;
    let error = format!("{:#}", app.exec(&["/no/such"]).await.unwrap_err());
    ensure!(error.contains("no such file or directory"), "{error}");
    ensure!(app.shell("echo fine").await? == "fine");
    Ok(())
}

async fn exec_as_the_containers_user(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod
        .container("app")
        .env("COLOUR", "blue")
        .security(|security| security.run_as_user = Some(Int64Value { value: 1000 }))
        .shell("sleep 1000")
        .start()
        .await?;
    ensure!(app.shell("echo $(id -u) $COLOUR").await? == "1000 blue");
    Ok(())
}

async fn exec_stdin_and_close(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod.container("app").shell("sleep 1000").start().await?;
    let options = ExecOptions {
        stdin: true,
        ..Default::default()
    };
    let mut cat = Exec::start(&cx.lab, &app.id, "cat", &["cat"], options).await?;
    cat.write("to be returned\n")?;
    cat.wait_stdout("to be returned\n").await?;
    cat.write("last words")?;
    cat.wait_stdout("last words").await?;
    cat.close_stdin().await?;
    ensure!(cat.finish().await? == 0);
    Ok(())
}

async fn exec_terminal_and_resize(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod.container("app").shell("sleep 1000").start().await?;
    let options = ExecOptions {
        terminal: true,
        stdin: true,
    };
    let mut shell = Exec::start(&cx.lab, &app.id, "tty", &["sh"], options).await?;
    shell.resize(133, 42).await?;
    shell.write("stty size; [ -t 2 ] && echo is-a-$((40+2))-tty\n")?;
    let output = shell.wait_stdout("is-a-42-tty").await?;
    ensure!(output.contains("42 133"), "{output:?}");
    shell.resize(80, 24).await?;
    shell.write("stty size; exit 5\n")?;
    shell.wait_stdout("24 80").await?;
    ensure!(shell.finish().await? == 5);
    Ok(())
}

async fn exec_killed_by_signal(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod.container("app").shell("sleep 1000").start().await?;
    let sleep = Exec::start(
        &cx.lab,
        &app.id,
        "sleep",
        &["sleep", "1000"],
        ExecOptions::default(),
    )
    .await?;
    let pids = kybernate_integration::tasks::pids(&cx.lab, &app.id).await?;
    ensure!(
        pids.contains(&sleep.pid),
        "exec {} is not in {pids:?}",
        sleep.pid
    );
    sleep.kill(15).await?;
    ensure!(sleep.finish().await? == 143);
    ensure!(app.is_running().await?);
    Ok(())
}

async fn exec_dies_with_its_container(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    // The CRI deletes a task as soon as it has ended. Whoever asks for its execs after that
    // finds nothing, so it may take some containers to be in time.
    for round in 0..5 {
        let app = pod.container(&format!("app-{round}"));
        let app = app.shell("sleep 1000").start().await?;
        let exec = Exec::start(
            &cx.lab,
            &app.id,
            "left",
            &["sleep", "1000"],
            ExecOptions::default(),
        )
        .await?;
        cx.lab.kill("KILL", app.pid().await?)?;
        let status = exec.status_or_gone().await?;
        ensure!(app.wait_exit().await?.exit_code == 137);
        if let Some(status) = status {
            ensure!(status == 137, "{status}");
            return Ok(());
        }
    }
    bail!("no exec's end was seen before its task was deleted");
}
