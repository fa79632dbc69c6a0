//! What pods wish for: done where it is granted, refused where it is not.

use std::fs;

use anyhow::{Context, Result, ensure};
use kybernate_config::names::{ADD_CAPABILITIES, BLOCK_IO_URING, MANAGED, RESTORE_FROM};
use kybernate_integration::{
    Case, Container,
    checkpoint::{run, take},
    workload::Workload,
};

use crate::plugin::{NodeSettings, Plugin};

const GRANTS: &str = "[wishes]\ncapabilities = ['SYS_PTRACE']\n";
/// Its bit in `/proc/<pid>/status` (include/uapi/linux/capability.h).
const SYS_PTRACE: u32 = 19;
const ENOSYS: &str = "38";

/// A field of the status of the container's first process.
async fn status(container: &Container, field: &str) -> Result<String> {
    let text = container.shell("cat /proc/1/status").await?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    Ok(line.context(text.clone())?.trim().to_owned())
}

async fn has_ptrace(container: &Container) -> Result<bool> {
    let sets = ["CapBnd:", "CapPrm:", "CapEff:"];
    let mut found = Vec::new();
    for set in sets {
        let bits = u64::from_str_radix(&status(container, set).await?, 16)?;
        found.push(bits & 1 << SYS_PTRACE != 0);
    }
    ensure!(found.iter().all(|has| *has == found[0]), "{found:?}");
    Ok(found[0])
}

pub async fn granted_wishes_are_done(cx: Case) -> Result<()> {
    let _settings = NodeSettings::write(&cx.lab, GRANTS)?;
    let _plugin = Plugin::start(&cx.lab).await?;
    let work = Workload::counter();
    let wishing = || {
        cx.pod()
            .annotation("capabilities.kybernate.io/counter", "sys_ptrace")
            .annotation("block-io-uring.kybernate.io", "true")
            .annotation("block-io-uring.kybernate.io/free", "false")
            .annotation(
                "criu.kybernate.io/counter",
                "timeout=120, force-irmap, ghost-fiemap",
            )
    };
    let pod = wishing().start().await?;
    let counter = work.start(&pod).await?;
    ensure!(has_ptrace(&counter).await?);
    ensure!(status(&counter, "Seccomp:").await? == "2");
    let free = pod.container("free").shell("sleep 600");
    let free = free.start().await?;
    ensure!(!has_ptrace(&free).await?);
    ensure!(status(&free, "Seccomp:").await? == "0");
    let blocked = pod.container("blocked").shell("sleep 600");
    let blocked = blocked.start().await?;
    let (without, with) = (
        free.shell("iouring").await?,
        blocked.shell("iouring").await?,
    );
    println!("io_uring_setup: errno {without} without the wish, {with} with it");
    ensure!(with == ENOSYS && without != ENOSYS, "{without} and {with}");

    // The wishes hold through a checkpoint, and their options are CRIU's.
    // An ended container's bundle goes away: its options are read while it runs.
    take(&counter, &[]).await?;
    let options = fs::read_to_string(counter.bundle().join("criu.conf"))?;
    ensure!(
        options.contains("tcp-close\n")
            && options.ends_with("timeout 120\nforce-irmap\nghost-fiemap\n"),
        "{options}"
    );
    let at = work.count(&counter)?;
    let archive = take(&counter, &["--exit"]).await?;
    pod.remove().await?;
    let next = wishing()
        .annotation("restore.kybernate.io/counter", &archive.path)
        .start()
        .await?;
    let restored = work.container(&next).start().await?;
    work.went_on(&restored, at).await?;
    ensure!(status(&restored, "Seccomp:").await? == "2");
    ensure!(has_ptrace(&restored).await?);
    Ok(())
}

