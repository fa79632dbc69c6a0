//! Archives that can't be restored: a clear message, and the node as before.

use std::{fs, io::Cursor, time::Duration};

use anyhow::{Context, Result, ensure};
use kybernate_config::names;
use kybernate_integration::{Case, Pod, checkpoint::Archive, node::Node, workload::Workload};
use kybernate_oci::{
    archive::{Level, WriteOptions, Writer},
    manifest::{FORMAT, Manifest},
};

use crate::rounds::archived;

/// Tries to restore, wants it to fail before the program could run, and returns the message.
/// Nothing but the CRI's own record of the container may be left, and that can be removed.
pub async fn refused(cx: &Case, pod: &Pod, work: &Workload, from: &str) -> Result<String> {
    let node = Node::look(&cx.lab)?;
    let builder = work
        .container(pod)
        .attempt(9)
        .annotation(names::RESTORE_FROM, from);
    let container = builder
        .create()
        .await
        .context("CreateContainer takes any annotation")?;
    let begun = std::time::Instant::now();
    let error = container.start().await.err();
    let took = begun.elapsed();
    container
        .remove()
        .await
        .context("the refused container can't be removed")?;
    node.is_unchanged().await?;
    let error = error.with_context(|| format!("a restore from {from} was not refused"))?;
    ensure!(took < Duration::from_secs(20), "{took:?} for a refusal");
    Ok(format!("{error:#}"))
}

pub fn says(message: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(
            message.contains(word),
            "{word:?} is not in the message: {message}"
        );
    }
    Ok(())
}

pub async fn damaged_archive(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::memory(16);
    let (archive, at) = archived(&pod, &work).await?;
    let good = fs::read(archive.file())?;
    let broken = Archive::new(&cx.lab)?;
    let write = |bytes: &[u8]| fs::write(broken.file(), bytes);

    // One bit: in the memory, near the start, in the manifest, in the seek table.
    let length = good.len();
    for place in [length / 2, 700, length - 2000, length - 20] {
        let mut bytes = good.clone();
        bytes[place] ^= 1;
        write(&bytes)?;
        let message = refused(&cx, &pod, &work, &broken.path).await?;
        says(&message, &[&broken.path]).with_context(|| format!("bit flip at {place}"))?;
    }
    // Cut off, at the end and in the middle; with something behind.
    for length in [length - 1, length / 2, 100, 0] {
        write(&good[..length])?;
        let message = refused(&cx, &pod, &work, &broken.path).await?;
        says(&message, &[&broken.path]).with_context(|| format!("cut to {length}"))?;
    }
    write(&[&good[..], b"more"].concat())?;
    says(
        &refused(&cx, &pod, &work, &broken.path).await?,
        &[&broken.path],
    )?;

    let restored = work
        .restore(&pod, &archive)
        .await
        .context("the good archive afterwards")?;
    work.went_on(&restored, at).await?;
    Ok(())
}

/// How archives of the tests are written.
fn options() -> WriteOptions {
    WriteOptions {
        level: Level::Fast,
        buffer: 64 << 20,
        workers: 1,
        frame_size: 4 << 20,
    }
}

/// A writer of a new archive.
pub fn writer(to: &Archive) -> Result<Writer> {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(to.file())?;
    Ok(Writer::new(file, options())?)
}

/// A complete archive whose manifest says what the test wants.
fn write_archive(to: &Archive, change: impl FnOnce(&mut Manifest)) -> Result<()> {
    let mut writer = writer(to)?;
    writer.directory("checkpoint/")?;
    let content = b"no image of CRIU";
    writer.file(
        "checkpoint/inventory.img",
        &mut Cursor::new(content),
        content.len() as u64,
    )?;
    writer.bytes("spec.dump", b"{}")?;
    let mut manifest = Manifest {
        format: FORMAT,
        ..Manifest::default()
    };
    manifest.host.arch = std::env::consts::ARCH.into();
    change(&mut manifest);
    writer.finish(manifest)?;
    Ok(())
}

