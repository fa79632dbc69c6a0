//! A checkpoint into one archive, for a client that left `request.json`.
//!
//! ```text
//! freeze ──┬─ dump: CRIU ─socket→ frames      memory
//!          ├─ rootfs-diff.tar, deleted.files  file system, while nothing can change it
//!          ├─ devshm-checkpoint.tar           shared memory files of the pod
//! thaw ────┘
//! compress what still waits in memory, then the small files, the manifest, the seek table
//! ```
//!
//! The frames are compressed while the container is frozen too, but only with processor time
//! that CRIU leaves over. With `exit` the container stays frozen until the archive is safe on
//! disk, and is killed only then.

mod content;
mod partial;

use std::{
    fs, io,
    path::Path,
    sync::Arc,
    time::{Instant, SystemTime},
};

use kybernate_config::{
    Settings,
    request::{ARCHIVE_FILE, CheckpointResult, RESULT_FILE},
};
use kybernate_oci::{
    archive::{Control, Encryption, Label, Summary, WriteOptions, Writer},
    manifest::{self, Manifest},
    rootfs::Overlay,
};

use serde_json::Value;
use tokio::task::JoinHandle;

use self::{
    content::append,
    partial::{Images, Partial},
};
use super::{
    CheckpointError, Task,
    course::Course,
    dump::{Plan, dump},
    facts, files,
    page_server::Received,
    phases::Phases,
    request::Request,
    still::Still,
    stop::{StopReason, millis, watch},
    workdir::{WorkDir, is_in_memory},
};
use crate::{container::Container, injected::Injected, restore};

/// Bytes of tar in one frame: small frames compress worse, large ones decompress on fewer
/// threads.
const FRAME: u64 = 4 << 20;
/// A buffer that holds fewer frames than this gets smaller ones.
const FRAMES: u64 = 32;
/// With so many processors some have nothing to do while a container is dumped: memory is readied
/// then.
const TO_SPARE: usize = 4;
/// The smallest frame that the archive knows.
const LEAST_FRAME: u64 = 64 << 10;

