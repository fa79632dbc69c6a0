//! Programs without a network.

use anyhow::{Context, Result, ensure};
use kybernate_config::names;
use kybernate_integration::{
    Case, Container, beyond_this_machine,
    checkpoint::{Archive, take},
    workload::Workload,
};

/// Takes a checkpoint that leaves the container running, which must do it no harm, then one
/// with `--exit`, removes the pod and restores in another one.
async fn survives(cx: &Case, work: &Workload) -> Result<Container> {
    let pod = cx.pod().start().await?;
    let container = work.start(&pod).await?;
    take(&container, &[]).await?;
    work.is_well(&container, work.count(&container)?)
        .await
        .context("after its checkpoint")?;
    let (archive, at) = put_away(work, &container).await?;
    pod.remove().await?;
    let next = cx.pod().start().await?;
    let restored = work.restore(&next, &archive).await?;
    work.went_on(&restored, at)
        .await
        .context("after its restore")?;
    Ok(restored)
}

/// Takes a container into an archive with `--exit` and removes it.
pub async fn put_away(work: &Workload, container: &Container) -> Result<(Archive, u64)> {
    let at = work.count(container)?;
    let archive = take(container, &["--exit"]).await?;
    container.wait_exit().await?;
    container.remove().await?;
    Ok((archive, at))
}

pub async fn process_tree(cx: Case) -> Result<()> {
    let restored = survives(&cx, &Workload::tree()).await?;
    // Root, A to E, and the zombie; this shell and ps come on top.
    let listed = restored.shell("ps | grep -c '[t]ree'").await?;
    ensure!(
        listed.trim() == "7",
        "{listed} processes of the tree, expected 7"
    );
    let session = restored
        .shell("cut -d' ' -f6 /proc/[0-9]*/stat | sort -u | wc -l")
        .await?;
    ensure!(
        session.parse::<u32>()? >= 2,
        "the session of its own is lost"
    );
    Ok(())
}

pub async fn threads(cx: Case) -> Result<()> {
    survives(&cx, &Workload::threads(32)).await.map(drop)
}

pub async fn filesystem(cx: Case) -> Result<()> {
    let restored = survives(&cx, &Workload::filesystem()).await?;
    // What the container itself can't see: nothing of the deleted is below.
    ensure!(restored.shell("ls -A /srv").await? == "edited\nhidden\nkept");
    ensure!(restored.shell("ls -A /srv/hidden").await? == "three");
    ensure!(restored.exec(&["ls", "/etc/group"]).await?.exit_code != 0);
    Ok(())
}

pub async fn python(cx: Case) -> Result<()> {
    survives(&cx, &Workload::python()).await.map(drop)
}

/// Files in the pod's /dev/shm that nobody has mapped or open: CRIU does not know them.
pub async fn shared_memory_files(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let container = work.start(&pod).await?;
    container
        .shell(
            "cd /dev/shm && mkdir -m 0710 d && seq 1 20000 >d/numbers && ln d/numbers second \
             && chown 1000:2000 d/numbers && touch -t 200102030405 d/numbers && ln -s d link",
        )
        .await?;
    let look = "cd /dev/shm && ls -lnR | grep -v ^total && sha256sum d/numbers second";
    let before = container.shell(look).await?;
    let (archive, at) = put_away(&work, &container).await?;
    pod.remove().await?;
    let next = cx.pod().start().await?;
    let restored = work.restore(&next, &archive).await?;
    work.went_on(&restored, at).await?;
    let after = restored.shell(look).await?;
    ensure!(before == after, "/dev/shm was\n{before}\nand is\n{after}");
    Ok(())
}

pub async fn terminal(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let make = |attempt| {
        work.container(&pod)
            .attempt(attempt)
            .edit(|config| config.tty = true)
    };
    let container = make(0).start().await?;
    work.is_well(&container, 0).await?;
    let (archive, at) = put_away(&work, &container).await?;
    let restored = make(1)
        .annotation(names::RESTORE_FROM, &archive.path)
        .start()
        .await?;
    work.went_on(&restored, at).await?;
    ensure!(
        restored
            .shell("test -t 0 </proc/1/fd/0 && echo yes")
            .await?
            == "yes"
    );
    Ok(())
}

/// Whether this process has CAP_SYS_RESOURCE, without which CRIU can't read the limits of other
/// users' processes.
fn reads_limits_of_others() -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = u64::from_str_radix(effective.unwrap_or_default().trim(), 16)?;
    Ok(effective & 1 << 24 != 0)
}

pub async fn ordinary_user(cx: Case) -> Result<()> {
    if !reads_limits_of_others()? {
        return beyond_this_machine(
            "CRIU dumps processes of other users only with CAP_SYS_RESOURCE",
        );
    }
    let pod = cx.pod().start().await?;
    let mut work = Workload::counter();
    work.argv = ["counter", "/tmp/counter"].map(str::to_owned).to_vec();
    let make = |attempt| {
        work.container(&pod).attempt(attempt).security(|security| {
            security.run_as_user = Some(kybernate_hooks::cri::v1::Int64Value { value: 1000 });
            security.run_as_group = Some(kybernate_hooks::cri::v1::Int64Value { value: 2000 });
            security.no_new_privs = true;
        })
    };
    let container = make(0).start().await?;
    work.is_well(&container, 0).await?;
    let (archive, at) = put_away(&work, &container).await?;
    let restored = make(1)
        .annotation(names::RESTORE_FROM, &archive.path)
        .start()
        .await?;
    work.went_on(&restored, at).await?;
    let status = restored
        .shell("grep -E '^(Uid|Gid|NoNewPrivs|CapEff):' /proc/1/status")
        .await?;
    for part in [
        "Uid:\t1000\t1000",
        "Gid:\t2000\t2000",
        "NoNewPrivs:\t1",
        "CapEff:\t0000000000000000",
    ] {
        ensure!(status.contains(part), "{part:?} is not in {status}");
    }
    ensure!(restored.shell("stat -c %u:%g /tmp/counter").await? == "1000:2000");
    Ok(())
}

pub async fn read_only_root(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let directory = format!("/var/lib/kybernate/volume-{}", pod.id);
    std::fs::create_dir_all(cx.lab.path(&directory))?;
    let mut work = Workload::counter();
    work.argv = ["counter", "/volume/counter"].map(str::to_owned).to_vec();
    let make = |attempt| {
        let builder = work
            .container(&pod)
            .attempt(attempt)
            .mount(&directory, "/volume");
        builder.security(|security| security.readonly_rootfs = true)
    };
    let container = make(0).start().await?;
    work.is_well(&container, 0).await?;
    let (archive, at) = put_away(&work, &container).await?;
    let restored = make(1)
        .annotation(names::RESTORE_FROM, &archive.path)
        .start()
        .await?;
    work.went_on(&restored, at).await?;
    ensure!(
        restored.exec(&["touch", "/new"]).await?.exit_code != 0,
        "the root is writable"
    );
    Ok(())
}
