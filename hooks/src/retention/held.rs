//! The archives of a directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use kybernate_oci::{archive::Archive, manifest::Manifest};
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

    fn read(manifest: &Manifest) -> Self {
        let container = &manifest.container;
        container.pod.as_ref().map_or_else(
            || Self::alone(&container.id),
            |pod| Self::of_pod(&pod.namespace, &pod.name, &container.name),
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
        let Ok(archive) = Archive::open(&path) else {
            continue;
        };
        let manifest = archive.manifest();
        let Ok(created) = manifest.created.parse::<Timestamp>() else {
            continue;
        };
        let mut pin = path.clone().into_os_string();
        pin.push(".");
        pin.push(PIN);
        held.push(Held {
            owner: Owner::read(manifest),
            created: (created.seconds, created.nanos),
            bytes: archive.archive_bytes(),
            pinned: Path::new(&pin).symlink_metadata().is_ok(),
            path,
        });
    }
    Ok(held)
}
