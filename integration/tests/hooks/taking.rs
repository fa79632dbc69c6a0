//! `CheckpointContainer` through the hook, as kubelet calls it.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Context, Result, ensure};
use kybernate_integration::{
    Case, Container, Distro,
    checkpoint::{Archive, run},
    encryption::Key,
    eventually,
    node::Node,
    workload::Workload,
};
use tonic::Code;

use kybernate_integration::hook::{CHECKPOINTS, Hook, checkpoint, left};

/// kubelet's default.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Within which a checkpoint that nobody waits for any more is undone, also while a disk is busy.
const UNDONE: Duration = Duration::from_secs(10);

/// A name as kubelet makes them.
fn location(name: &str) -> String {
    format!("{CHECKPOINTS}/checkpoint-{name}_lab-app-2026-11-24T08:30:00+01:00.tar")
}

fn archive(container: &Container, name: &str) -> Archive {
    Archive::at(&container.lab, location(name))
}

async fn clean(cx: &Case) -> Result<()> {
    for name in left(&cx.lab)? {
        fs::remove_file(cx.lab.path(CHECKPOINTS).join(name))?;
    }
    Ok(())
}

/// The same on both releases of containerd: what the file is like, who reads it, what it becomes.
pub async fn archive_and_back(cx: Case) -> Result<()> {
    let hook = Hook::start(&cx.lab).await?;
    let pod = cx.pod().start().await?;
    let work = Workload::memory(48);
    let container = work.start(&pod).await?;
    let at = work.count(&container)?;
    checkpoint(&container, &location("whole"), TIMEOUT).await?;
    let archive = archive(&container, "whole");
    ensure!(archive.mode()? == 0o600, "{:o}", archive.mode()?);
    ensure!(left(&cx.lab)?.len() == 1, "{:?}", left(&cx.lab)?);
    work.is_well(&container, at).await?;

    let path = archive.path.as_str();
    let manifest = archive.manifest()?;
    let names: BTreeSet<&str> = manifest.entries.iter().map(|e| e.name.as_str()).collect();
    let outside: Vec<_> = names
        .iter()
        .filter(|n| !n.starts_with("checkpoint/"))
        .collect();
    ensure!(
        outside
            == [
                &"bind.mounts",
                &"config.dump",
                &"container.log",
                &"deleted.files",
                &"dump.log",
                &"rootfs-diff.tar",
                &"spec.dump",
                &"stats-dump",
                &"status.dump"
            ],
        "another layout: {outside:?}"
    );
    let who = manifest.requester.clone().unwrap_or_default();
    ensure!(
        who.contains("CRI") && who.contains("uid 0"),
        "requester {who:?}"
    );
    let inspected = run(&cx.lab, &["checkpointctl", "inspect", "--all", path])
        .await?
        .ok()?;
    for part in ["Process tree", "memory", "CRIU dump statistics"] {
        ensure!(inspected.contains(part), "no {part:?} in {inspected}");
    }
    run(&cx.lab, &["kybernate", "verify", path]).await?.ok()?;

    // The line about it.
    let log = hook.log()?;
    let line = log
        .lines()
        .filter(|line| line.contains("kybernate::audit"))
        .find(|line| line.contains(&container.id))
        .with_context(|| log.clone())?;
    let opened = kybernate_oci::archive::Archive::open(archive.file())?;
    for part in [
        opened.manifest_sha256(),
        "checkpoint taken",
        path,
        "request",
        "caller",
    ] {
        ensure!(line.contains(part), "no {part:?} in {line}");
    }
    let text = hook.get("/metrics").await?;
    ensure!(
        text.contains("kybernate_cri_checkpoints_total{result=\"ok\"} 1"),
        "{text}"
    );
    ensure!(
        text.contains("kybernate_cri_checkpoint_phase_seconds_count{phase=\"dump\"}"),
        "{text}"
    );

    // And back, by the command and by an annotation.
    let next = cx.pod().start().await?;
    let printed = run(&cx.lab, &["kybernate", "restore", path, "--pod", &next.id])
        .await?
        .ok()?;
    ensure!(printed.trim().len() == 64, "{printed}");
    let third = cx.pod().start().await?;
    let restored = work.restore(&third, &archive).await?;
    work.went_on(&restored, at).await?;
    clean(&cx).await
}

