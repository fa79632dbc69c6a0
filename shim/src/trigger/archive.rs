//! A checkpoint that the container has asked for: the shim is its own client.
//!
//! ```text
//! <trigger.directory>/<namespace>/<pod>/<container>/      0700, root's
//!    2026-01-02T03:04:05.678Z.tar.zst                     0600, newest `keep` of them stay
//!    .staging                              request.json, config.dump, status.dump, the archive
//! ```
//!
//! Nothing of the path comes from the container but the names that the CRI gave it.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use kybernate_config::{
    names,
    request::{ARCHIVE_FILE, CheckpointRequest, IncludedFile, REQUEST_FILE, REQUEST_VERSION},
    size,
    wishes::TriggerSettings,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    checkpoint::{self, CheckpointError},
    container::Container,
};

const SUFFIX: &str = ".tar.zst";
const STAGING: &str = ".staging";
const CONFIG_DUMP: &str = "config.dump";
const STATUS_DUMP: &str = "status.dump";
/// The longest part of a path that comes from a name.
const LONGEST_NAME: usize = 200;
/// Space that stays free, beside the archive's.
const SPARE: u64 = 64 << 20;

/// Why there is no archive.
#[derive(Debug, thiserror::Error)]
pub(super) enum TriggerError {
    /// The archive could be as large as what is in memory.
    #[error("{path} has {free} free, the container holds {needed} in memory", free = size::display(*.free), needed = size::display(*.needed))]
    Space {
        /// The directory.
        path: PathBuf,
        /// Bytes free.
        free: u64,
        /// Bytes resident.
        needed: u64,
    },
    /// The kernel refused.
    #[error("cannot {action} {path}: {source}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The checkpoint failed.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A thread of ours panicked.
    #[error("a bug: {0}")]
    Panic(#[from] tokio::task::JoinError),
}

/// Where the archives of one container go.
#[derive(Debug, Clone)]
pub(super) struct Place {
    directory: PathBuf,
    keep: usize,
}

impl Place {
    /// The place of a container's archives.
    pub(super) fn of(container: &Container, settings: &TriggerSettings) -> Self {
        let note = |name: &str| container.spec.annotations.get(name).map(String::as_str);
        let parts = [
            note(names::CRI_SANDBOX_NAMESPACE).unwrap_or(&container.namespace),
            note(names::CRI_SANDBOX_NAME).unwrap_or(&container.id),
            note(names::CRI_CONTAINER_NAME).unwrap_or(&container.id),
        ];
        let directory = parts
            .into_iter()
            .fold(settings.directory.clone(), |path, name| {
                path.join(plain(name))
            });
        Self {
            directory,
            keep: settings.keep.max(1),
        }
    }

    /// How long ago the newest archive was written.
    pub(super) fn newest(&self) -> Option<Duration> {
        let name = self.archives().pop()?;
        let written = fs::metadata(self.directory.join(name)).ok()?.modified();
        SystemTime::now().duration_since(written.ok()?).ok()
    }

    /// Names of the archives, oldest first: their names are times.
    fn archives(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.ends_with(SUFFIX) && !name.starts_with('.'))
            .collect();
        names.sort();
        names
    }

    /// Makes the directory and an empty staging directory in it, with the request. The lock on
    /// the request tells that somebody waits for the archive.
    fn stage(&self, container: &Container) -> Result<(PathBuf, File), TriggerError> {
        let mut directories = DirBuilder::new();
        directories.recursive(true).mode(0o700);
        let make = |path: &Path| directories.create(path).map_err(host("create", path));
        make(&self.directory)?;
        let needed = resident(container) + SPARE;
        let free = rustix::fs::statvfs(&self.directory)
            .map(|stat| stat.f_bavail * stat.f_frsize)
            .map_err(|errno| host("inspect", &self.directory)(errno.into()))?;
        if free < needed {
            let path = self.directory.clone();
            return Err(TriggerError::Space { path, free, needed });
        }
        let staging = self.directory.join(STAGING);
        // Of a shim that was killed: this container's checkpoints come one at a time.
        match fs::remove_dir_all(&staging) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(host("remove", &staging)(e));
            }
            _ => {}
        }
        make(&staging)?;
        for (name, text) in [
            (CONFIG_DUMP, config_dump(container)),
            (STATUS_DUMP, status_dump(container)),
        ] {
            let path = staging.join(name);
            fs::write(&path, text).map_err(host("write", &path))?;
        }
        let request = CheckpointRequest {
            version: REQUEST_VERSION,
            level: None,
            buffer: None,
            deadline: None,
            include: [CONFIG_DUMP, STATUS_DUMP]
                .map(|name| IncludedFile {
                    name: name.into(),
                    path: name.into(),
                })
                .to_vec(),
            // The settings say who can read it.
            encrypt_to: Vec::new(),
            requester: Some("the container itself".into()),
        };
        let path = staging.join(REQUEST_FILE);
        let text = serde_json::to_vec(&request).expect("plain data becomes JSON");
        fs::write(&path, text).map_err(host("write", &path))?;
        let lock = File::open(&path).map_err(host("open", &path))?;
        lock.lock().map_err(host("lock", &path))?;
        Ok((staging, lock))
    }

    /// Gives the archive its name, durably, and removes what is too many.
    fn publish(&self, staging: &Path, name: &str) -> Result<String, TriggerError> {
        let file = format!("{name}{SUFFIX}");
        let path = self.directory.join(&file);
        fs::rename(staging.join(ARCHIVE_FILE), &path).map_err(host("create", &path))?;
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(host("sync", &self.directory))?;
        let archives = self.archives();
        let surplus = archives.len().saturating_sub(self.keep);
        for old in &archives[..surplus] {
            let path = self.directory.join(old);
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "an old archive stays");
            }
        }
        Ok(file)
    }
}