/// Takes the checkpoint that `request` asks for.
pub async fn run(
    container: &Arc<Container>,
    task: &Task,
    request: Arc<Request>,
    settings: &Settings,
    course: &Course,
) -> Result<(), CheckpointError> {
    let started = Instant::now();
    let stop = &course.stop;
    let (init, freezer) = super::subject(container)?;
    let spec = Arc::new(container.whole_spec()?);
    let work = WorkDir::create(
        &settings.checkpoint.work_dir,
        &container.namespace,
        &container.id,
    )
    .map_err(host("create a directory in", &settings.checkpoint.work_dir))?;
    let plan = Plan {
        images: work.subdir("images").map_err(host("create", work.path()))?,
        work: work.subdir("work").map_err(host("create", work.path()))?,
        leave_running: true,
        tcp_established: task.open_tcp(),
    };
    let rootfs = files::rootfs(container, &spec)?;
    let injected = super::injected(container, init, &spec)?;
    let runc_version = container.runc.version().await.unwrap_or_default();
    let criu_version = super::prepare_criu(container, &injected).await?;

    if !request.encrypt_to.is_empty()
        && !is_in_memory(work.path()).map_err(host("inspect", work.path()))?
    {
        return Err(CheckpointError::WorkDir {
            path: settings.checkpoint.work_dir.clone(),
        });
    }
    let partial = Partial::create(&request.directory.join(ARCHIVE_FILE))?;
    let options = WriteOptions {
        level: request.level,
        buffer: request.buffer,
        frame_size: frame_size(request.buffer),
        ..WriteOptions::default()
    };
    let mut writer = match request.encrypt_to.as_slice() {
        [] => Writer::new(partial.open()?, options)?,
        recipients => {
            let encryption = Encryption {
                recipients: recipients.to_vec(),
                label: label(container, &spec),
            };
            Writer::encrypted(partial.open()?, options, &encryption)?
        }
    };
    writer.directory("checkpoint/")?;
    let control = writer.control();
    let _unwanted = Unwanted(control.clone());
    let _watch = watch(
        Arc::clone(&request),
        stop.clone(),
        control.clone(),
        course.phase(),
    );
    let mut phases = Phases::default();

    let ahead = |bytes| drop(ready(&control, move || bytes));
    let pids = container.cgroup().map(|cgroup| cgroup.pids());
    let readied = ready(&control, move || facts::memory(&pids.unwrap_or_default()));
    if std::thread::available_parallelism().map_or(1, usize::from) < TO_SPARE {
        // Only earlier: the writer makes up for what is missing.
        let _ = readied.await;
    }

    // From here to its end the container stands still.
    let frozen = Instant::now();
    let created = SystemTime::now();
    control.set_background(true);
    // What is frozen can't end. Once it runs again, its archive is worth completing.
    let killed = stop.follow(container.killed().clone(), StopReason::Killed);
    let still = Still::begin(
        container,
        &freezer,
        true,
        settings,
        course,
        &mut phases,
        &ahead,
    )
    .await?;
    let subject = Subject {
        container,
        init,
        spec: Arc::clone(&spec),
        injected,
        rootfs,
        plan: &plan,
    };
    let saving = subject.save(Images(writer), course, &mut phases);
    let Saved {
        mut writer,
        received,
        mut manifest,
        mut warnings,
    } = match saving.await {
        Ok(saved) => saved,
        Err(error) => return Err(still.go_on_after(error).await),
    };
    manifest.created = humantime::format_rfc3339_millis(created).to_string();
    manifest.gpu = still.gpu();
    manifest.container = facts::container(
        &container.id,
        &container.namespace,
        if still.was_paused() {
            "paused"
        } else {
            "running"
        },
        &spec,
    );
    manifest.host = facts::host(&runc_version, &criu_version);
    manifest.requester.clone_from(&request.requester);
    manifest.parent = restore::parent(&container.bundle);

    let still = if task.exit() {
        Some(still)
    } else {
        if let Err(error) = course.enter("thaw").await {
            return Err(still.go_on_after(error).await);
        }
        still.go_on(&mut phases).await?;
        None
    };
    manifest.pause_ms = millis(frozen.elapsed());
    drop(killed);
    control.set_background(false);

    let begun = Instant::now();
    let source = Arc::clone(container);
    let asked = Arc::clone(&request);
    let pause_ms = manifest.pause_ms;
    let complete = move || {
        append(
            &mut writer,
            &source,
            &spec,
            &plan,
            received,
            &asked,
            &mut warnings,
        )?;
        phases.end("compress", begun);
        manifest.phases = phases.into_manifest();
        manifest.warnings = warnings;
        Ok::<_, CheckpointError>(writer.finish(manifest)?)
    };
    let written = async {
        course.enter("compress").await?;
        let summary = blocking(course, complete).await?;
        course.enter("sync").await?;
        let total_ms = millis(started.elapsed());
        let asked = Arc::clone(&request);
        let write = move || {
            write_result(&asked.directory, &summary, pause_ms, total_ms)?;
            Ok(summary)
        };
        blocking(course, write).await
    };
    let summary = match (written.await, still) {
        (Ok(summary), None) => {
            partial.keep();
            summary
        }
        (Ok(summary), Some(still)) => {
            // Soon there is nothing else of the container.
            let noted = course.journal.complete();
            if let Err(source) = noted.map_err(host("note the end of", &container.bundle)) {
                return Err(still.go_on_after(source).await);
            }
            partial.keep();
            still.end().await?;
            summary
        }
        (Err(error), None) => return Err(error),
        (Err(error), Some(still)) => return Err(still.go_on_after(error).await),
    };
    tracing::info!(
        id = %container.id, bytes = summary.archive_bytes, manifest = %summary.manifest_sha256,
        pause_ms, requester = request.requester.as_deref().unwrap_or("unknown"), "checkpointed"
    );
    Ok(())
}