pub async fn others_refuse(cx: Case) -> Result<()> {
    let _settings = NodeSettings::write(&cx.lab, GRANTS)?;
    let _plugin = Plugin::start(&cx.lab).await?;
    for (key, value, says) in [
        (
            "capabilities.kybernate.io/app",
            "SYS_PTRACE,SYS_ADMIN",
            "CAP_SYS_ADMIN",
        ),
        ("capabilities.kybernate.io", "EVERYTHING", "EVERYTHING"),
        (
            "criu.kybernate.io/app",
            "action-script=/tmp/x",
            "action-script",
        ),
        (
            "criu.kybernate.io",
            "ghost-limit=1TiB",
            "wishes.criu_options",
        ),
        ("block-io-uring.kybernate.io", "yes", "yes"),
        ("gpu.kybernate.io/app", "1", "true"),
        ("trigger.kybernate.io", "true", "[trigger]"),
        ("trigger.kybernate.io", "", "true"),
        (
            ADD_CAPABILITIES,
            "SYS_PTRACE",
            "capabilities.kybernate.io/app",
        ),
        (BLOCK_IO_URING, "true", "block-io-uring.kybernate.io/app"),
        ("org.criu.config", "/etc/shadow", "criu.kybernate.io/app"),
    ] {
        let pod = cx.pod().annotation(key, value).start().await?;
        let error = match pod.container("app").shell("true").create().await {
            Ok(_) => anyhow::bail!("{key}: {value:?} was taken"),
            Err(error) => format!("{error:#}"),
        };
        println!("{error}");
        ensure!(error.contains(key) && error.contains(says), "{error}");
        pod.remove().await?;
    }
    Ok(())
}

/// With the plugin away nobody but the shim stands between a pod's author and the node.
pub async fn passed_on_annotations_refuse(cx: Case) -> Result<()> {
    let config = cx.lab.path("/etc/containerd/config.toml");
    let before = fs::read_to_string(&config)?;
    let passing = "container_annotations = ['kybernate.io/*']\n\
                   pod_annotations = ['kybernate.io/*']\n";
    let line = "container_annotations = ['kybernate.io/*']\n";
    fs::write(&config, before.replace(line, passing))?;
    cx.lab.kill_containerd().await?;
    cx.lab.start_containerd().await?;
    let outcome = async {
        for (key, value) in [
            (RESTORE_FROM, "/etc/shadow"),
            (ADD_CAPABILITIES, "SYS_PTRACE"),
            (BLOCK_IO_URING, "true"),
        ] {
            let pod = cx.pod().annotation(key, value).start().await?;
            let started = pod.container("app").shell("sleep 60").start().await;
            let error = format!("{:#}", started.err().context(key)?);
            println!("{error}");
            ensure!(
                error.contains(key) && error.contains("comes from the pod"),
                "{error}"
            );
            pod.remove().await?;
        }
        // What a client of the CRI sets is its own word, and judged all the same.
        let pod = cx.pod().start().await?;
        let app = pod.container("app").annotation(BLOCK_IO_URING, "true");
        let app = app.shell("sleep 60").start().await?;
        ensure!(status(&app, "Seccomp:").await? == "2");
        let greedy = pod
            .container("greedy")
            .annotation(ADD_CAPABILITIES, "SYS_PTRACE");
        let error = greedy.shell("sleep 60").start().await.err();
        let error = format!("{:#}", error.context("granted what is not")?);
        ensure!(error.contains("wishes.capabilities"), "{error}");
        pod.remove().await
    }
    .await;
    fs::write(&config, before)?;
    cx.lab.kill_containerd().await?;
    cx.lab.start_containerd().await?;
    outcome
}

pub async fn unprepared_is_told(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let before = cx.lab.log().matches(MANAGED).count();
    let without = work.start(&pod).await?;
    let told = cx.lab.log().matches(MANAGED).count() - before;
    ensure!(told == 1, "told {told} times: {}", cx.lab.log_tail(20));
    let warnings = take(&without, &[]).await?.manifest()?.warnings;
    ensure!(
        warnings.len() == 1 && warnings[0].contains(MANAGED),
        "{warnings:?}"
    );
    let doctor = run(&cx.lab, &["kybernate", "doctor"]).await?.stdout;
    let name = format!("{}/counter", pod.full_name());
    ensure!(
        doctor.contains("NRI plugin") && doctor.contains(&name),
        "{doctor}"
    );
    pod.remove().await?;

    let _plugin = Plugin::start(&cx.lab).await?;
    let pod = cx.pod().start().await?;
    let before = cx.lab.log().matches(MANAGED).count();
    let with = work.start(&pod).await?;
    ensure!(cx.lab.log().matches(MANAGED).count() == before);
    ensure!(take(&with, &[]).await?.manifest()?.warnings.is_empty());
    let doctor = run(&cx.lab, &["kybernate", "doctor"]).await?.stdout;
    ensure!(
        doctor.contains("NRI plugin") && !doctor.contains("/counter"),
        "{doctor}"
    );
    Ok(())
}