/// Another handler's container is containerd's to checkpoint, or not.
pub async fn another_handlers_container(cx: Case) -> Result<()> {
    let hook = Hook::start(&cx.lab).await?;
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let container = work.start(&pod).await?;
    let answer = checkpoint(&container, &location("foreign"), TIMEOUT).await;
    match cx.lab.distro() {
        Distro::Trixie => {
            let status = answer.err().context("containerd 1.7 has no such call")?;
            ensure!(status.code() == Code::Unimplemented, "{status}");
            ensure!(status.message().contains("CheckpointContainer"), "{status}");
            ensure!(left(&cx.lab)?.is_empty());
        }
        Distro::Forky => {
            answer?;
            // containerd's own: a plain tar.
            let listed = run(&cx.lab, &["tar", "-tf", &location("foreign")])
                .await?
                .ok()?;
            ensure!(listed.contains("config.dump"), "{listed}");
        }
    }
    ensure!(
        !hook.log()?.contains(&container.id),
        "the hook has said something about it"
    );
    work.is_well(&container, work.count(&container)?).await?;
    clean(&cx).await
}

pub async fn what_it_is_told(cx: Case) -> Result<()> {
    let _hook = Hook::start(&cx.lab).await?;
    let pod = cx.pod().start().await?;
    let refused = async |container: &Container, location: &str, code: Code, text: &str| {
        let status = checkpoint(container, location, TIMEOUT)
            .await
            .err()
            .context("a checkpoint that can't be")?;
        ensure!(status.code() == code, "{code:?} wanted: {status}");
        ensure!(
            status.message().contains(text),
            "{text:?} is not in {status}"
        );
        ensure!(
            !status.message().contains(" --"),
            "advice for a command line: {status}"
        );
        ensure!(left(&cx.lab)?.is_empty(), "{:?}", left(&cx.lab)?);
        Ok(())
    };
    let created = pod.container("created").shell("sleep 99").create().await?;
    refused(
        &created,
        &location("a"),
        Code::FailedPrecondition,
        "without a process",
    )
    .await?;
    let ended = pod.container("ended").shell("exit 3").start().await?;
    ended.wait_exit().await?;
    refused(&ended, &location("a"), Code::FailedPrecondition, "running").await?;
    let running = Workload::counter().start(&pod).await?;
    refused(&running, "somewhere.tar", Code::InvalidArgument, "absolute").await?;
    refused(&running, CHECKPOINTS, Code::InvalidArgument, "directory").await?;
    let nowhere = "/var/lib/kubelet/nowhere/a.tar";
    refused(&running, nowhere, Code::InvalidArgument, "does not exist").await?;
    let mut nothing = running.clone();
    nothing.id = "0123456789abcdef".into();
    let code = match cx.lab.distro() {
        Distro::Trixie => Code::Unimplemented,
        Distro::Forky => Code::NotFound,
    };
    refused(&nothing, &location("a"), code, "").await
}

/// containerd 1.7 keeps the directory from shims of other types than runc's.
pub async fn own_type_on_1_7(cx: Case) -> Result<()> {
    let _hook = Hook::start(&cx.lab).await?;
    let pod = cx.pod().start().await?;
    let container = Workload::counter().start(&pod).await?;
    let status = checkpoint(&container, &location("typed"), TIMEOUT).await;
    let status = status
        .err()
        .context("a checkpoint on 1.7 under our own type")?;
    ensure!(status.code() == Code::FailedPrecondition, "{status}");
    ensure!(status.message().contains("runtime_path"), "{status}");
    ensure!(left(&cx.lab)?.is_empty());
    Ok(())
}

pub async fn twice_at_once(cx: Case) -> Result<()> {
    let _hook = Hook::start(&cx.lab).await?;
    let pod = cx.pod().start().await?;
    let work = Workload::memory(128);
    let container = work.start(&pod).await?;
    let (first, second) = (location("first"), location("second"));
    let (a, b) = tokio::join!(
        checkpoint(&container, &first, TIMEOUT),
        checkpoint(&container, &second, TIMEOUT)
    );
    let mut taken = 0;
    for (path, answer) in [(&first, a), (&second, b)] {
        let there = cx.lab.path(path).exists();
        ensure!(
            there == answer.is_ok(),
            "{path}: {answer:?}, there: {there}"
        );
        if there {
            run(&cx.lab, &["kybernate", "verify", path]).await?.ok()?;
            taken += 1;
        }
    }
    ensure!(taken >= 1, "neither was taken");
    ensure!(left(&cx.lab)?.len() == taken, "{:?}", left(&cx.lab)?);
    // The same second, the same name: the later one is there, whole.
    for _ in 0..2 {
        checkpoint(&container, &first, TIMEOUT).await?;
        run(&cx.lab, &["kybernate", "verify", &first]).await?.ok()?;
    }
    work.is_well(&container, work.count(&container)?).await?;
    clean(&cx).await
}

