//! What containers print: streams, long lines, rotation, standard input, terminals.

use std::{fs, io::Write as _};

use anyhow::{Context, Result, ensure};
use kybernate_integration::{Case, Container, Suite};

pub fn add(suite: Suite) -> Suite {
    suite
        .case("log_streams_stay_apart", log_streams_stay_apart)
        .case(
            "log_long_and_unfinished_lines",
            log_long_and_unfinished_lines,
        )
        .case("log_keeps_every_line", log_keeps_every_line)
        .case("log_rotation", log_rotation)
        .case("container_with_terminal", container_with_terminal)
        .case("container_with_stdin", container_with_stdin)
}

async fn log_streams_stay_apart(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod
        .container("app")
        .shell("echo out; echo err >&2; echo out again")
        .start()
        .await?;
    app.wait_exit().await?;
    ensure!(app.stdout()? == "out\nout again\n", "{:?}", app.log()?);
    ensure!(app.stderr()? == "err\n", "{:?}", app.log()?);
    Ok(())
}

async fn log_long_and_unfinished_lines(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod
        .container("app")
        .shell("head -c 40000 /dev/zero | tr '\\0' x; echo; printf 'no line feed'")
        .start()
        .await?;
    app.wait_exit().await?;
    let log = app.log()?;
    let parts = log.iter().filter(|line| line.partial).count();
    ensure!(parts >= 2, "a line of 40000 bytes came in {parts} parts");
    let expected = format!("{}\nno line feed", "x".repeat(40000));
    let found = app.stdout()?;
    ensure!(
        found.trim_end_matches('\n') == expected,
        "{} bytes logged",
        found.len()
    );
    Ok(())
}

async fn log_keeps_every_line(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    // It ends right after its last line: what is still in the pipe must not be lost.
    let app = pod.container("app").shell("seq 1 20000").start().await?;
    app.wait_exit().await?;
    let expected: String = (1..=20000).map(|n| format!("{n}\n")).collect();
    let found = app.stdout()?;
    ensure!(
        found == expected,
        "{} of 20000 lines, the last is {:?}",
        found.lines().count(),
        found.lines().last()
    );
    Ok(())
}

async fn log_rotation(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod
        .container("app")
        .shell("i=0; while true; do i=$((i+1)); echo line $i; sleep 0.05; done")
        .start()
        .await?;
    app.wait_stdout("line 3\n").await?;
    let file = app.log_file();
    fs::rename(&file, file.with_extension("rotated"))?;
    app.reopen_log().await?;
    let last = fs::read_to_string(file.with_extension("rotated"))?
        .lines()
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u32>().ok())
        .max()
        .context("nothing in the rotated log")?;
    let new = app.wait_stdout(&format!("line {}\n", last + 3)).await?;
    let first = new.lines().next().unwrap_or_default();
    ensure!(
        first == format!("line {}", last + 1),
        "after line {last} the new log begins with {first:?}"
    );
    Ok(())
}

async fn container_with_terminal(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod
        .container("app")
        .edit(|config| config.tty = true)
        .shell("[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && tty && echo oops >&2")
        .start()
        .await?;
    let status = app.wait_exit().await?;
    ensure!(status.exit_code == 0, "{status:?} {:?}", app.log()?);
    // A terminal has one output.
    ensure!(app.stdout()? == "/dev/pts/0\noops\n", "{:?}", app.log()?);
    Ok(())
}

async fn container_with_stdin(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod
        .container("app")
        .edit(|config| config.stdin = true)
        .shell("while read -r line; do echo got $line; done; echo end of input")
        .start()
        .await?;
    let mut stdin = open_stdin(&app)?;
    stdin.write_all(b"first\nsecond\n")?;
    app.wait_stdout("got second\n").await?;
    ensure!(app.stdout()? == "got first\ngot second\n");
    ensure!(app.is_running().await?);
    Ok(())
}

/// The FIFO through which containerd feeds a container.
fn open_stdin(app: &Container) -> Result<fs::File> {
    let streams = app.lab.path(format!(
        "/run/containerd/io.containerd.grpc.v1.cri/containers/{}/io",
        app.id
    ));
    let entry = fs::read_dir(&streams)
        .with_context(|| format!("no {}", streams.display()))?
        .next()
        .context("the container has no streams")??;
    let fifo = entry.path().join(format!("{}-stdin", app.id));
    // For reading too: opening does not wait for the shim then.
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&fifo)
        .with_context(|| format!("cannot open {}", fifo.display()))
}
