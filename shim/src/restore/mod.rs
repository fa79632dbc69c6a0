//! Restore: an archive becomes a running container.
//!
//! ```text
//! Create   open ─> preflight ─> (rehearsal) ─> verify every byte while staging ─> file system changes ─> (created)
//! Start    runc restore, images from the staging directory ─> GPU state back ─> (running), staging removed
//! ```
//!
//! The pod's own spec rules: nothing in the archive adds a mount, a device, an annotation, a
//! hook or a capability. Until every digest is checked, nothing outside the staging directory
//! is touched.

mod error;
mod noted;
mod preflight;
mod spec;
mod stage;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use kybernate_age::{Identity, read_identities};
use kybernate_config::{Settings, settings::RestoreSettings};
use kybernate_oci::{
    archive::{Archive, ReadError},
    manifest::{Gpu, Mount},
    memory,
    rootfs::{self, tree},
    signature,
};

use tokio_util::sync::CancellationToken;

pub use self::error::RestoreError;
use self::noted::Noted;
use crate::{
    checkpoint::{shared_memory, workdir::WorkDir},
    container::ContainerFacts,
    criu::{self, log},
    gpu::Wake,
    injected::{Attached, Rehearsal, Tree},
    io::Stdio,
    journal::{MARK, mark},
    spec::SpecFacts,
};

/// CRIU's log of a restore, in the work directory.
const LOG: &str = "restore.log";
/// File in the bundle that names the archive, for the manifest of the next checkpoint.
const PARENT_FILE: &str = "restored-from";

/// What a container is restored from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An archive of ours, named by the annotation `kybernate.io/restore-from`.
    Archive(PathBuf),
    /// A directory of CRIU images, named by containerd in its `Create` call. containerd
    /// applies the file system changes itself and removes the directory after the call.
    Images(PathBuf),
}

impl Source {
    /// Refuses what can't be signed where a signature is required.
    fn admit(&self, settings: &RestoreSettings) -> Result<(), RestoreError> {
        match self {
            Self::Images(path) if settings.require_signature => {
                Err(RestoreError::Unsigned { path: path.clone() })
            }
            Self::Images(_) | Self::Archive(_) => Ok(()),
        }
    }
}

/// Images that are staged and wait for `Start`. Dropping it removes them.
#[derive(Debug)]
pub struct Prepared {
    staging: WorkDir,
    images: PathBuf,
    work: PathBuf,
    gpu: Option<Gpu>,
    /// What hooks mount.
    injected: Vec<Tree>,
    /// The last field: it ends when what was staged is gone.
    record: Noted,
}

/// Verifies `source`, stages its images and puts the file system changes into the mounted
/// root of the container that is being created. Undone once `gone` says that nobody waits for it.
pub async fn prepare(
    source: Source,
    facts: &ContainerFacts,
    gone: &CancellationToken,
) -> Result<Prepared, RestoreError> {
    let settings = Settings::load()?;
    source.admit(&settings.restore)?;
    let criu = unless(gone, async { Ok(criu::Version::text(&facts.runc).await) }).await?;
    let path = match source {
        Source::Images(path) => {
            let record = Noted::begin(facts, &settings).await?;
            let injected = rehearse(facts, None, &record).await?;
            let (facts, noted) = (facts.clone(), record.clone());
            let stage = move || Prepared::from_images(&path, &facts, &settings, noted);
            let prepared = record.blocking(gone, stage).await?;
            return Ok(Prepared {
                injected,
                ..prepared
            });
        }
        Source::Archive(path) => path,
    };
    let archive = {
        let path = path.clone();
        let settings = settings.restore.clone();
        // A file system that hangs keeps the thread, and not the call.
        unless(gone, blocking(move || open_archive(&path, &settings))).await?
    };
    preflight::check(archive.manifest(), &preflight::Here::now(criu))?;
    let record = Noted::begin(facts, &settings).await?;
    let injected = rehearse(facts, Some(&archive.manifest().mounts), &record).await?;
    if let Some(gpu) = archive.manifest().gpu.clone() {
        wake(gpu, facts, &settings).await?.release().await?;
    }
    let (facts, noted) = (facts.clone(), record.clone());
    let stage = move || Prepared::from_archive(&path, &archive, &facts, &settings, noted);
    let prepared = record.blocking(gone, stage).await?;
    Ok(Prepared {
        injected,
        ..prepared
    })
}