pub async fn foreign_archive(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let bystander = work.start(&pod).await?;

    let other = Archive::new(&cx.lab)?;
    write_archive(&other, |manifest| manifest.host.arch = "s390x".into())?;
    let message = refused(&cx, &pod, &work, &other.path).await?;
    says(&message, &["s390x", std::env::consts::ARCH])?;

    let other = Archive::new(&cx.lab)?;
    write_archive(&other, |manifest| {
        manifest.host.cpu_features = vec!["avx512future".into()]
    })?;
    says(
        &refused(&cx, &pod, &work, &other.path).await?,
        &["avx512future"],
    )?;

    let other = Archive::new(&cx.lab)?;
    write_archive(&other, |manifest| manifest.host.criu = "99.1".into())?;
    says(
        &refused(&cx, &pod, &work, &other.path).await?,
        &["99.1", "CRIU"],
    )?;

    // Right in all that can be told beforehand, and yet nothing that CRIU can read.
    let other = Archive::new(&cx.lab)?;
    write_archive(&other, |_| ())?;
    says(
        &refused(&cx, &pod, &work, &other.path).await?.to_lowercase(),
        &["criu"],
    )?;

    work.is_well(&bystander, work.count(&bystander)?).await?;
    Ok(())
}

pub async fn no_archive(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let bystander = work.start(&pod).await?;
    fs::create_dir_all(cx.lab.path("/var/lib/kybernate/archives"))?;
    let text = "/var/lib/kybernate/archives/text";
    fs::write(
        cx.lab.path(text),
        "not an archive, but long enough to hold a header\n".repeat(99),
    )?;
    let link = "/var/lib/kybernate/archives/link";
    let _ = fs::remove_file(cx.lab.path(link));
    std::os::unix::fs::symlink("text", cx.lab.path(link))?;

    for (from, words) in [
        (text, &[text][..]),
        (link, &[link]),
        ("/var/lib/kybernate/archives/missing", &["archives/missing"]),
        (
            "/var/lib/kybernate/archives",
            &["/var/lib/kybernate/archives"],
        ),
        (
            "relative/path.tar.zst",
            &["relative/path.tar.zst", "absolute"],
        ),
        ("/dev/zero", &["/dev/zero"]),
    ] {
        says(&refused(&cx, &pod, &work, from).await?, words).with_context(|| from.to_owned())?;
    }
    work.is_well(&bystander, work.count(&bystander)?).await?;
    Ok(())
}

/// CRIU finds a file of another size than at the dump: the message carries its reason.
pub async fn criu_fails(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let directory = "/var/lib/kybernate/data";
    fs::create_dir_all(cx.lab.path(directory))?;
    let work = Workload::counter();
    let script = "exec 5<>/data/file; exec counter";
    fs::write(cx.lab.path(format!("{directory}/file")), "as it was")?;
    let first = pod
        .container("counter")
        .mount(directory, "/data")
        .shell(script)
        .start()
        .await?;
    work.is_well(&first, 0).await?;
    let (archive, at) = crate::rounds::put_away(&work, &first).await?;

    let restore = || {
        pod.container("counter")
            .attempt(2)
            .mount(directory, "/data")
            .shell(script)
            .annotation(names::RESTORE_FROM, &archive.path)
    };
    fs::write(
        cx.lab.path(format!("{directory}/file")),
        "changed in the meantime",
    )?;
    let node = Node::look(&cx.lab)?;
    let container = restore().create().await?;
    let error = container
        .start()
        .await
        .err()
        .context("CRIU took a changed file")?;
    container.remove().await?;
    node.is_unchanged().await?;
    says(&format!("{error:#}"), &["CRIU", "data/file"])?;

    fs::write(cx.lab.path(format!("{directory}/file")), "as it was")?;
    let restored = restore().attempt(3).start().await?;
    work.went_on(&restored, at).await?;
    Ok(())
}
