//! From container to archive and back.

use anyhow::{Context, Result, ensure};
use kybernate_integration::{
    Case, Container, Pod,
    checkpoint::{Archive, run, take},
    workload::Workload,
};

/// Starts the workload, takes it into an archive with `--exit`, and removes it. Returns the
/// number it had reached at least.
pub async fn archived(pod: &Pod, work: &Workload) -> Result<(Archive, u64)> {
    let container = work.start(pod).await?;
    put_away(work, &container).await
}

/// Takes a running container into an archive with `--exit`, and removes it.
pub async fn put_away(work: &Workload, container: &Container) -> Result<(Archive, u64)> {
    let at = work.count(container)?;
    let archive = take(container, &["--exit"]).await?;
    container.wait_exit().await?;
    container.remove().await?;
    Ok((archive, at))
}

pub async fn same_pod(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let (archive, at) = archived(&pod, &work).await?;
    let restored = work.restore(&pod, &archive).await?;
    work.went_on(&restored, at).await?;
    Ok(())
}

pub async fn new_pod(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let (archive, at) = archived(&pod, &work).await?;
    pod.remove().await?;
    let next = cx.pod().start().await?;
    let restored = work.restore(&next, &archive).await?;
    work.went_on(&restored, at).await?;
    Ok(())
}

pub async fn three_rounds(cx: Case) -> Result<()> {
    let work = Workload::memory(64);
    let mut pod = cx.pod().start().await?;
    let mut container = work.start(&pod).await?;
    let mut parent = None;
    for round in 1..=3 {
        // Once with the container going on, once with its end.
        let live = take(&container, &[]).await?;
        work.is_well(&container, work.count(&container)?).await?;
        ensure!(
            live.manifest()?.parent == parent,
            "round {round}: {:?}",
            live.manifest()?.parent
        );
        let (archive, at) = put_away(&work, &container).await?;
        pod.remove().await?;
        pod = cx.pod().start().await?;
        container = work
            .restore(&pod, &archive)
            .await
            .with_context(|| format!("round {round}"))?;
        work.went_on(&container, at)
            .await
            .with_context(|| format!("round {round}"))?;
        let opened = kybernate_oci::archive::Archive::open(archive.file())?;
        parent = Some(opened.manifest_sha256().to_owned());
    }
    Ok(())
}

pub async fn one_archive_twice(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::memory(32);
    let (archive, at) = archived(&pod, &work).await?;
    let before = std::fs::read(archive.file())?;
    let other = cx.pod().start().await?;
    let (a, b) = tokio::join!(work.restore(&pod, &archive), work.restore(&other, &archive));
    work.went_on(&a?, at).await?;
    work.went_on(&b?, at).await?;
    ensure!(
        std::fs::read(archive.file())? == before,
        "a restore has changed its archive"
    );
    Ok(())
}

pub async fn half_a_gibibyte(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::memory(512);
    let (archive, at) = archived(&pod, &work).await?;
    ensure!(archive.size()? < 420 << 20, "{} bytes", archive.size()?);
    pod.remove().await?;
    let next = cx.pod().start().await?;
    let restored = work.restore(&next, &archive).await?;
    work.went_on(&restored, at).await?;
    for place in ["/run/kybernate/restore", "/var/lib/kybernate/restore"] {
        let left = std::fs::read_dir(cx.lab.path(place))
            .into_iter()
            .flatten()
            .flatten();
        let left: Vec<_> = left
            .filter(|e| e.path().is_dir())
            .map(|e| e.path())
            .collect();
        let own = left
            .iter()
            .any(|path| path.to_string_lossy().contains(&restored.id));
        ensure!(!own, "staged images are still there: {left:?}");
    }
    Ok(())
}

pub async fn by_the_command(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let (archive, at) = archived(&pod, &work).await?;
    let next = cx.pod().start().await?;
    let command = ["kybernate", "restore", &archive.path, "--pod", &next.id];
    let printed = run(&cx.lab, &command).await?.ok()?;
    let id = printed
        .split_whitespace()
        .find(|word| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit()))
        .context("kybernate restore prints no container id")?;
    let pid = kybernate_integration::tasks::pid(&cx.lab, id).await?;
    let file = cx.lab.path(format!("/proc/{pid}/root/counter"));
    kybernate_integration::eventually(
        "the file counts",
        std::time::Duration::from_secs(15),
        || async {
            let number: u64 = std::fs::read_to_string(&file)?.trim().parse().unwrap_or(0);
            Ok((number > at + 3).then_some(()))
        },
    )
    .await
}
