//! Containers into which a runtime and its hooks put mounts, as NVIDIA's container toolkit does.
//! The double of it is `doubles/nvidia-container-runtime`.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use kybernate_config::names;
use kybernate_integration::{
    Case, Container, Pod,
    checkpoint::{Archive, take},
    cri::ContainerBuilder,
    node::Node,
    workload::Workload,
};

/// Where the double takes from what it mounts.
const DRIVER: &str = "/opt/driver";
/// What it mounts, where, and what is to be read there.
const SPEC: (&str, &str) = ("/usr/lib/driver/libspec.so.", "in the spec");
const HOOK: (&str, &str) = ("/usr/lib/driver/libhook.so.", "by a hook");
const PARAMS: (&str, &str) = ("/proc/filesystems", "ModifyDeviceFiles: 0");

/// Lays out a driver's files.
fn install(cx: &Case, version: &str) -> Result<()> {
    let place = |name: &str| -> PathBuf { cx.lab.path(format!("{DRIVER}/{name}")) };
    fs::create_dir_all(place("firmware"))?;
    for (name, text) in [
        ("version", version),
        ("libspec.so", SPEC.1),
        ("libhook.so", HOOK.1),
        ("firmware/gsp.bin", "firmware"),
    ] {
        fs::write(place(name), text)?;
    }
    let link = place("link.so");
    if !link.is_symlink() {
        std::os::unix::fs::symlink("libspec.so", link)?;
    }
    Ok(())
}

/// A counter that has one of the hook's files open.
fn holder(pod: &Pod, version: &str) -> ContainerBuilder {
    let script = format!("exec 3<{}{version} && exec counter", HOOK.0);
    Workload::counter().container(pod).shell(&script)
}

async fn restore(pod: &Pod, version: &str, archive: &Archive, attempt: u32) -> Result<Container> {
    let builder = holder(pod, version).attempt(attempt);
    builder
        .annotation(names::RESTORE_FROM, &archive.path)
        .start()
        .await
}

async fn sees_everything(container: &Container, version: &str) -> Result<()> {
    for (path, content) in [
        (format!("{}{version}", SPEC.0), SPEC.1),
        (format!("{}{version}", HOOK.0), HOOK.1),
        ("/proc/1/fd/3".into(), HOOK.1),
        (
            format!("/lib/firmware/nvidia/{version}/gsp.bin"),
            "firmware",
        ),
        (PARAMS.0.into(), PARAMS.1),
    ] {
        let found = container.shell(&format!("cat {path}")).await?;
        ensure!(found.trim() == content, "{path} has {found:?}");
    }
    let device = container
        .shell("head -c 3 /dev/nvidia-hooked | wc -c")
        .await?;
    ensure!(device.trim() == "3", "the device reads {device:?}");
    Ok(())
}

/// Three rounds through new pods, then a node whose driver has another version.
pub async fn mounts_of_hooks(cx: Case) -> Result<()> {
    let work = Workload::counter();
    install(&cx, "580.1")?;
    let mut pod = cx.pod().start().await?;
    let mut container = holder(&pod, "580.1").start().await?;
    let mut archive = Archive::new(&cx.lab)?;
    for round in 1..=3_u32 {
        work.is_well(&container, 0).await?;
        sees_everything(&container, "580.1")
            .await
            .with_context(|| format!("before round {round}"))?;
        let at = work.count(&container)?;
        archive = take(&container, &["--exit"]).await?;
        container.wait_exit().await?;
        pod.remove().await?;
        pod = cx.pod().start().await?;
        container = restore(&pod, "580.1", &archive, round).await?;
        work.went_on(&container, at).await?;
    }
    sees_everything(&container, "580.1").await?;

    let manifest = archive.manifest()?;
    let mut injected: Vec<_> = manifest
        .mounts
        .iter()
        .filter(|mount| mount.injected)
        .map(|mount| &*mount.destination)
        .collect();
    injected.sort_unstable();
    let expected = [
        "/dev/nvidia-hooked",
        "/lib/firmware/nvidia/580.1",
        "/usr/lib/driver/libhook.so.580.1",
    ];
    ensure!(injected == expected, "the manifest lists {injected:?}");
    container.remove().await?;

    install(&cx, "580.2")?;
    let node = Node::look(&cx.lab)?;
    let builder = holder(&pod, "580.2").attempt(9);
    let refused = builder
        .annotation(names::RESTORE_FROM, &archive.path)
        .create()
        .await?;
    let error = refused.start().await.err();
    refused.remove().await?;
    let error = format!("{:#}", error.context("restored with another driver")?);
    for words in [
        "had /usr/lib/driver/libhook.so.580.1, /lib/firmware/nvidia/580.1 from hooks",
        "same driver version",
    ] {
        ensure!(error.contains(words), "{words:?} is not in: {error}");
    }
    node.is_unchanged().await?;
    let left = cx.lab.exec(&[
        "runc",
        "--root",
        "/run/containerd/runc/k8s.io",
        "list",
        "-q",
    ])?;
    ensure!(!left.contains("rehearsal"), "runc has {left}");
    Ok(())
}
