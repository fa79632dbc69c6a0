//! Checkpoints that do not reach their end. Whatever the reason: an error soon, no file left,
//! and the container goes on.

use std::{
    fs,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use kybernate_config::request::{CheckpointRequest, PROGRESS_FILE, REQUEST_FILE, REQUEST_VERSION};
use kybernate_hooks::containerd::tasks::PauseTaskRequest;
use kybernate_integration::{
    Case, Container,
    checkpoint::{ARCHIVES, Archive, Staging, into_directory, run, take},
    eventually,
    node::Node,
    tasks,
    workload::Workload,
};

/// Enough memory that a checkpoint takes longer than a second.
const MIB: u32 = 1024;
/// How long undoing may take, on a machine that does other things too.
const UNDO: Duration = Duration::from_secs(10);

fn workload() -> Workload {
    Workload::memory_checked(MIB, 40)
}

fn request(deadline: Option<Duration>) -> CheckpointRequest {
    let at = |after| (SystemTime::now() + after).duration_since(UNIX_EPOCH);
    CheckpointRequest {
        version: REQUEST_VERSION,
        // Slow on purpose: there must be something to interrupt.
        level: Some("high".into()),
        buffer: Some("128MiB".into()),
        deadline: deadline
            .and_then(|after| at(after).ok())
            .map(|since| since.as_secs()),
        include: Vec::new(),
        encrypt_to: Vec::new(),
        requester: Some("interrupted".into()),
    }
}

/// The container runs, its memory is right, and a checkpoint of it can be taken.
async fn is_unharmed(work: &Workload, container: &Container) -> Result<()> {
    let before = work.count(container)?;
    work.is_well(container, before)
        .await
        .context("after the interrupted checkpoint")?;
    let archive = take(container, &["--level", "fast"])
        .await
        .context("a checkpoint afterwards")?;
    fs::remove_file(archive.file())?;
    work.is_well(container, before)
        .await
        .context("after the checkpoint afterwards")?;
    Ok(())
}

/// Pids of CRIU, which gives itself another command line while it works.
fn criu(cx: &Case) -> Result<Vec<u32>> {
    let processes = fs::read_dir(cx.lab.path("/proc"))?.flatten();
    let named = processes.filter(|process| {
        fs::read_to_string(process.path().join("comm")).is_ok_and(|name| name.trim() == "criu")
    });
    Ok(named
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .collect())
}

/// Waits until CRIU is in the middle of a dump.
async fn dump_has_begun(cx: &Case) -> Result<()> {
    eventually("CRIU at work", Duration::from_secs(20), || async {
        Ok((!criu(cx)?.is_empty()).then_some(()))
    })
    .await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    ensure!(!criu(cx)?.is_empty(), "the dump was over too soon");
    Ok(())
}

pub async fn deadline_of_the_command(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = workload();
    let container = work.start(&pod).await?;
    let archive = Archive::new(&cx.lab)?;
    let node = Node::look(&cx.lab)?;
    let arguments = ["--timeout", "1", "--level", "high", "--buffer", "128MiB"];
    let finished = archive.try_take(&container.id, &arguments).await?;
    let took = finished.took;
    let message = finished.refused()?;
    ensure!(
        took < Duration::from_secs(1) + UNDO,
        "{took:?} for a deadline of 1 s"
    );
    ensure!(
        message.contains("deadline") || message.contains("time"),
        "the message does not say that time was up: {message}"
    );
    node.is_unchanged().await?;
    is_unharmed(&work, &container).await
}

pub async fn deadline_of_the_call(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = workload();
    let container = work.start(&pod).await?;
    let node = Node::look(&cx.lab)?;
    {
        let staging = Staging::new(&cx.lab, ARCHIVES, &request(None))?;
        let begun = Instant::now();
        let status = staging
            .checkpoint(&container.id, Duration::from_secs(1))
            .await;
        let status = status
            .err()
            .context("the checkpoint was faster than its deadline")?;
        ensure!(
            begun.elapsed() < Duration::from_secs(3),
            "{:?}: {status}",
            begun.elapsed()
        );
        // The call is over; the client still holds its lock while the shim undoes.
        eventually("archive removed", UNDO, || async {
            let entries = staging.entries()?;
            Ok((!entries.iter().any(|name| name.starts_with("archive"))).then_some(()))
        })
        .await?;
    }
    node.is_unchanged().await?;
    is_unharmed(&work, &container).await
}

pub async fn client_killed(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = workload();
    let container = work.start(&pod).await?;
    let archive = Archive::new(&cx.lab)?;
    let node = Node::look(&cx.lab)?;
    let taking = tokio::spawn({
        let (archive, id) = (archive.clone(), container.id.clone());
        async move {
            archive
                .try_take(&id, &["--level", "high", "--buffer", "128MiB"])
                .await
        }
    });
    dump_has_begun(&cx).await?;
    for pid in cx.lab.pids_of("kybernate")? {
        cx.lab.kill("KILL", pid)?;
    }
    taking.await??.refused()?;
    ensure!(!archive.file().exists(), "an archive of a killed client");
    eventually("CRIU gone", UNDO, || async {
        Ok(criu(&cx)?.is_empty().then_some(()))
    })
    .await?;
    // A killed client can't remove its directory; the next one does, see `is_unharmed`.
    is_unharmed(&work, &container).await?;
    for entry in fs::read_dir(cx.lab.path(ARCHIVES))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(".kybernate-") {
            let left: Vec<_> = fs::read_dir(entry.path())?.flatten().collect();
            ensure!(
                !left
                    .iter()
                    .any(|e| e.file_name().to_string_lossy().starts_with("archive")),
                "{name} still holds {left:?}"
            );
            fs::remove_dir_all(entry.path())?;
        }
    }
    node.is_unchanged().await
}

