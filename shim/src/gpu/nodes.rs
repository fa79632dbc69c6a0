//! Device files of GPUs in a restored container.
//!
//! A container's `/dev` is part of the dump, so it comes back with the GPUs that it had. The pod
//! may have been given others, and the number of `nvidia-uvm` differs from node to node: what the
//! new spec says is made so, and nothing else.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    path::{Path, PathBuf},
};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, makedev, mknodat, openat2, statat, unlinkat,
};
use serde_json::Value;

use super::GpuError;

/// Prefix of the driver's device files.
const PREFIX: &str = "/dev/nvidia";

/// A device that a spec gives to its container.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    path: PathBuf,
    major: u32,
    minor: u32,
    mode: u32,
}

/// N of each `/dev/nvidiaN` in a spec.
#[must_use]
pub fn minors(spec: &Value) -> BTreeSet<u32> {
    nodes(spec)
        .iter()
        .filter_map(|node| node.path.to_str()?.strip_prefix(PREFIX)?.parse().ok())
        .collect()
}

/// Gives the container of `init` the GPU devices of its spec.
pub fn make(init: u32, spec: &Value) -> Result<(), GpuError> {
    let wanted = nodes(spec);
    if wanted.is_empty() {
        return Ok(());
    }
    let root = format!("/proc/{init}/root");
    let failed = |path: &Path, error: io::Error| {
        GpuError::Host(format!(
            "cannot make {} in the restored container: {error}",
            path.display()
        ))
    };
    let root = File::open(&root).map_err(|error| failed(Path::new(&root), error))?;
    for node in wanted {
        ensure(&root, &node).map_err(|error| failed(&node.path, error))?;
    }
    Ok(())
}

fn ensure(root: &File, node: &Node) -> io::Result<()> {
    let missing = || io::Error::from(io::ErrorKind::InvalidInput);
    let parent = node.path.parent().ok_or_else(missing)?;
    let name = node.path.file_name().ok_or_else(missing)?;
    // The container may have put links anywhere; they stay in its root.
    let parent = openat2(
        root,
        parent.strip_prefix("/").unwrap_or(parent),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT,
    )?;
    let device = makedev(node.major, node.minor);
    match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if stat.st_rdev == device => return Ok(()),
        Ok(_) => unlinkat(&parent, name, AtFlags::empty())?,
        Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let mode = Mode::from_raw_mode(node.mode);
    mknodat(&parent, name, FileType::CharacterDevice, mode, device)?;
    // The umask took its part.
    Ok(rustix::fs::chmodat(&parent, name, mode, AtFlags::empty())?)
}

fn nodes(spec: &Value) -> Vec<Node> {
    let devices = spec.pointer("/linux/devices").and_then(Value::as_array);
    devices
        .into_iter()
        .flatten()
        .filter_map(|device| {
            let number = |name: &str| device.get(name)?.as_u64()?.try_into().ok();
            let path = device.get("path")?.as_str()?;
            path.starts_with(PREFIX).then_some(())?;
            Some(Node {
                path: path.into(),
                major: number("major")?,
                minor: number("minor")?,
                mode: number("fileMode").unwrap_or(0o666) & 0o777,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn gpus_are_told_from_other_devices() {
        let spec = json!({"linux": {"devices": [
            {"path": "/dev/nvidia1", "major": 195, "minor": 1, "fileMode": 438},
            {"path": "/dev/nvidiactl", "major": 195, "minor": 255},
            {"path": "/dev/fuse", "major": 10, "minor": 229},
        ]}});
        assert_eq!(minors(&spec), BTreeSet::from([1]));
        assert_eq!(nodes(&spec).len(), 2);
        assert_eq!(nodes(&spec)[1].mode, 0o666);
        assert!(nodes(&json!({})).is_empty());
    }

    #[test]
    fn links_of_the_container_stay_in_its_root() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        let root = dir.path().join("root");
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::create_dir_all(&root).unwrap();
        std::os::unix::fs::symlink(&outside, root.join("dev")).unwrap();
        let node = Node {
            path: "/dev/nvidia0".into(),
            major: 195,
            minor: 0,
            mode: 0o666,
        };
        assert!(ensure(&File::open(&root).unwrap(), &node).is_err());
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }
}
