//! What the archive holds of the container's files: the changes to its root, the files of its
//! pod's `/dev/shm`, and what the spec says about bind mounts.

use std::{
    fs,
    path::{Path, PathBuf},
};

use kybernate_oci::{
    archive::Writer,
    rootfs::{self, LIST_LIMIT, MountError, Overlay, tree},
};
use serde::Serialize;
use serde_json::Value;

use super::CheckpointError;
use crate::container::Container;

const DEV_SHM: &str = "/dev/shm";

/// The layers of the container's root, or `None` for a root that can't change. Asked before
/// the container is frozen, because the answer may be a refusal.
pub fn rootfs(container: &Container, spec: &Value) -> Result<Option<Overlay>, CheckpointError> {
    let path = Path::new("/proc/self/mountinfo");
    let mounts = fs::read_to_string(path).map_err(|source| CheckpointError::Host {
        action: "read",
        path: path.into(),
        source,
    })?;
    let rootfs = canonical(container.rootfs())?;
    match Overlay::of_mount(&mounts, &rootfs).and_then(Overlay::resolved) {
        Ok(overlay) => Ok(Some(overlay)),
        Err(_) if is_read_only(spec) => Ok(None),
        Err(MountError::NoUpper { .. }) => Ok(None),
        Err(MountError::NotOverlay { fstype, .. }) => Err(CheckpointError::Rootfs {
            id: container.id.clone(),
            found: fstype,
        }),
        Err(error) => Err(files(container, "the root file system", error)),
    }
}

/// The path as the kernel's mount table has it: `/var/run` may be a link.
fn canonical(path: &Path) -> Result<PathBuf, CheckpointError> {
    path.canonicalize().map_err(|source| CheckpointError::Host {
        action: "resolve",
        path: path.into(),
        source,
    })
}

/// Writes `rootfs-diff.tar`, `deleted.files` and `devshm-checkpoint.tar`.
pub fn save(
    container: &Container,
    spec: &Value,
    overlay: Option<Overlay>,
    writer: &mut Writer,
    warnings: &mut Vec<String>,
) -> Result<(), CheckpointError> {
    if let Some(overlay) = overlay {
        let mut stream = writer.stream("rootfs-diff.tar")?;
        let diff = rootfs::diff(&overlay, container.rootfs(), &mut stream)
            .map_err(|error| files(container, "the file system changes", error))?;
        stream.finish()?;
        warnings.extend(diff.notes.iter().map(ToString::to_string));
        let deleted = serde_json::to_vec(&diff.deleted).expect("strings become JSON");
        if deleted.len() as u64 > LIST_LIMIT {
            let excess = format!("it takes more than {LIST_LIMIT} bytes, which no restore reads");
            return Err(files(container, "the list of deleted files", excess));
        }
        writer.bytes("deleted.files", &deleted)?;
    }
    match shared_memory(spec) {
        Some(dir) if dir == Path::new(DEV_SHM) => {
            warnings.push("/dev/shm is the host's own; its files are not in the archive".into());
        }
        Some(dir) if !is_empty(&dir) => {
            let mut stream = writer.stream("devshm-checkpoint.tar")?;
            let packed = tree::pack(&dir, &mut stream)
                .map_err(|error| files(container, "the files of /dev/shm", error))?;
            stream.finish()?;
            warnings.extend(packed.notes.iter().map(ToString::to_string));
        }
        _ => {}
    }
    Ok(())
}

/// The host's directory behind the container's `/dev/shm`, if it is a bind mount. CRIU takes
/// the content of a tmpfs of the container's own, and of no mount from outside.
#[must_use]
pub fn shared_memory(spec: &Value) -> Option<PathBuf> {
    bind_mount_list(spec)
        .find(|m| m.destination == DEV_SHM)
        .map(|m| m.source.into())
}

/// `bind.mounts` as CRI-O writes it (internal/lib/checkpoint.go): what a restore elsewhere
/// must provide.
#[must_use]
pub fn bind_mounts(spec: &Value) -> Vec<u8> {
    let mounts: Vec<_> = bind_mount_list(spec).collect();
    serde_json::to_vec(&mounts).expect("strings become JSON")
}

/// Reads a small file whole.
pub fn read(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    fs::read(path).map_err(|source| CheckpointError::Host {
        action: "read",
        path: path.into(),
        source,
    })
}

#[derive(Debug, Serialize)]
struct BindMount<'a> {
    source: &'a str,
    destination: &'a str,
    file_type: &'static str,
    permissions: u32,
}

fn bind_mount_list(spec: &Value) -> impl Iterator<Item = BindMount<'_>> {
    let mounts = spec.get("mounts").and_then(Value::as_array);
    mounts.into_iter().flatten().filter_map(|mount| {
        let text = |key| mount.get(key).and_then(Value::as_str);
        let options = mount.get("options").and_then(Value::as_array);
        let is_bind = text("type") == Some("bind")
            || options.is_some_and(|o| o.iter().any(|o| o == "bind" || o == "rbind"));
        if !is_bind {
            return None;
        }
        let source = text("source")?;
        let file = fs::metadata(source).ok();
        Some(BindMount {
            source,
            destination: text("destination")?,
            file_type: match &file {
                Some(file) if !file.is_dir() => "file",
                _ => "directory",
            },
            permissions: file.map_or(0o755, |file| permissions(&file)),
        })
    })
}

fn permissions(file: &fs::Metadata) -> u32 {
    std::os::unix::fs::PermissionsExt::mode(&file.permissions()) & 0o7777
}

fn is_read_only(spec: &Value) -> bool {
    spec.get("root")
        .and_then(|root| root.get("readonly"))
        .and_then(Value::as_bool)
        == Some(true)
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none())
}

fn files(
    container: &Container,
    what: &'static str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> CheckpointError {
    CheckpointError::Files {
        id: container.id.clone(),
        what,
        source: source.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shared_memory_is_a_bind_mount_or_none_of_ours() {
        let bind = json!({"mounts": [
            {"destination": "/dev/shm", "type": "bind", "source": "/run/pod/shm", "options": ["rbind"]},
        ]});
        assert_eq!(shared_memory(&bind), Some("/run/pod/shm".into()));
        let own = json!({"mounts": [
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"},
        ]});
        assert_eq!(shared_memory(&own), None);
        assert_eq!(shared_memory(&json!({})), None);
    }

    #[test]
    fn bind_mounts_say_what_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hosts");
        fs::write(&file, "").unwrap();
        let spec = json!({"mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/etc/hosts", "type": "bind", "source": file},
            {"destination": "/data", "source": dir.path(), "options": ["rbind", "rw"]},
        ]});
        let mounts: Value = serde_json::from_slice(&bind_mounts(&spec)).unwrap();
        assert_eq!(mounts[0]["file_type"], "file");
        assert_eq!(mounts[1]["file_type"], "directory");
        assert_eq!(mounts[1]["destination"], "/data");
        assert_eq!(mounts.as_array().unwrap().len(), 2);
    }
}