pub async fn client_lets_go(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = workload();
    let container = work.start(&pod).await?;
    let node = Node::look(&cx.lab)?;
    {
        let mut staging = Staging::new(&cx.lab, ARCHIVES, &request(None))?;
        let path = cx.lab.path(&staging.path);
        let call = Staging::checkpoint(&staging, &container.id, Duration::from_secs(120));
        // The call is dropped with its lock, in the middle of the dump.
        tokio::select! {
            done = call => anyhow::bail!("the checkpoint ended by itself: {done:?}"),
            begun = dump_has_begun(&cx) => begun?,
        }
        staging.abandon();
        eventually("archive removed", UNDO, || async {
            Ok((!path.join("archive.tar.zst").exists()).then_some(()))
        })
        .await?;
        let left = staging.entries()?;
        let known = [REQUEST_FILE, PROGRESS_FILE];
        ensure!(
            left.iter().all(|name| known.contains(&name.as_str())),
            "left in the staging directory: {left:?}"
        );
    }
    node.is_unchanged().await?;
    is_unharmed(&work, &container).await
}

pub async fn criu_killed(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = workload();
    let container = work.start(&pod).await?;
    let archive = Archive::new(&cx.lab)?;
    let node = Node::look(&cx.lab)?;
    let taking = tokio::spawn({
        let (archive, id) = (archive.clone(), container.id.clone());
        async move {
            archive
                .try_take(&id, &["--level", "high", "--buffer", "128MiB"])
                .await
        }
    });
    dump_has_begun(&cx).await?;
    for pid in criu(&cx)? {
        cx.lab.kill("KILL", pid)?;
    }
    let message = taking.await??.refused()?;
    ensure!(
        message.to_lowercase().contains("criu"),
        "the message does not name CRIU: {message}"
    );
    node.is_unchanged().await?;
    is_unharmed(&work, &container).await
}

pub async fn container_killed(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = workload();
    let container = work.start(&pod).await?;
    let archive = Archive::new(&cx.lab)?;
    let taking = tokio::spawn({
        let (archive, id) = (archive.clone(), container.id.clone());
        async move {
            archive
                .try_take(&id, &["--level", "high", "--buffer", "128MiB"])
                .await
        }
    });
    dump_has_begun(&cx).await?;
    let begun = Instant::now();
    // Whether the archive becomes complete is open; that the kill gets through is not.
    tasks::kill(&cx.lab, &container.id, 9, true).await?;
    let status = container.wait_exit().await?;
    ensure!(status.exit_code == 137, "exit code {}", status.exit_code);
    let finished = taking.await??;
    ensure!(
        begun.elapsed() < Duration::from_secs(60),
        "{:?}",
        begun.elapsed()
    );
    if finished.code == 0 {
        run(&cx.lab, &["kybernate", "verify", &archive.path])
            .await?
            .ok()?;
    } else {
        ensure!(
            !archive.file().exists(),
            "an archive of a failed checkpoint"
        );
    }
    container.remove().await?;
    let next = Workload::counter().start(&pod).await?;
    ensure!(next.is_running().await?);
    Ok(())
}

pub async fn containerd_restarted(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = workload();
    let container = work.start(&pod).await?;
    let archive = Archive::new(&cx.lab)?;
    let taking = tokio::spawn({
        let (archive, id) = (archive.clone(), container.id.clone());
        async move {
            archive
                .try_take(&id, &["--level", "high", "--buffer", "128MiB"])
                .await
        }
    });
    dump_has_begun(&cx).await?;
    cx.lab.kill_containerd().await?;
    cx.lab.start_containerd().await?;
    let finished = taking.await??;
    if finished.code != 0 {
        ensure!(
            !archive.file().exists(),
            "an archive of a failed checkpoint"
        );
    }
    eventually("CRIU gone", UNDO, || async {
        Ok(criu(&cx)?.is_empty().then_some(()))
    })
    .await?;
    ensure!(
        container.is_running().await?,
        "containerd has given the container up"
    );
    is_unharmed(&work, &container).await
}

/// containerd's own way: it pauses, dumps into a directory of its own, and resumes with a
/// context that has run out by then.
pub async fn deadline_of_a_plain_dump(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = workload();
    let container = work.start(&pod).await?;
    let node = Node::look(&cx.lab)?;
    let path = format!("{ARCHIVES}/plain-{}", container.id);
    fs::create_dir_all(cx.lab.path(&path))?;
    let id = || container.id.clone();
    cx.lab
        .tasks()
        .pause(PauseTaskRequest { container_id: id() })
        .await?;
    let limit = Some(Duration::from_millis(400));
    let dumped = into_directory(&cx.lab, &container.id, &path, limit).await;
    ensure!(dumped.is_err(), "the dump was faster than its deadline");
    eventually("the dump undone", UNDO, || async {
        if !criu(&cx)?.is_empty() {
            return Ok(None);
        }
        let left = fs::read_dir(cx.lab.path(&path))?.flatten();
        let images = left
            .filter(|e| e.file_name().to_string_lossy().ends_with(".img"))
            .count();
        Ok((images == 0).then_some(()))
    })
    .await?;
    fs::remove_dir_all(cx.lab.path(&path))?;
    // Nobody resumes it any more: the shim must have.
    work.is_well(&container, work.count(&container)?).await?;
    node.is_unchanged().await?;
    is_unharmed(&work, &container).await
}
