//! The archives of a directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use kybernate_oci::archive::{Archive, Label, ReadError};
use prost_types::Timestamp;

/// A file of this name beside an archive keeps it.
const PIN: &str = "keep";

/// The container that an archive is of, whichever of its attempts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    pod: String,
    container: String,
}

impl Owner {
    /// A container of a pod.
    #[must_use]
    pub fn of_pod(namespace: &str, pod: &str, container: &str) -> Self {
        Self {
            pod: format!("{namespace}/{pod}"),
            container: container.to_owned(),
        }
    }

    /// A container without a pod.
    #[must_use]
    pub fn alone(id: &str) -> Self {
        Self {
            pod: id.to_owned(),
            container: String::new(),
        }
    }

    /// Its pod; itself where there is none.
    pub(super) fn pod(&self) -> &str {
        &self.pod
    }

    fn of(label: &Label) -> Self {
        label.pod.as_ref().map_or_else(
            || Self::alone(&label.id),
            |pod| Self::of_pod(&pod.namespace, &pod.name, &label.name),
        )
    }
}

/// One archive.
#[derive(Debug, Clone)]
pub(super) struct Held {
    /// Where it is.
    pub(super) path: PathBuf,
    /// What it is of.
    pub(super) owner: Owner,
    /// When it was taken: seconds and nanoseconds since 1970.
    pub(super) created: (i64, i32),
    /// Its size.
    pub(super) bytes: u64,
    /// Whether it was asked to be kept.
    pub(super) pinned: bool,
}

/// All good archives in `dir`. Other files are none of our business.
pub(super) fn scan(dir: &Path) -> io::Result<Vec<Held>> {
    let mut held = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // Not through a link, and not a pipe: opening that would wait.
        if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let path = entry.path();
        let Some((label, bytes)) = read(&path) else {
            continue;
        };
        let Ok(created) = label.created.parse::<Timestamp>() else {
            continue;
        };
        let mut pin = path.clone().into_os_string();
        pin.push(".");
        pin.push(PIN);
        held.push(Held {
            owner: Owner::of(&label),
            created: (created.seconds, created.nanos),
            bytes,
            pinned: Path::new(&pin).symlink_metadata().is_ok(),
            path,
        });
    }
    Ok(held)
}

/// What a file is of, and its size, if it is a good archive. Of one that is encrypted its label
/// says so: a node need not be able to read what it writes.
fn read(path: &Path) -> Option<(Label, u64)> {
    match Archive::open(path) {
        Ok(archive) => Some((Label::of(archive.manifest()), archive.archive_bytes())),
        Err(ReadError::Encrypted { envelope }) => Some((envelope.label?, envelope.bytes)),
        Err(_) => None,
    }
}
