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

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Instant, SystemTime},
};

use kybernate_config::{
    Settings,
    request::{ARCHIVE_FILE, CheckpointResult, RESULT_FILE},
};
use kybernate_oci::{
    archive::{EntryStream, Summary, WriteOptions, Writer},
    manifest::{self, Manifest},
};

use serde_json::Value;

use super::{
    CheckpointError, Task,
    dump::{LOG, Plan, STATS, dump},
    facts, files,
    freezer::Thaw,
    page_server::{PageImages, Pages, Received},
    request::Request,
    stop::{Phase, Stop, StopReason, millis, watch},
    workdir::WorkDir,
};
use crate::{container::Container, process::ProcessState, restore};

/// Bytes of tar in one frame: small frames compress worse, large ones decompress on fewer
/// threads.
const FRAME: u64 = 4 << 20;
/// A buffer that holds fewer frames than this gets smaller ones.
const FRAMES: u64 = 32;
/// The smallest frame that the archive knows.
const LEAST_FRAME: u64 = 64 << 10;

/// Takes the checkpoint that `request` asks for.
pub async fn run(
    container: &Arc<Container>,
    task: &Task,
    request: Request,
    settings: &Settings,
    stop: &Stop,
) -> Result<(), CheckpointError> {
    let started = Instant::now();
    let (init, freezer) = super::subject(container)?;
    let spec = Arc::new(container.whole_spec()?);
    let request = Arc::new(request);
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
    let runc_version = container.runc.version().await.unwrap_or_default();
    let criu_version = super::prepare_criu(container).await?;

    let partial = Partial::create(&request.directory.join(ARCHIVE_FILE))?;
    let options = WriteOptions {
        level: request.level,
        buffer: request.buffer,
        frame_size: frame_size(request.buffer),
        ..WriteOptions::default()
    };
    let mut writer = Writer::new(partial.open()?, options)?;
    writer.directory("checkpoint/")?;
    let control = writer.control();
    let phase = Phase::default();
    let _watch = watch(
        Arc::clone(&request),
        stop.clone(),
        control.clone(),
        phase.clone(),
    );
    let mut phases = Phases::default();

    // From here to the thaw the container stands still.
    let was_paused = container.state() == ProcessState::Paused;
    let frozen = Instant::now();
    let created = SystemTime::now();
    control.set_background(true);
    // What is frozen can't end. Once it runs again, its archive is worth completing.
    let killed = stop.follow(container.killed().clone(), StopReason::Killed);
    let thaw = Thaw::at_end((!was_paused).then(|| freezer.clone()));
    if !was_paused {
        container
            .runc
            .pause(&container.id)
            .await
            .map_err(|source| CheckpointError::Runc {
                id: container.id.clone(),
                source,
            })?;
    }
    phases.end("freeze", frozen);

    phase.set("dump");
    let begun = Instant::now();
    let (received, images) = dump(container, &plan, Images(writer), stop).await?;
    phases.end("dump", begun);

    phase.set("rootfs");
    let begun = Instant::now();
    let (source, shared_spec) = (Arc::clone(container), Arc::clone(&spec));
    let (mut writer, mut warnings, processes, mounts) = blocking(container, move || {
        let mut writer = images.0;
        let mut warnings = source.notices();
        files::save(&source, &shared_spec, rootfs, &mut writer, &mut warnings)?;
        Ok((
            writer,
            warnings,
            facts::processes(init),
            facts::mounts(init),
        ))
    })
    .await?;
    phases.end("rootfs", begun);

    let mut manifest = Manifest {
        format: manifest::FORMAT,
        created: humantime::format_rfc3339_millis(created).to_string(),
        tool: concat!("kybernate ", env!("CARGO_PKG_VERSION")).into(),
        container: facts::container(
            &container.id,
            &container.namespace,
            if was_paused { "paused" } else { "running" },
            &spec,
        ),
        host: facts::host(&runc_version, &criu_version),
        processes,
        mounts,
        requester: request.requester.clone(),
        parent: restore::parent(&container.bundle),
        ..Manifest::default()
    };

    let kept_frozen = if task.exit() {
        Some(thaw)
    } else {
        thaw.now().map_err(|source| CheckpointError::Thaw {
            id: container.id.clone(),
            source,
        })?;
        container.runs_again();
        None
    };
    manifest.pause_ms = millis(frozen.elapsed());
    drop(killed);
    control.set_background(false);

    phase.set("compress");
    let begun = Instant::now();
    let source = Arc::clone(container);
    let asked = Arc::clone(&request);
    let pause_ms = manifest.pause_ms;
    let written = blocking(container, move || {
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
        manifest.phases = phases.0;
        manifest.warnings = warnings;
        Ok(writer.finish(manifest)?)
    })
    .await;
    if let Some(reason) = stop.reason() {
        return Err(CheckpointError::Stopped {
            id: container.id.clone(),
            reason,
        });
    }
    let summary = written?;

    phase.set("sync");
    write_result(
        &request.directory,
        &summary,
        pause_ms,
        millis(started.elapsed()),
    )?;
    if let Some(thaw) = kept_frozen {
        let source = Arc::clone(container);
        blocking(container, move || kill(&source)).await?;
        thaw.now().map_err(|source| CheckpointError::Thaw {
            id: container.id.clone(),
            source,
        })?;
    }
    partial.keep();
    tracing::info!(
        id = %container.id, bytes = summary.archive_bytes, manifest = %summary.manifest_sha256,
        pause_ms, requester = request.requester.as_deref().unwrap_or("unknown"), "checkpointed"
    );
    Ok(())
}

