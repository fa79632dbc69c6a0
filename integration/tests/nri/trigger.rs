//! The trigger socket from end to end: a container asks for its checkpoint, gets ready for every
//! one, and comes back from what it asked for.

use std::{fs, os::unix::fs::MetadataExt as _, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use kybernate_integration::{
    Case, Container, Pod, checkpoint::take, eventually, image::catalog, workload::Workload,
};
use kybernate_oci::archive::Archive;

use crate::plugin::{NodeSettings, Plugin};

const ALLOWED: &str = "[trigger]\nallow = true\ninterval_s = 5\nkeep = 2\nquiesce_s = 3\n";
const ARCHIVES: &str = "/var/lib/kybernate/triggered";
const LIMIT: Duration = Duration::from_secs(40);
const WISH: &str = "trigger.kybernate.io";

/// The program of `workloads/trigger.py`.
async fn start(pod: &Pod, argument: &str) -> Result<Container> {
    let script = include_str!("../../workloads/trigger.py");
    let container = pod
        .container("app")
        .image(catalog::APPS)
        .command(["python3", "-u", "-c", script, argument])
        .start()
        .await?;
    container.wait_stdout("told {\"ok\":true}").await?;
    Ok(container)
}

/// Waits until the log has a text so many times.
async fn said(container: &Container, text: &str, times: usize) -> Result<String> {
    eventually(&format!("{text:?}, time {times}"), LIMIT, || async {
        let log = container.stdout()?;
        Ok((log.matches(text).count() >= times).then_some(log))
    })
    .await
    .with_context(|| {
        let log = container.stdout().unwrap_or_default();
        let told: Vec<_> = log.lines().filter(|l| !l.starts_with("count")).collect();
        format!(
            "{}\n{}\n{}",
            told.join("\n"),
            container.stderr().unwrap_or_default(),
            container.lab.log_tail(15)
        )
    })
}

/// Lets the container ask, and returns what it is answered.
async fn ask(container: &Container) -> Result<String> {
    let before = container.stdout()?.matches("asked ").count();
    container.shell("touch /tmp/ask").await?;
    let log = said(container, "asked ", before + 1).await?;
    let answer = log
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("asked "));
    Ok(answer.context("no answer")?.to_owned())
}

/// The archives of the container, oldest first.
fn archives(pod: &Pod) -> Result<Vec<PathBuf>> {
    let directory = pod.lab.path(format!("{ARCHIVES}/{}/app", pod.full_name()));
    let mut paths: Vec<_> = fs::read_dir(&directory)
        .with_context(|| directory.display().to_string())?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<std::io::Result<_>>()?;
    paths.sort();
    Ok(paths)
}

pub async fn asks_and_comes_back(cx: Case) -> Result<()> {
    let _settings = NodeSettings::write(&cx.lab, ALLOWED)?;
    let _plugin = Plugin::start(&cx.lab).await?;
    let pod = cx.pod().annotation(WISH, "true").start().await?;
    let app = start(&pod, "").await?;

    let answer = ask(&app).await?;
    ensure!(answer.contains("\"ok\":true"), "{answer}");
    let log = said(&app, "\"event\":\"end\"", 1).await?;
    let told: Vec<_> = log.lines().filter(|l| !l.starts_with("count")).collect();
    println!("{}", told.join("\n"));
    let order = [
        "\"event\":\"quiesce\"",
        "\"event\":\"resume\"",
        "\"event\":\"end\"",
    ];
    let places: Vec<_> = order.iter().map(|event| log.find(event)).collect();
    ensure!(
        places.is_sorted() && places[0].is_some(),
        "{places:?}: {told:?}"
    );
    let [first] = &archives(&pod)?[..] else {
        anyhow::bail!("{:?}", archives(&pod)?);
    };
    let name = first.file_name().context("a name")?.to_string_lossy();
    ensure!(
        log.contains(&format!("\"ok\":true,\"archive\":\"{name}\"")),
        "{told:?}"
    );
    ensure!(fs::metadata(first)?.mode() & 0o7777 == 0o600);
    let manifest = Archive::open(first)?.manifest().clone();
    ensure!(
        manifest.requester.as_deref() == Some("the container itself")
            && manifest.warnings.is_empty(),
        "{manifest:?}"
    );

    // Whoever a program runs as, it reaches the socket: labs can't dump users other than root.
    let mode = app.shell("stat -c %a /run/kybernate/trigger.sock").await?;
    ensure!(mode == "666", "{mode}");

    // Too early; then twice more, and the oldest goes.
    let answer = ask(&app).await?;
    ensure!(answer.contains("retry_after_s"), "{answer}");
    for times in 2..=3 {
        tokio::time::sleep(Duration::from_secs(6)).await;
        let answer = ask(&app).await?;
        ensure!(answer.contains("\"ok\":true"), "{answer}");
        said(&app, "\"event\":\"end\"", times).await?;
    }
    let kept = archives(&pod)?;
    ensure!(kept.len() == 2 && !kept.contains(first), "{kept:?}");

    // Whoever asks, the container gets ready.
    take(&app, &[]).await?;
    said(&app, "\"event\":\"quiesce\"", 4).await?;
    said(&app, "\"event\":\"end\"", 4).await?;

    // The administrator changes their mind.
    let forbidden = NodeSettings::write(&cx.lab, "[trigger]\nallow = false\n")?;
    let answer = ask(&app).await?;
    ensure!(answer.contains("does not allow"), "{answer}");
    drop(forbidden);

    // It comes back from its own archive, and is told so.
    let _settings = NodeSettings::write(&cx.lab, ALLOWED)?;
    let newest = kept.last().context("an archive")?;
    let name = newest.file_name().context("a name")?.to_string_lossy();
    let source = format!("{ARCHIVES}/{}/app/{name}", pod.full_name());
    pod.remove().await?;
    let next = cx
        .pod()
        .annotation(WISH, "true")
        .annotation("restore.kybernate.io/app", &source)
        .start()
        .await?;
    let restored = next
        .container("app")
        .image(catalog::APPS)
        .command(["python3"])
        .start()
        .await?;
    let log = said(
        &restored,
        "told {\"event\":\"resume\",\"restored\":true}",
        1,
    )
    .await?;
    ensure!(!log.contains("count 1\n"), "began anew: {log}");
    let answer = ask(&restored).await?;
    ensure!(answer.contains("\"ok\":true"), "{answer}");
    said(&restored, "\"event\":\"end\"", 1).await?;
    ensure!(archives(&next)?.len() == 1);
    Ok(())
}

pub async fn never_ready(cx: Case) -> Result<()> {
    let _settings = NodeSettings::write(&cx.lab, ALLOWED)?;
    let _plugin = Plugin::start(&cx.lab).await?;
    let pod = cx.pod().annotation(WISH, "true").start().await?;
    let app = start(&pod, "never").await?;
    let archive = take(&app, &[]).await?;
    let warnings = archive.manifest()?.warnings;
    ensure!(
        warnings
            .iter()
            .any(|text| text.contains("did not get ready within 3 s")),
        "{warnings:?}"
    );
    said(&app, "\"event\":\"end\"", 1).await?;
    // A container of a pod that does not ask has no socket.
    let other = cx.pod().start().await?;
    let other = Workload::counter().start(&other).await?;
    other.shell("test ! -e /run/kybernate").await?;
    Ok(())
}