pub async fn during_exec(cx: Case) -> Result<()> {
    let _hook = Hook::start(&cx.lab).await?;
    let pod = cx.pod().start().await?;
    let work = Workload::memory(64);
    let container = work.start(&pod).await?;
    let path = location("exec");
    let (exec, taken) = tokio::join!(
        container.exec(&["/bin/sh", "-c", "sleep 2; echo done"]),
        async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            checkpoint(&container, &path, TIMEOUT).await
        }
    );
    // Whether a process with a foreign terminal can be in an archive is CRIU's to say. What runs
    // goes on, and there is a whole file or none.
    ensure!(exec?.stdout == "done\n");
    match taken {
        Ok(()) => drop(run(&cx.lab, &["kybernate", "verify", &path]).await?.ok()?),
        Err(status) => {
            eprintln!("during an exec: {status}");
            ensure!(left(&cx.lab)?.is_empty(), "{:?}", left(&cx.lab)?);
        }
    }
    work.is_well(&container, work.count(&container)?).await?;
    clean(&cx).await
}

pub async fn during_deletion(cx: Case) -> Result<()> {
    let _hook = Hook::start(&cx.lab).await?;
    let pod = cx.pod().start().await?;
    let work = Workload::memory(256);
    let container = work.start(&pod).await?;
    let path = location("deleted");
    let (taken, removed) = tokio::join!(checkpoint(&container, &path, TIMEOUT), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        pod.stop().await?;
        pod.remove().await
    });
    removed.context("the pod can't be deleted")?;
    if taken.is_ok() {
        run(&cx.lab, &["kybernate", "verify", &path]).await?.ok()?;
    } else {
        ensure!(left(&cx.lab)?.is_empty(), "{:?}", left(&cx.lab)?);
    }
    clean(&cx).await
}

/// The oldest go, the pinned and the newest of each container stay.
pub async fn old_ones_make_way(cx: Case) -> Result<()> {
    let hook = Hook::start_with(&cx.lab, &[("KYBERNATE_RETENTION_PER_POD", "2")]).await?;
    let pod = cx.pod().start().await?;
    let app = Workload::counter().start(&pod).await?;
    fs::write(cx.lab.path(CHECKPOINTS).join("notes.tar"), "no archive")?;
    for n in 0..4 {
        if n == 1 {
            fs::write(cx.lab.path(location("n0") + ".keep"), "")?;
        }
        checkpoint(&app, &location(&format!("n{n}")), TIMEOUT).await?;
    }
    let there = |name: &str| cx.lab.path(location(name)).exists();
    ensure!(there("n0"), "a pinned archive was removed");
    ensure!(!there("n1") && !there("n2"), "{:?}", left(&cx.lab)?);
    ensure!(there("n3"), "the newest was removed");
    ensure!(left(&cx.lab)?.contains(&"notes.tar".to_owned()));
    let text = hook.get("/metrics").await?;
    ensure!(
        text.contains("kybernate_cri_retention_removed_archives_total 2"),
        "{text}"
    );
    clean(&cx).await
}

/// A node that encrypts, and can't read what it writes, keeps as many archives as any other.
pub async fn encrypted(cx: Case) -> Result<()> {
    let key = Key::new(&cx.lab)?;
    key.set(&key.encrypts(""))?;
    let hook = Hook::start_with(&cx.lab, &[("KYBERNATE_RETENTION_PER_POD", "1")]).await?;
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let app = work.start(&pod).await?;
    for name in ["first", "second", "third"] {
        checkpoint(&app, &location(name), TIMEOUT).await?;
    }
    let archive = archive(&app, "third");
    ensure!(
        left(&cx.lab)?.len() == 1 && archive.file().exists(),
        "{:?}",
        left(&cx.lab)?
    );
    let text = hook.get("/metrics").await?;
    for line in [
        "kybernate_cri_checkpoints_total{result=\"ok\"} 3",
        "kybernate_cri_retention_removed_archives_total 2",
    ] {
        ensure!(text.contains(line), "no {line} in {text}");
    }
    key.verifies(&archive, 1).await?;
    let at = work.count(&app)?;
    key.set(&key.decrypts())?;
    let restored = work.restore(&pod, &archive).await?;
    work.is_well(&restored, at.saturating_sub(1)).await?;
    clean(&cx).await
}

/// Space that must stay free is seen to before the container is touched.
pub async fn no_room(cx: Case) -> Result<()> {
    let node;
    {
        let _hook =
            Hook::start_with(&cx.lab, &[("KYBERNATE_RETENTION_MIN_FREE", "1000TiB")]).await?;
        let pod = cx.pod().start().await?;
        let work = Workload::counter();
        let container = work.start(&pod).await?;
        node = Node::look(&cx.lab)?;
        let status = checkpoint(&container, &location("full"), TIMEOUT).await;
        let status = status.err().context("a checkpoint without room")?;
        ensure!(status.code() == Code::ResourceExhausted, "{status}");
        ensure!(status.message().contains("min_free"), "{status}");
        ensure!(left(&cx.lab)?.is_empty());
        node.is_unchanged().await?;
        work.is_well(&container, work.count(&container)?).await?;
    }
    Ok(())
}

