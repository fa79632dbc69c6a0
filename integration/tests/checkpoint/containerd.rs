//! Checkpoints that containerd itself asks for: plain CRIU images in a directory.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use kybernate_hooks::cri::v1::CheckpointContainerRequest;
use kybernate_integration::{
    Case, Container,
    checkpoint::{ARCHIVES, Archive, run},
    encryption::Key,
    eventually,
    image::catalog,
    node::Node,
    workload::Workload,
};
use tonic::Code;

/// `ctr tasks checkpoint` with a directory of its own, then `runc restore` of the result by
/// hand: what the shim writes is what runc's own checkpoint would have been.
pub async fn plain_images_restore_with_runc(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::memory(16);
    let container = work.start(&pod).await?;
    let directory = format!("{ARCHIVES}/plain-{}", container.id);
    fs::create_dir_all(cx.lab.path(&directory))?;
    let options = [
        "--image-path",
        &directory,
        "--work-path",
        &directory,
        &container.id,
    ];
    let at = work.count(&container)?;
    let command = [
        &["ctr", "-n", "k8s.io", "tasks", "checkpoint"][..],
        &options,
    ]
    .concat();
    run(&cx.lab, &command)
        .await?
        .ok()
        .context("ctr tasks checkpoint")?;
    work.is_well(&container, work.count(&container)?).await?;

    let mut names = Vec::new();
    for entry in fs::read_dir(cx.lab.path(&directory))?.flatten() {
        ensure!(
            entry.file_type()?.is_file(),
            "{:?} is no regular file",
            entry.file_name()
        );
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    for name in [
        "inventory.img",
        "pages-1.img",
        "descriptors.json",
        "dump.log",
        "stats-dump",
    ] {
        ensure!(names.iter().any(|n| n == name), "no {name} in {names:?}");
    }

    // The root stays mounted for the copy when the container has gone.
    let id = format!("restored-{}", &container.id[..12]);
    let bundle = format!("/run/{id}");
    let original = format!(
        "/run/containerd/io.containerd.runtime.v2.task/k8s.io/{}",
        container.id
    );
    cx.lab.exec(&["mkdir", "-p", &format!("{bundle}/rootfs")])?;
    // CRIU's options go with the images: `tcp-close` at the dump means `tcp-close` at restore.
    let options = (
        format!("{original}/criu.conf"),
        format!("{bundle}/criu.conf"),
    );
    cx.lab.exec(&["cp", &options.0, &options.1])?;
    let spec = fs::read_to_string(cx.lab.path(format!("{original}/config.json")))?;
    let spec = spec.replace(&options.0, &options.1);
    fs::write(cx.lab.path(format!("{bundle}/config.json")), spec)?;
    let root = format!("{bundle}/rootfs");
    cx.lab
        .exec(&["mount", "--bind", &format!("{original}/rootfs"), &root])?;
    container.stop(0).await?;
    let played = restore_by_hand(&cx, &id, &bundle, &directory, at).await;
    let _ = run(&cx.lab, &["runc", "delete", "--force", &id]).await;
    cx.lab.exec(&["umount", &root])?;
    cx.lab.exec(&["rm", "-r", &bundle, &directory])?;
    played
}

/// containerd packs plain images itself, so that nothing encrypts them.
pub async fn plain_images_where_archives_are_encrypted(cx: Case) -> Result<()> {
    let key = Key::new(&cx.lab)?;
    key.set(&key.encrypts(""))?;
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let container = work.start(&pod).await?;
    let directory = format!("{ARCHIVES}/plain-{}", container.id);
    fs::create_dir_all(cx.lab.path(&directory))?;
    let node = Node::look(&cx.lab)?;
    let checkpoint = ["ctr", "-n", "k8s.io", "tasks", "checkpoint", "--image-path"];
    let checkpoint = [&checkpoint[..], &[&directory, &container.id]].concat();
    let error = run(&cx.lab, &checkpoint).await?.refused()?;
    for part in [
        "checkpoint.encrypt_to",
        "plain_unencrypted",
        "kybernate checkpoint",
    ] {
        ensure!(error.contains(part), "no {part:?} in {error}");
    }
    ensure!(fs::read_dir(cx.lab.path(&directory))?.next().is_none());
    work.is_well(&container, work.count(&container)?).await?;
    node.is_unchanged().await?;

    key.set(&key.encrypts("plain_unencrypted = true"))?;
    run(&cx.lab, &checkpoint).await?.ok()?;
    ensure!(cx.lab.path(&directory).join("inventory.img").exists());
    cx.lab.exec(&["rm", "-r", &directory])?;
    work.is_well(&container, work.count(&container)?).await?;
    Ok(())
}

async fn restore_by_hand(cx: &Case, id: &str, bundle: &str, images: &str, at: u64) -> Result<()> {
    let script = format!(
        "exec runc restore --detach --image-path {images} --work-path {bundle} --bundle {bundle} \
         {id} </dev/null >{bundle}/out 2>&1"
    );
    let finished = run(&cx.lab, &["sh", "-c", &script]).await?;
    let read = |name: &str| fs::read_to_string(cx.lab.path(format!("{bundle}/{name}")));
    ensure!(
        finished.code == 0,
        "runc restore: {}\n{}",
        read("out").unwrap_or_default(),
        last_lines(&read("restore.log").unwrap_or_default())
    );
    // Its output comes out here now.
    let what = "the restored program counts";
    eventually(what, Duration::from_secs(15), || async {
        let text = read("out")?;
        let number = |line: &str| {
            line.strip_prefix("t=")?
                .split(' ')
                .next()?
                .parse::<u64>()
                .ok()
        };
        let numbers: Vec<u64> = text.lines().filter_map(number).collect();
        ensure!(!text.contains("CORRUPT"), "{text}");
        ensure!(
            numbers.first().is_none_or(|first| *first >= at),
            "from {at} to {numbers:?}"
        );
        Ok((text.contains("OK") && numbers.len() > 5).then_some(()))
    })
    .await
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

async fn checkpoint_by_cri(container: &Container, location: &str) -> Result<(), tonic::Status> {
    let request = CheckpointContainerRequest {
        container_id: container.id.clone(),
        location: location.into(),
        timeout: 0,
    };
    container
        .lab
        .cri()
        .checkpoint_container(request)
        .await
        .map(drop)
}

/// As kubelet's checkpoint API asks for it, without anything of ours in front.
pub async fn cri_checkpoint(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::memory(48);
    let container = work.start(&pod).await?;
    fs::create_dir_all(cx.lab.path(ARCHIVES))?;
    for round in 1..=2 {
        let location = format!("{ARCHIVES}/cri-{}-{round}.tar", container.id);
        let before = work.count(&container)?;
        checkpoint_by_cri(&container, &location)
            .await
            .context("CheckpointContainer")?;
        work.is_well(&container, before).await?;
        let listed = cx.lab.exec(&["tar", "-tf", &location])?;
        for name in [
            "checkpoint/inventory.img",
            "spec.dump",
            "config.dump",
            "stats-dump",
            "dump.log",
        ] {
            ensure!(
                listed.lines().any(|line| line == name),
                "no {name} in {listed}"
            );
        }
        let shown = cx
            .lab
            .exec(&["checkpointctl", "inspect", "--stats", &location])?;
        ensure!(shown.contains("memory"), "{shown}");
        fs::remove_file(cx.lab.path(&location))?;
    }
    ensure!(container.shell("echo here").await? == "here");
    Ok(())
}

pub async fn cri_checkpoint_is_not_in_1_7(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let container = work.start(&pod).await?;
    let status = checkpoint_by_cri(&container, "/tmp/x.tar").await.err();
    ensure!(
        status.as_ref().map(tonic::Status::code) == Some(Code::Unimplemented),
        "{status:?}"
    );
    // The command goes another way.
    kybernate_integration::checkpoint::take(&container, &[]).await?;
    Ok(())
}

/// A container that `ctr` has made: no CRI, no pod, no log.
pub async fn container_without_cri(cx: Case) -> Result<()> {
    let id = format!("plain-{}", cx.handler);
    let archive = Archive::new(&cx.lab)?;
    let run_container = |id: &str, annotation: Option<String>| {
        let mut command: Vec<String> = ["ctr", "-n", "k8s.io", "run", "-d", "--runtime"]
            .iter()
            .chain(&[cx.handler.runtime_type()])
            .map(|s| (*s).to_owned())
            .collect();
        command.extend(annotation.map(|a| format!("--annotation={a}")));
        command.extend([catalog::TOOLS, id, "counter", "/counter"].map(str::to_owned));
        command
    };
    let start = async |id: &str, annotation| -> Result<()> {
        let command = run_container(id, annotation);
        let argv: Vec<&str> = command.iter().map(String::as_str).collect();
        run(&cx.lab, &argv)
            .await?
            .ok()
            .with_context(|| argv.join(" "))?;
        Ok(())
    };
    let root = |id: &str| {
        cx.lab.path(format!(
            "/run/containerd/io.containerd.runtime.v2.task/k8s.io/{id}/rootfs/counter"
        ))
    };
    let counts = async |id: &str, above: u64| {
        eventually("the file counts", Duration::from_secs(15), || async {
            let number: u64 = fs::read_to_string(root(id))?.trim().parse().unwrap_or(0);
            Ok((number > above).then_some(number))
        })
        .await
    };
    let remove = async |id: &str| {
        let _ = run(&cx.lab, &["ctr", "-n", "k8s.io", "tasks", "rm", "-f", id]).await;
        let _ = run(&cx.lab, &["ctr", "-n", "k8s.io", "containers", "rm", id]).await;
    };

    let second = format!("{id}-restored");
    let played = async {
        start(&id, None).await?;
        let at = counts(&id, 5).await?;
        archive.try_take(&id, &["--exit"]).await?.ok()?;
        ensure!(archive.manifest()?.container.pod.is_none());
        remove(&id).await;
        let annotation = format!("{}={}", kybernate_config::names::RESTORE_FROM, archive.path);
        start(&second, Some(annotation)).await?;
        let gone_on = counts(&second, at).await?;
        ensure!(gone_on < at + 200, "{at} became {gone_on}");
        Ok(())
    }
    .await;
    remove(&id).await;
    remove(&second).await;
    played
}