/// Takes the checkpoint `name` and returns the name of its file. The caller holds the
/// container's operation lock.
pub(super) async fn take(
    container: &Arc<Container>,
    place: &Place,
    name: &str,
) -> Result<String, TriggerError> {
    let (at, source) = (place.clone(), Arc::clone(container));
    let (staging, lock) = tokio::task::spawn_blocking(move || at.stage(&source)).await??;
    let task = checkpoint::Task {
        path: staging.clone(),
        ..checkpoint::Task::default()
    };
    let taken = checkpoint::run(Arc::clone(container), task, CancellationToken::new()).await;
    let (at, name) = (place.clone(), name.to_owned());
    tokio::task::spawn_blocking(move || {
        let published = taken
            .map_err(TriggerError::from)
            .and_then(|()| at.publish(&staging, &name));
        drop(lock);
        if let Err(error) = fs::remove_dir_all(&staging) {
            tracing::warn!(path = %staging.display(), %error, "a staging directory stays");
        }
        published
    })
    .await?
}

fn annotation<'a>(container: &'a Container, name: &str) -> &'a str {
    let annotations = &container.spec.annotations;
    annotations.get(name).map_or("", String::as_str)
}

/// The least that readers of checkpoints want to know: see checkpointctl's `lib/metadata.go`.
fn config_dump(container: &Container) -> Vec<u8> {
    let note = |name: &str| annotation(container, name);
    let image = note(names::CRI_IMAGE_NAME);
    let created = fs::metadata(container.bundle.join("config.json"))
        .and_then(|file| file.modified())
        .unwrap_or(SystemTime::UNIX_EPOCH);
    let dump = json!({
        "id": container.id,
        "name": format!(
            "{}_{}_{}_{}_0",
            note(names::CRI_CONTAINER_NAME),
            note(names::CRI_SANDBOX_NAME),
            note(names::CRI_SANDBOX_NAMESPACE),
            note(names::CRI_SANDBOX_UID),
        ),
        "rootfsImage": image,
        "rootfsImageName": image,
        "rootfsImageRef": "",
        "runtime": "runc",
        "createdTime": humantime::format_rfc3339_millis(created).to_string(),
        "checkpointedTime": humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
    });
    serde_json::to_vec_pretty(&dump).expect("plain data becomes JSON")
}

/// The CRI's status as far as it is known here: what a restore takes from it.
fn status_dump(container: &Container) -> Vec<u8> {
    let dump = json!({
        "id": container.id,
        "metadata": {"name": annotation(container, names::CRI_CONTAINER_NAME)},
        "state": 1,
        "image": {"image": annotation(container, names::CRI_IMAGE_NAME)},
    });
    serde_json::to_vec_pretty(&dump).expect("plain data becomes JSON")
}

/// Bytes of memory that the container's processes have resident; shared ones count twice.
fn resident(container: &Container) -> u64 {
    let kib = |(pid, _): (u32, _)| {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.split_ascii_whitespace().next()?.parse::<u64>().ok()
    };
    container.pids().into_iter().filter_map(kib).sum::<u64>() * 1024
}

/// A name as part of a path: nothing leads elsewhere, nothing is hidden.
fn plain(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let text: String = name
        .chars()
        .map(|c| if is_plain(c) { c } else { '_' })
        .take(LONGEST_NAME)
        .collect();
    match text.strip_prefix('.') {
        Some(rest) => format!("_{rest}"),
        None if text.is_empty() => "_".into(),
        None => text,
    }
}

fn host<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> TriggerError + use<'a> {
    move |source| TriggerError::Host {
        action,
        path: path.into(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_else() {
        for (name, part) in [
            ("web-0.a", "web-0.a"),
            ("..", "_."),
            (".staging", "_staging"),
            ("a/../b", "a_.._b"),
            ("", "_"),
            ("ü\n", "__"),
        ] {
            assert_eq!(plain(name), part, "{name:?}");
        }
        assert_eq!(plain(&"x".repeat(1000)).len(), LONGEST_NAME);
    }

    #[test]
    fn the_newest_archives_stay_and_nothing_else_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place {
            directory: dir.path().into(),
            keep: 2,
        };
        assert_eq!(place.newest(), None);
        let staging = dir.path().join(STAGING);
        fs::create_dir(&staging).unwrap();
        fs::write(dir.path().join("notes.txt"), "mine").unwrap();
        for time in ["2026-01-01", "2026-01-02", "2026-01-03"] {
            fs::write(staging.join(ARCHIVE_FILE), time).unwrap();
            assert_eq!(
                place.publish(&staging, time).unwrap(),
                format!("{time}.tar.zst")
            );
        }
        assert_eq!(
            place.archives(),
            ["2026-01-02.tar.zst", "2026-01-03.tar.zst"]
        );
        assert!(place.newest().unwrap() < Duration::from_secs(60));
        assert!(dir.path().join("notes.txt").exists());
    }
}