/// A disk that is too small at once, and one that gets full on the way.
pub async fn disk_full(cx: Case) -> Result<()> {
    let _hook = Hook::start(&cx.lab).await?;
    let pod = cx.pod().start().await?;
    let work = Workload::memory(128);
    let container = work.start(&pod).await?;
    for (size, text) in [("20m", "free"), ("50m", "space")] {
        let option = format!("size={size}");
        let mount = ["mount", "-t", "tmpfs", "-o", &option, "small", CHECKPOINTS];
        cx.lab.exec(&mount)?;
        let played = async {
            let node = Node::look(&cx.lab)?;
            let status = checkpoint(&container, &location("small"), TIMEOUT).await;
            let status = status.err().context("an archive that does not fit")?;
            ensure!(status.code() == Code::ResourceExhausted, "{status}");
            ensure!(status.message().to_lowercase().contains(text), "{status}");
            ensure!(left(&cx.lab)?.is_empty(), "{:?}", left(&cx.lab)?);
            node.is_unchanged().await
        }
        .await;
        cx.lab.exec(&["umount", CHECKPOINTS])?;
        played.with_context(|| format!("on {size}"))?;
        work.is_well(&container, work.count(&container)?).await?;
    }
    Ok(())
}

/// A second is too little for a gibibyte: an error soon, no file, and the container goes on.
pub async fn one_second_for_a_gibibyte(cx: Case) -> Result<()> {
    let _hook = Hook::start_with(&cx.lab, &[("KYBERNATE_LEVEL", "high")]).await?;
    let pod = cx.pod().start().await?;
    let work = Workload::memory_checked(1024, 40);
    let container = work.start(&pod).await?;
    let node = Node::look(&cx.lab)?;
    let second = Duration::from_secs(1);
    let path = location("late");
    let begun = std::time::Instant::now();
    let status = checkpoint(&container, &path, second).await;
    let took = begun.elapsed();
    let status = status.err().context("a gibibyte within a second")?;
    ensure!(
        took < 2 * second,
        "{took:?} for a deadline of 1 s: {status}"
    );
    ensure!(
        [Code::DeadlineExceeded, Code::Cancelled].contains(&status.code()),
        "{status}"
    );
    eprintln!("deadline of 1 s: after {took:?}: {status}");
    let empty = || async { Ok(left(&cx.lab)?.is_empty().then_some(())) };
    // Where the caller's patience ends first, it is undone after that.
    eventually("nothing left", UNDONE, empty).await?;
    eprintln!("nothing left: after {:?}", begun.elapsed());
    node.is_unchanged().await?;
    work.is_well(&container, work.count(&container)?).await?;
    // With time enough it is taken.
    checkpoint(&container, &path, TIMEOUT).await?;
    run(&cx.lab, &["kybernate", "verify", &path]).await?.ok()?;
    work.is_well(&container, work.count(&container)?).await?;
    clean(&cx).await
}

/// A caller that goes away, and a hook that is killed: the shim undoes, the container goes on.
pub async fn nobody_waits_any_more(cx: Case) -> Result<()> {
    let mut hook = Hook::start(&cx.lab).await?;
    let pod = cx.pod().start().await?;
    let work = Workload::memory_checked(512, 40);
    let container = work.start(&pod).await?;
    let path = location("gone");
    let staged = || async {
        let names = left(&cx.lab)?;
        Ok(names
            .iter()
            .any(|n| n.starts_with(".kybernate-"))
            .then_some(()))
    };
    let called = tokio::spawn({
        let (container, path) = (container.clone(), path.clone());
        async move { checkpoint(&container, &path, TIMEOUT).await }
    });
    eventually("a checkpoint begins", Duration::from_secs(10), staged).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    called.abort();
    let empty = || async { Ok(left(&cx.lab)?.is_empty().then_some(())) };
    eventually("nothing left of it", UNDONE, empty).await?;
    work.is_well(&container, work.count(&container)?).await?;

    let called = tokio::spawn({
        let (container, path) = (container.clone(), path.clone());
        async move { checkpoint(&container, &path, TIMEOUT).await }
    });
    eventually("a checkpoint begins", Duration::from_secs(10), staged).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    hook.signal("KILL")?;
    hook.gone(Duration::from_secs(5)).await?;
    let status = called.await?.err().context("an answer of a killed hook")?;
    ensure!(
        [Code::Unavailable, Code::Unknown, Code::Cancelled].contains(&status.code()),
        "{status}"
    );
    drop(hook);
    // The shim removes what the hook can't any more.
    eventually("nothing left of it, either", UNDONE, empty).await?;
    ensure!(!cx.lab.path(&path).exists());
    work.is_well(&container, work.count(&container)?).await?;
    Ok(())
}
