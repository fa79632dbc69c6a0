//! Staging: from an archive or a directory into a private directory that CRIU reads.
//!
//! Memory is the faster place and the scarcer one: images are staged there when a quarter of
//! the available memory holds them, since the restored processes need the same again.

use std::{
    fmt,
    fs::{self, DirBuilder, File},
    io::{self, Read},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use kybernate_config::settings::RestoreSettings;
use kybernate_oci::{
    archive::{Archive, ReadError},
    manifest::{Entry, Manifest},
    rootfs::{Devices, LIST_LIMIT, Limits},
};
use nix::sys::statvfs::statvfs;
use serde::{
    Deserializer as _,
    de::{self, SeqAccess, Visitor},
};
use serde_json::Value;

use super::{RestoreError, open as open_file};
use crate::checkpoint::workdir::is_in_memory;

/// The container's file system changes.
pub const ROOTFS_DIFF: &str = "rootfs-diff.tar";
/// What it deleted.
const DELETED: &str = "deleted.files";
/// Files of the pod's shared memory.
pub const DEVSHM: &str = "devshm-checkpoint.tar";
/// CRIU's images.
const IMAGES: &str = "checkpoint/";

/// Images in memory take at most this part of what is available.
const MEMORY_SHARE: u64 = 4;
/// Room beside the images for what is not counted.
const SLACK: u64 = 16 << 20;

/// Bytes that staging an archive takes.
#[must_use]
pub fn size(manifest: &Manifest) -> u64 {
    manifest
        .entries
        .iter()
        .filter(|e| is_staged(&e.name))
        .map(|e| e.size)
        .sum()
}

/// Bytes of the files in a directory.
pub fn directory_size(path: &Path) -> Result<u64, RestoreError> {
    let sum = || fs::read_dir(path)?.try_fold(0, |sum, entry| Ok(sum + entry?.metadata()?.len()));
    sum().map_err(host("list", path))
}

/// Chooses where `bytes` are staged, and makes that directory. What was `encrypted` is staged in
/// memory alone, unless the settings say otherwise.
pub fn place(
    settings: &RestoreSettings,
    bytes: u64,
    encrypted: bool,
) -> Result<PathBuf, RestoreError> {
    let needed = bytes + SLACK;
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = free(&settings.memory_dir)?.min(available(&meminfo) / MEMORY_SHARE);
    let on_disk = || -> Result<bool, RestoreError> {
        let in_memory = is_in_memory(&settings.memory_dir);
        Ok(!in_memory.map_err(host("inspect", &settings.memory_dir))?)
    };
    let keep_off_disk = encrypted && !settings.decrypt_to_disk;
    if needed <= memory && !(keep_off_disk && on_disk()?) {
        return Ok(settings.memory_dir.clone());
    }
    if keep_off_disk {
        return Err(RestoreError::Plaintext {
            needed,
            memory: settings.memory_dir.clone(),
            memory_free: memory,
        });
    }
    let disk = free(&settings.disk_dir)?;
    if needed <= disk {
        return Ok(settings.disk_dir.clone());
    }
    Err(RestoreError::Space {
        needed,
        memory: settings.memory_dir.clone(),
        memory_free: memory,
        disk: settings.disk_dir.clone(),
        disk_free: disk,
    })
}

/// Extracts what a restore needs into `staging`: CRIU's images into `images/`, the rest into
/// `files/`. Every byte of the archive is verified, whether it is needed or not. Ends soon after
/// `halted` was set.
pub fn extract(archive: &Archive, staging: &Path, halted: &AtomicBool) -> Result<(), ReadError> {
    let target = |entry: &Entry| match entry.name.strip_prefix(IMAGES) {
        Some(name) => (!name.is_empty()).then(|| Path::new("images").join(name)),
        None => is_staged(&entry.name).then(|| Path::new("files").join(&entry.name)),
    };
    archive.extract(&target, staging, 0, halted).map(drop)
}

/// Copies a flat directory of images. Anything but a regular file is no image.
pub fn copy(from: &Path, to: &Path) -> Result<(), RestoreError> {
    for entry in fs::read_dir(from).map_err(host("list", from))? {
        let entry = entry.map_err(host("list", from))?;
        let path = entry.path();
        if entry.file_type().map_err(host("inspect", &path))?.is_file() {
            fs::copy(&path, to.join(entry.file_name())).map_err(host("copy", &path))?;
        }
    }
    Ok(())
}

/// A staged tar, which ends in an error once `halted` is set: a restore that nobody waits for any
/// more touches the container's root no further.
pub fn tar<'a>(
    files: &Path,
    name: &str,
    halted: &'a AtomicBool,
) -> Result<Option<impl Read + use<'a>>, RestoreError> {
    struct Tar<'a>(File, &'a AtomicBool);

    impl Read for Tar<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.1.load(Ordering::Relaxed) {
                return Err(io::Error::other("the restore is being undone"));
            }
            self.0.read(buffer)
        }
    }

    Ok(open(files, name)?.map(|file| Tar(file, halted)))
}

