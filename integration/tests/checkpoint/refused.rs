//! Checkpoints that can't be taken: a clear message, and nothing has changed.

use std::fs;

use anyhow::{Result, ensure};
use kybernate_integration::{
    Case,
    checkpoint::{Archive, run},
    node::Node,
    workload::Workload,
};

/// Fails unless the text contains all of the words.
fn says(message: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(
            message.contains(word),
            "{word:?} is not in the message: {message}"
        );
    }
    Ok(())
}

pub async fn not_running_or_unknown(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let archive = Archive::new(&cx.lab)?;
    let created = pod
        .container("created")
        .shell("sleep 1000")
        .create()
        .await?;
    let message = archive.try_take(&created.id, &[]).await?.refused()?;
    says(&message, &[&created.id[..12]])?;

    let ended = pod.container("ended").shell("exit 3").start().await?;
    ended.wait_exit().await?;
    let message = archive.try_take(&ended.id, &[]).await?.refused()?;
    says(&message, &[&ended.id[..12]])?;

    let message = archive.try_take("0123456789abcdef", &[]).await?.refused()?;
    says(&message, &["0123456789abcdef", "no container"])?;
    let message = archive.try_take("lab/nothing/here", &[]).await?.refused()?;
    says(&message, &["lab/nothing/here"])?;
    let message = archive.try_take(&pod.id, &[]).await?.refused()?;
    says(&message, &["sandbox"])?;
    ensure!(!archive.file().exists());
    Ok(())
}

pub async fn stock_container(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let container = work.start(&pod).await?;
    let archive = Archive::new(&cx.lab)?;
    let finished = archive.try_take(&container.id, &[]).await?;
    if finished.stderr.contains("kybernate: not found") || finished.code == 127 {
        return kybernate_integration::skip("kybernate is not built: run `make build`");
    }
    says(
        &finished.refused()?,
        &["containerd-shim-runc-v2", "kybernate"],
    )?;
    ensure!(!archive.file().exists());
    work.is_well(&container, work.count(&container)?).await?;
    Ok(())
}

pub async fn disk_full(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::memory(128);
    let container = work.start(&pod).await?;
    let small = "/mnt/small";
    fs::create_dir_all(cx.lab.path(small))?;
    cx.lab
        .exec(&["mount", "-t", "tmpfs", "-o", "size=20m", "small", small])?;
    let node = Node::look(&cx.lab)?;
    let output = format!("{small}/archive.tar.zst");
    let command = ["kybernate", "checkpoint", &container.id, "-o", &output];
    let played = async {
        // Seen before anything is frozen, and seen when it happens all the same.
        let message = run(&cx.lab, &command).await?.refused()?;
        says(&message, &[small, "free"])?;
        let all = [&command[..], &["--no-space-check"]].concat();
        let message = run(&cx.lab, &all).await?.refused()?;
        says(&message, &["space"])?;
        let left: Vec<_> = fs::read_dir(cx.lab.path(small))?.flatten().collect();
        ensure!(left.is_empty(), "left on the full disk: {left:?}");
        node.is_unchanged().await?;
        work.is_well(&container, work.count(&container)?).await
    }
    .await;
    cx.lab.exec(&["umount", small])?;
    played.map(drop)
}

pub async fn criu_missing(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let container = work.start(&pod).await?;
    let archive = Archive::new(&cx.lab)?;
    let criu = cx
        .lab
        .exec(&["sh", "-c", "command -v criu"])?
        .trim()
        .to_owned();
    let away = format!("{criu}.away");
    for (remove, restore) in [
        (vec!["mv", &criu, &away], vec!["mv", &away, &criu]),
        (vec!["chmod", "0000", &criu], vec!["chmod", "0755", &criu]),
    ] {
        let node = Node::look(&cx.lab)?;
        cx.lab.exec(&remove)?;
        let finished = archive.try_take(&container.id, &[]).await;
        cx.lab.exec(&restore)?;
        let message = finished?.refused()?;
        says(&message.to_lowercase(), &["criu"])?;
        ensure!(!archive.file().exists());
        node.is_unchanged().await?;
        work.is_well(&container, work.count(&container)?).await?;
    }
    archive.try_take(&container.id, &[]).await?.ok()?;
    Ok(())
}

pub async fn output_exists(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let container = work.start(&pod).await?;
    let archive = Archive::new(&cx.lab)?;
    fs::write(archive.file(), "precious")?;
    let message = archive.try_take(&container.id, &[]).await?.refused()?;
    says(&message, &["--force"])?;
    ensure!(fs::read_to_string(archive.file())? == "precious");
    archive.try_take(&container.id, &["--force"]).await?.ok()?;
    ensure!(archive.manifest()?.container.id == container.id && archive.mode()? == 0o600);
    // A directory that is not there, and one in the file's place.
    for output in ["/nowhere/archive.tar.zst", "/tmp"] {
        let command = ["kybernate", "checkpoint", &container.id, "-o", output];
        let message = run(&cx.lab, &command).await?.refused()?;
        says(
            &message,
            &[output.rsplit_once('/').map_or("/tmp", |(parent, _)| parent)],
        )?;
    }
    work.is_well(&container, work.count(&container)?).await?;
    Ok(())
}

/// containerd 1.7 passes no options to a runtime type of our own; the command knows.
pub async fn own_type_on_1_7(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let container = work.start(&pod).await?;
    let archive = Archive::new(&cx.lab)?;
    let message = archive.try_take(&container.id, &[]).await?.refused()?;
    says(&message, &["io.containerd.runc.v2", "runtime_path"])?;
    ensure!(!archive.file().exists());
    work.is_well(&container, work.count(&container)?).await?;
    Ok(())
}