/// The mounts that this node's hooks make in the container. `expected` are those that the archive's
/// processes had, if that is known. The container's spec is then what its runtime makes of it.
async fn rehearse(
    facts: &ContainerFacts,
    expected: Option<&[Mount]>,
    record: &Noted,
) -> Result<Vec<Tree>, RestoreError> {
    let spec = SpecFacts::read_whole(&facts.bundle)?;
    if !Rehearsal::is_needed(facts, &spec, expected) {
        return Ok(Vec::new());
    }
    record.enter("rehearsal").await?;
    let rehearsal = Rehearsal::run(facts, expected, |pid| record.programs([pid])).await?;
    Ok(rehearsal.mounts)
}

/// Makes sure that this node's GPUs can take over what the archive's held.
async fn wake(gpu: Gpu, facts: &ContainerFacts, settings: &Settings) -> Result<Wake, RestoreError> {
    let spec = SpecFacts::read_whole(&facts.bundle)?;
    let reaper = facts.runc.reaper();
    Ok(Wake::prepare(gpu, &spec, &settings.gpu, reaper, &facts.bundle).await?)
}

/// Does something that leaves nothing behind, unless nobody waits for it any more.
async fn unless<T>(
    gone: &CancellationToken,
    work: impl Future<Output = Result<T, RestoreError>>,
) -> Result<T, RestoreError> {
    tokio::select! {
        biased;
        () = gone.cancelled() => Err(RestoreError::Stopped),
        done = work => done,
    }
}

/// Restores run on threads that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RestoreError> + Send + 'static,
) -> Result<T, RestoreError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(RestoreError::Panic)?
}

fn open_archive(path: &Path, settings: &RestoreSettings) -> Result<Archive, RestoreError> {
    if !path.is_absolute() {
        return Err(RestoreError::Annotation { value: path.into() });
    }
    // Keys are read only when there is something to open with them.
    let opened = match Archive::open(path) {
        Err(ReadError::Encrypted { .. }) if !settings.identities.is_empty() => {
            Archive::open_with(path, &identities(path, settings)?)
        }
        other => other,
    };
    let archive = opened.map_err(|source| RestoreError::Archive {
        path: path.into(),
        source,
    })?;
    if settings.require_signature {
        check_signature(path, archive.manifest_sha256(), &settings.trusted_keys)?;
    }
    Ok(archive)
}

/// The settings' identities, for the archive at `path`.
fn identities(path: &Path, settings: &RestoreSettings) -> Result<Vec<Identity>, RestoreError> {
    let mut identities = Vec::new();
    for file in &settings.identities {
        let read = read_identities(file).map_err(|source| RestoreError::Identity {
            path: path.into(),
            source,
        });
        identities.extend(read?);
    }
    Ok(identities)
}

/// Makes sure that somebody who is trusted has signed an archive. Its digest is that of the file
/// that is open, and covers every byte that is read of it from here on.
fn check_signature(path: &Path, digest: &str, keys: &[PathBuf]) -> Result<(), RestoreError> {
    let failed = |path: PathBuf| {
        move |source| RestoreError::Host {
            action: "read",
            path,
            source,
        }
    };
    let keys = keys
        .iter()
        .map(|key| fs::read_to_string(key).map_err(failed(key.clone())))
        .collect::<Result<Vec<_>, _>>()?;
    // Without a file nobody has signed.
    let signatures = signature::read_beside(path)
        .map_err(failed(signature::place(path)))?
        .unwrap_or_default();
    let key = signature::verify(digest, &signatures, &keys).map_err(|source| {
        RestoreError::Signature {
            path: path.into(),
            source,
        }
    })?;
    tracing::info!(path = %path.display(), key, "signed by a trusted key");
    Ok(())
}