/// A staged file, if the archive had it.
pub fn open(files: &Path, name: &str) -> Result<Option<File>, RestoreError> {
    open_file(&files.join(name))
}

/// The list of deleted paths.
pub fn deleted(files: &Path) -> Result<Vec<String>, RestoreError> {
    let Some(file) = open(files, DELETED)? else {
        return Ok(Vec::new());
    };
    let mut text = Vec::new();
    let path = files.join(DELETED);
    file.take(LIST_LIMIT)
        .read_to_end(&mut text)
        .map_err(host("read", &path))?;
    let most = usize::try_from(Limits::default().entries).unwrap_or(usize::MAX);
    paths(&text, most).map_err(RestoreError::Deleted)
}

/// A JSON array of at most `most` strings. Without the bound a list of empty ones would take many
/// times its own length in memory before anybody counted them.
fn paths(text: &[u8], most: usize) -> serde_json::Result<Vec<String>> {
    struct Paths(usize);

    impl<'de> Visitor<'de> for Paths {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {} paths", self.0)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<String>, A::Error> {
            let mut paths = Vec::new();
            while let Some(path) = list.next_element()? {
                if paths.len() == self.0 {
                    return Err(de::Error::invalid_length(paths.len() + 1, &self));
                }
                paths.push(path);
            }
            Ok(paths)
        }
    }

    let mut json = serde_json::Deserializer::from_slice(text);
    let paths = json.deserialize_seq(Paths(most))?;
    json.end()?;
    Ok(paths)
}

/// Bounds on what is put into the container's root: the archive's own declaration, and device
/// nodes only where the container may make them itself.
#[must_use]
pub fn limits(manifest: &Manifest, spec: &Value) -> Limits {
    let bounding = spec
        .pointer("/process/capabilities/bounding")
        .and_then(Value::as_array);
    let may_mknod = bounding.is_some_and(|caps| caps.iter().any(|cap| cap == "CAP_MKNOD"));
    Limits {
        bytes: size(manifest),
        devices: if may_mknod {
            Devices::Make
        } else {
            Devices::Refuse
        },
        ..Limits::default()
    }
}

fn is_staged(name: &str) -> bool {
    name.starts_with(IMAGES) || [ROOTFS_DIFF, DELETED, DEVSHM].contains(&name)
}

/// Free bytes of the file system that `path` is on or, where it does not exist yet, will be. What
/// is missing of it is made for the shim alone.
fn free(path: &Path) -> Result<u64, RestoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(host("create", path))?;
    let stat = statvfs(path).map_err(|e| host("inspect", path)(e.into()))?;
    Ok(stat.blocks_available() * stat.fragment_size())
}

/// Available memory in bytes, from the text of `/proc/meminfo`.
fn available(meminfo: &str) -> u64 {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

fn host<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> RestoreError + use<'a> {
    move |source| RestoreError::Host {
        action,
        path: path.into(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_paths_is_bounded_while_it_is_read() {
        assert_eq!(paths(br#"["/a","/b"]"#, 2).unwrap(), ["/a", "/b"]);
        assert!(paths(b"[]", 0).unwrap().is_empty());
        let error = paths(br#"["","",""]"#, 2).unwrap_err().to_string();
        assert!(error.contains("at most 2 paths"), "{error}");
        for wrong in ["", "{}", "[1]", "[\"a\"", "[] []", "\"a\""] {
            assert!(paths(wrong.as_bytes(), 9).is_err(), "{wrong}");
        }
    }

    #[test]
    fn places_that_are_made_are_for_the_shim_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("kybernate/restore");
        free(&place).unwrap();
        for made in [&place, place.parent().unwrap()] {
            let mode = fs::metadata(made).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o700, "{}", made.display());
        }
    }
}