/// Ends every process of the container.
fn kill(container: &Container) -> Result<(), CheckpointError> {
    let path = container.bundle.clone();
    container
        .cgroup()
        .map_or(Ok(()), |cgroup| cgroup.kill())
        .map_err(host("end the container of", &path))
}

/// Everything that does not change any more when the container runs again.
fn append(
    writer: &mut Writer,
    container: &Container,
    spec: &Value,
    plan: &Plan,
    received: Received,
    request: &Request,
    warnings: &mut Vec<String>,
) -> Result<(), CheckpointError> {
    for (name, content) in &received.pagemaps {
        writer.bytes(&format!("checkpoint/{name}"), content)?;
    }
    for (name, path) in list(&plan.images)? {
        add_file(writer, &format!("checkpoint/{name}"), &path)?;
    }
    writer.bytes(
        "spec.dump",
        &files::read(&container.bundle.join("config.json"))?,
    )?;
    writer.bytes("bind.mounts", &files::bind_mounts(spec))?;
    for name in [LOG, STATS] {
        let path = plan.work.join(name);
        if path.exists() {
            add_file(writer, name, &path)?;
        }
    }
    for (name, path) in &request.include {
        match open(path) {
            Ok(_) => add_file(writer, name, path)?,
            // A container without output has no log; the archive says so and is whole.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                warnings.push(format!("{name} was asked for and is not there"));
            }
            Err(source) => {
                return Err(CheckpointError::Host {
                    action: "open",
                    path: path.clone(),
                    source,
                });
            }
        }
    }
    Ok(())
}

/// Adds a file of the length it has now: a log may grow while it is read.
fn add_file(writer: &mut Writer, name: &str, path: &Path) -> Result<(), CheckpointError> {
    let mut file = open(path).map_err(host("open", path))?;
    let size = file.metadata().map_err(host("inspect", path))?.len();
    Ok(writer.file(name, &mut io::Read::take(&mut file, size), size)?)
}

/// Opens a regular file, following no link at its end.
fn open(path: &Path) -> io::Result<File> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    Ok(file)
}

fn list(directory: &Path) -> Result<Vec<(String, PathBuf)>, CheckpointError> {
    let mut found: Vec<_> = fs::read_dir(directory)
        .and_then(|entries| entries.collect::<Result<Vec<_>, _>>())
        .map_err(host("list", directory))?
        .into_iter()
        .map(|entry| {
            (
                entry.file_name().to_string_lossy().into_owned(),
                entry.path(),
            )
        })
        .collect();
    found.sort();
    Ok(found)
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
    container: &Container,
    work: impl FnOnce() -> Result<T, CheckpointError> + Send + 'static,
) -> Result<T, CheckpointError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|source| CheckpointError::Panic {
            id: container.id.clone(),
            source,
        })?
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

/// A frame that fits the buffer often enough to keep every thread busy.
fn frame_size(buffer: u64) -> usize {
    let fits = (buffer / FRAMES).clamp(LEAST_FRAME, FRAME);
    usize::try_from(1_u64 << fits.ilog2()).expect("at most 4 MiB")
}

/// How long each phase took.
#[derive(Default)]
struct Phases(Vec<manifest::Phase>);

impl Phases {
    fn end(&mut self, name: &str, begun: Instant) {
        self.0.push(manifest::Phase {
            name: name.into(),
            ms: millis(begun.elapsed()),
        });
    }
}

/// An archive that is removed unless it was completed.
struct Partial(Option<PathBuf>);

impl Partial {
    fn create(path: &Path) -> Result<Self, CheckpointError> {
        let options = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        options.map_err(host("create", path))?;
        Ok(Self(Some(path.into())))
    }

    fn open(&self) -> Result<File, CheckpointError> {
        let path = self.0.as_deref().expect("held until kept");
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(host("open", path))
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove a partial archive");
        }
    }
}

/// Page images as entries of the archive.
struct Images(Writer);

struct Stream<'a>(EntryStream<'a>);

impl PageImages for Images {
    fn pages(&mut self, name: &str) -> io::Result<Box<dyn Pages + '_>> {
        Ok(Box::new(Stream(
            self.0.stream(&format!("checkpoint/{name}"))?,
        )))
    }
}

impl Pages for Stream<'_> {
    fn space(&mut self) -> io::Result<&mut [u8]> {
        Ok(self.0.space()?)
    }

    fn filled(&mut self, n: usize) {
        self.0.filled(n);
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        self.0.finish()?;
        Ok(())
    }
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