/// Brings the processes back. On return they run and runc knows them; the staged images are
/// gone. GPU state, if there is any, is still in host memory: [`Wake::wake`] is the next step.
/// Once `gone` says that nobody waits for it, all of it is undone.
pub async fn start(
    prepared: Prepared,
    facts: &ContainerFacts,
    stdio: &mut Stdio,
    pid_file: &Path,
    gone: &CancellationToken,
) -> Result<Option<Wake>, RestoreError> {
    let started = tokio::select! {
        biased;
        () = gone.cancelled() => Err(RestoreError::Stopped),
        started = start_processes(&prepared, facts, stdio, pid_file) => started,
    };
    if started.is_err() {
        prepared.record.undo().await;
    }
    // Removing gigabytes of images takes a while.
    let _ = tokio::task::spawn_blocking(move || drop(prepared)).await;
    started
}

async fn start_processes(
    prepared: &Prepared,
    facts: &ContainerFacts,
    stdio: &mut Stdio,
    pid_file: &Path,
) -> Result<Option<Wake>, RestoreError> {
    let record = &prepared.record;
    record.enter("restore").await?;
    let settings = Settings::load()?;
    let gpu = match prepared.gpu.clone() {
        Some(gpu) => Some(wake(gpu, facts, &settings).await?),
        None => None,
    };
    if let Some(gpu) = &gpu {
        let noted = record.helper(gpu.helper());
        noted.map_err(|source| RestoreError::Step {
            step: "restore",
            source,
        })?;
        gpu.hold_huge_pages(&settings.gpu).await;
    }
    let version = criu::Version::text(&facts.runc).await;
    let parsed = version.as_deref().and_then(criu::Version::parse);
    let directory = prepared.staging.injected();
    let injected =
        Attached::new(&prepared.injected, &directory).map_err(|source| RestoreError::Host {
            action: "hang the mounts of hooks into",
            path: directory,
            source,
        })?;
    criu::config::write(&facts.bundle, parsed, &injected.external()).map_err(|source| {
        RestoreError::Host {
            action: "write CRIU's configuration into",
            path: facts.bundle.clone(),
            source,
        }
    })?;
    spec::complete(facts)?;
    let mut command = facts.runc.command("restore");
    command
        .args([
            "--detach",
            "--no-subreaper",
            "--file-locks",
            "--ext-unix-sk",
        ])
        .arg("--image-path")
        .arg(&prepared.images)
        .arg("--work-path")
        .arg(&prepared.work)
        .arg("--bundle")
        .arg(&facts.bundle)
        .arg("--pid-file")
        .arg(pid_file);
    if facts.options.no_pivot_root {
        command.arg("--no-pivot");
    }
    stdio.attach(&mut command);
    command
        .arg(&facts.id)
        .env(MARK, mark(&facts.namespace, &facts.id));
    let failed = |runc| RestoreError::Processes {
        id: facts.id.clone(),
        criu: log::explain(&prepared.work.join(LOG)),
        runc,
    };
    let mut child = facts.runc.spawn(command).map_err(failed)?;
    let noted = record.programs([child.pid()]);
    child.wait().await.map_err(failed)?;
    let step = "restore";
    noted.map_err(|source| RestoreError::Step { step, source })?;
    record.enter("restored").await?;
    Ok(gpu)
}

/// Manifest digest of the archive that the container in `bundle` was restored from.
#[must_use]
pub fn parent(bundle: &Path) -> Option<String> {
    fs::read_to_string(bundle.join(PARENT_FILE)).ok()
}