/// What is known of the archive to those who can't read it.
fn label(container: &Container, spec: &Value) -> Label {
    Label::of(&Manifest {
        created: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
        container: facts::container(&container.id, &container.namespace, "", spec),
        ..Manifest::default()
    })
}

/// Ends the archive's threads with the checkpoint, however that ends.
struct Unwanted(Control);

impl Drop for Unwanted {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// A container that stands still.
struct Subject<'a> {
    container: &'a Arc<Container>,
    init: u32,
    spec: Arc<Value>,
    injected: Vec<Injected>,
    rootfs: Option<Overlay>,
    plan: &'a Plan,
}

/// What was read of it.
struct Saved {
    writer: Writer,
    received: Received,
    manifest: Manifest,
    warnings: Vec<String>,
}

impl Subject<'_> {
    /// Saves what must be read while it stands still: memory, file system changes, shared memory,
    /// facts.
    async fn save(
        self,
        images: Images,
        course: &Course,
        phases: &mut Phases,
    ) -> Result<Saved, CheckpointError> {
        let begun = Instant::now();
        let (received, images) = dump(self.container, self.plan, images, course).await?;
        phases.end("dump", begun);

        course.enter("rootfs").await?;
        let begun = Instant::now();
        let source = Arc::clone(self.container);
        let saved = blocking(course, move || {
            let mut writer = images.0;
            let mut warnings = source.notices();
            files::save(&source, &self.spec, self.rootfs, &mut writer, &mut warnings)?;
            let manifest = Manifest {
                format: manifest::FORMAT,
                tool: concat!("kybernate ", env!("CARGO_PKG_VERSION")).into(),
                processes: facts::processes(self.init),
                mounts: facts::mounts(self.init, &self.injected),
                ..Manifest::default()
            };
            Ok(Saved {
                writer,
                received,
                manifest,
                warnings,
            })
        })
        .await?;
        phases.end("rootfs", begun);
        Ok(saved)
    }
}

fn write_result(
    directory: &Path,
    summary: &Summary,
    pause_ms: u64,
    total_ms: u64,
) -> Result<(), CheckpointError> {
    let result = CheckpointResult {
        archive_bytes: summary.archive_bytes,
        content_bytes: summary.content_bytes,
        manifest_sha256: summary.manifest_sha256.clone(),
        pause_ms,
        total_ms,
    };
    let path = directory.join(RESULT_FILE);
    let text = serde_json::to_vec(&result).expect("plain data becomes JSON");
    fs::write(&path, text).map_err(host("write", &path))
}

/// Runs on a thread that may block. The tokio runtime has one thread, which must stay free.
async fn blocking<T: Send + 'static>(
    course: &Course,
    work: impl FnOnce() -> Result<T, CheckpointError> + Send + 'static,
) -> Result<T, CheckpointError> {
    course.thread(tokio::task::spawn_blocking(work)).await?
}

fn host<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> CheckpointError + use<'a> {
    move |source| CheckpointError::Host {
        action,
        path: path.into(),
        source,
    }
}

/// Readies memory for so many bytes that will come.
fn ready(control: &Control, bytes: impl FnOnce() -> u64 + Send + 'static) -> JoinHandle<()> {
    let control = control.clone();
    tokio::task::spawn_blocking(move || control.prepare(bytes()))
}

/// A frame that fits the buffer often enough to keep every thread busy.
fn frame_size(buffer: u64) -> usize {
    let fits = (buffer / FRAMES).clamp(LEAST_FRAME, FRAME);
    usize::try_from(1_u64 << fits.ilog2()).expect("at most 4 MiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_buffer_gets_small_frames() {
        for (buffer, frame) in [
            (8 << 30, 4 << 20),
            (128 << 20, 4 << 20),
            (127 << 20, 2 << 20),
            (16 << 20, 512 << 10),
            (0, 64 << 10),
        ] {
            assert_eq!(frame_size(buffer), frame, "{buffer}");
        }
    }
}
