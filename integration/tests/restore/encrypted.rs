//! A node that encrypts its archives, and one that can open them.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, ensure};
use kybernate_integration::{
    Case,
    checkpoint::{ARCHIVES, run, take},
    encryption::{Key, holds_none_of},
    workload::Workload,
};
use kybernate_oci::archive::Envelope;

/// In the memory of the program, once as it is and once in the spec.
const MARKER: &str = "a-marker-that-nobody-else-has-0123456789";
/// Names of entries, which the archive's headers and its manifest have.
const NAMES: [&str; 2] = ["pages-1.img", "kybernate.json"];

/// Looks at what is on disk all the time that a checkpoint takes.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<Result<(u64, u32)>>>,
}

impl Watch {
    fn begin(cx: &Case) -> Self {
        let directory = cx.lab.path(ARCHIVES);
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let look = move || {
            let (mut most, mut rounds) = (0, 0);
            while !ended.load(Ordering::Relaxed) {
                most = holds_none_of(&directory, &[MARKER])?.max(most);
                rounds += 1;
            }
            Ok((most, rounds))
        };
        Self {
            stop,
            thread: Some(thread::spawn(look)),
        }
    }

    fn end(mut self) -> Result<(u64, u32)> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it ended before")?;
        thread.join().expect("it does not panic")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

pub async fn encrypted(cx: Case) -> Result<()> {
    let key = Key::new(&cx.lab)?;
    let pod = cx.pod().start().await?;
    let work = Workload::memory(48);
    let container = work.container(&pod).env("MARKER", MARKER).start().await?;
    let at = work.is_well(&container, 0).await?;
    fs::remove_dir_all(cx.lab.path(ARCHIVES)).ok();

    // The node has no identity, and needs none.
    key.set(&key.encrypts(""))?;
    let watch = Watch::begin(&cx);
    let archive = take(&container, &["--exit"]).await?;
    let (most, rounds) = watch.end()?;
    ensure!(
        most > 1 << 20 && rounds > 1,
        "seen {most} bytes in {rounds} rounds"
    );
    container.wait_exit().await?;
    ensure!(archive.mode()? == 0o600, "{:o}", archive.mode()?);
    holds_none_of(&cx.lab.path(ARCHIVES), &[MARKER, NAMES[0], NAMES[1]])?;
    let left: Vec<_> = fs::read_dir(cx.lab.path(ARCHIVES))?.flatten().collect();
    ensure!(left.len() == 1, "{left:?}");
    let envelope = Envelope::read(&archive.file())?.context("not encrypted")?;
    let label = envelope.label.context("no label")?;
    ensure!(
        envelope.recipients == 1 && label.name == work.name,
        "{label:?}"
    );
    let path = archive.path.as_str();
    let inspected = run(&cx.lab, &["kybernate", "inspect", path]).await?.ok()?;
    ensure!(inspected.contains("to 1 recipient"), "{inspected}");

    // The marker is what would have been found.
    let count = format!(
        "kybernate cat {path} checkpoint/pages-1.img --identity {} | grep -ac {MARKER}",
        key.file
    );
    let found = run(&cx.lab, &["sh", "-c", &count]).await?.ok()?;
    ensure!(found.trim() != "0", "the marker is in no page");

    let refused = |found: Result<_>| -> Result<String> {
        let error = found.err().context("restored all the same")?;
        Ok(format!("{error:#}"))
    };
    let says = |error: &str, parts: &[&str]| -> Result<()> {
        let missing = parts.iter().find(|part| !error.contains(**part));
        ensure!(missing.is_none(), "no {missing:?} in {error}");
        Ok(())
    };
    let error = refused(work.restore_attempt(&pod, &archive, 1).await)?;
    says(&error, &["encrypted to 1 recipient", "restore.identities"])?;
    key.set(&key.decrypts())?;
    key.set_mode(0o644)?;
    let error = refused(work.restore_attempt(&pod, &archive, 2).await)?;
    says(&error, &["restore.identities", "0644", "chmod 0600"])?;
    key.set_mode(0o600)?;
    // In plain text it is staged in memory alone.
    let on_disk = format!(
        "{}memory_dir = '/var/lib/kybernate/on-disk'\n",
        key.decrypts()
    );
    key.set(&on_disk)?;
    let error = refused(work.restore_attempt(&pod, &archive, 3).await)?;
    says(&error, &["on-disk", "restore.decrypt_to_disk"])?;
    key.set(&format!("{on_disk}decrypt_to_disk = true\n"))?;
    let restored = work.restore_attempt(&pod, &archive, 4).await?;
    work.went_on(&restored, at).await?;
    restored.stop(0).await?;

    key.set(&key.decrypts())?;
    let restored = work.restore_attempt(&pod, &archive, 5).await?;
    work.went_on(&restored, at).await?;
    run(&cx.lab, &["kybernate", "verify", path]).await?.ok()?;
    Ok(())
}

/// A recipient that the command adds, and a directory for small images that is on disk.
pub async fn recipients_and_places(cx: Case) -> Result<()> {
    let key = Key::new(&cx.lab)?;
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let container = work.start(&pod).await?;
    let archive = take(&container, &["--recipient", &key.recipient]).await?;
    let envelope = Envelope::read(&archive.file())?.context("not encrypted")?;
    ensure!(envelope.recipients == 1, "{envelope:?}");

    let other = kybernate_age::Identity::generate()?;
    let other = other.recipient().to_string();
    key.set(&key.encrypts(""))?;
    let archive = take(
        &container,
        &["--recipient", &other, "--recipient", &key.recipient],
    )
    .await?;
    key.verifies(&archive, 2).await?;

    key.set(&key.encrypts("work_dir = '/var/lib/kybernate/work'"))?;
    let archive = kybernate_integration::checkpoint::Archive::new(&cx.lab)?;
    let error = archive.try_take(&container.id, &[]).await?.refused()?;
    ensure!(
        error.contains("checkpoint.work_dir") && error.contains("tmpfs"),
        "{error}"
    );
    ensure!(!archive.file().exists());
    key.set(&key.encrypts("").replace(&key.recipient, "age1nobody"))?;
    let error = archive.try_take(&container.id, &[]).await?.refused()?;
    ensure!(error.contains("age1nobody"), "{error}");
    work.is_well(&container, work.count(&container)?).await?;
    Ok(())
}