impl Prepared {
    fn from_archive(
        path: &Path,
        archive: &Archive,
        facts: &ContainerFacts,
        settings: &Settings,
        record: Noted,
    ) -> Result<Self, RestoreError> {
        let manifest = archive.manifest();
        record.step("stage")?;
        let encrypted = archive.envelope().is_some();
        let place = stage::place(&settings.restore, stage::size(manifest), encrypted)?;
        let (mut restore, files) =
            Self::staged(facts, settings, &place, stage::size(manifest), &record)?;
        restore.gpu.clone_from(&manifest.gpu);
        stage::extract(archive, restore.staging.path(), record.halted()).map_err(|source| {
            RestoreError::Archive {
                path: path.into(),
                source,
            }
        })?;

        record.step("apply")?;
        // Every byte is what it was. Only now does anything of it leave the staging directory.
        let deleted = stage::deleted(&files)?;
        let spec = SpecFacts::read_whole(&facts.bundle)?;
        let limits = stage::limits(manifest, &spec);
        if let Some(tar) = stage::tar(&files, stage::ROOTFS_DIFF, record.halted())? {
            rootfs::apply(&facts.rootfs, tar, &deleted, &limits)
                .map_err(|source| RestoreError::Rootfs { source })?;
        }
        if let Some(tar) = stage::tar(&files, stage::DEVSHM, record.halted())? {
            let dir = shared_memory(&spec).ok_or(RestoreError::NoSharedMemory)?;
            tree::unpack(&dir, tar, &limits)
                .map_err(|source| RestoreError::SharedMemory { path: dir, source })?;
        }
        remove(&files)?;
        let parent = facts.bundle.join(PARENT_FILE);
        fs::write(&parent, archive.manifest_sha256()).map_err(|source| RestoreError::Host {
            action: "write",
            path: parent,
            source,
        })?;
        Ok(restore)
    }

    fn from_images(
        path: &Path,
        facts: &ContainerFacts,
        settings: &Settings,
        record: Noted,
    ) -> Result<Self, RestoreError> {
        let bytes = stage::directory_size(path)?;
        record.step("stage")?;
        let place = stage::place(&settings.restore, bytes, false)?;
        let (restore, files) = Self::staged(facts, settings, &place, bytes, &record)?;
        stage::copy(path, &restore.images)?;
        remove(&files)?;
        Ok(restore)
    }

    /// Empty directories in `parent` for `bytes` of images; the second is for what is not CRIU's.
    fn staged(
        facts: &ContainerFacts,
        settings: &Settings,
        parent: &Path,
        bytes: u64,
        record: &Noted,
    ) -> Result<(Self, PathBuf), RestoreError> {
        let make = || {
            let staging = WorkDir::create(parent, &facts.namespace, &facts.id)?;
            let in_memory = parent == settings.restore.memory_dir;
            let images = if in_memory && memory::huge_pages_are_cheap() {
                staging.images_in_huge_pages(bytes)?
            } else {
                staging.subdir("images")?
            };
            let work = staging.subdir("work")?;
            let files = staging.subdir("files")?;
            Ok((
                Self {
                    staging,
                    images,
                    work,
                    gpu: None,
                    injected: Vec::new(),
                    record: record.clone(),
                },
                files,
            ))
        };
        make().map_err(|source| RestoreError::Host {
            action: "create a directory in",
            path: parent.into(),
            source,
        })
    }
}

fn remove(directory: &Path) -> Result<(), RestoreError> {
    fs::remove_dir_all(directory).map_err(|source| RestoreError::Host {
        action: "remove",
        path: directory.into(),
        source,
    })
}

/// Opens a staged file.
fn open(path: &Path) -> Result<Option<File>, RestoreError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RestoreError::Host {
            action: "open",
            path: path.into(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_images_are_refused_where_a_signature_is_required() {
        let images = Source::Images("/i".into());
        let archive = Source::Archive("/a".into());
        let mut settings = RestoreSettings::default();
        assert!(images.admit(&settings).is_ok());
        settings.require_signature = true;
        let error = images.admit(&settings).unwrap_err();
        assert!(matches!(&error, RestoreError::Unsigned { path } if path == Path::new("/i")));
        assert!(error.to_string().contains("/i"), "{error}");
        // Whose signature is looked at when it is open.
        assert!(archive.admit(&settings).is_ok());
    }
}
