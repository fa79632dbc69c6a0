//! Mounts that hooks put into a container beside those of its spec.
//!
//! NVIDIA's hooks bind driver libraries, firmware, sockets and device files into a container after
//! runc has made its own mounts. CRIU cannot dump a mount whose file system lies outside the
//! container, unless it is told by the mount point that somebody will provide it at restore. runc
//! tells it so for the mounts of the spec. The rest is found here:
//!
//! ```text
//! dump     /proc/<init>/mountinfo, less what the spec names ─> criu.conf: external mnt[POINT]:POINT
//! restore  rehearsal: the runtime creates the container from the pod's own spec, hooks and all,
//!          and it is deleted again; its mounts are kept
//!                                                   ─> criu.conf: external mnt[POINT]:their place
//! ```
//! So what is mounted in a restored container comes from the node and its hooks. An archive only
//! says at which points its processes expect something.

mod rehearsal;
mod tree;

use std::{collections::BTreeSet, fs, io};

use serde_json::Value;

pub use self::{
    rehearsal::{Rehearsal, RehearsalError, name as rehearsal_name},
    tree::{Attached, Tree},
};
use crate::mount::table;

/// Where something is mounted that the spec does not name, as the mount table writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injected(String);

impl Injected {
    /// The mount point.
    #[must_use]
    pub fn destination(&self) -> &str {
        &self.0
    }
}

/// Such mounts of a process in a container with this spec.
///
/// # Errors
/// Its mount table can't be read.
pub fn of(pid: u32, spec: &Value) -> io::Result<Vec<Injected>> {
    let inside = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    let outside = fs::read_to_string("/proc/thread-self/mountinfo")?;
    Ok(find(&inside, &outside, spec))
}

/// Finds them in the container's mount table. `outside` is that of the host.
///
/// A mount is from outside if only a part of its file system is mounted and no mount of the
/// container has all of it, or if the host has the file system mounted, too.
#[must_use]
pub fn find(inside: &str, outside: &str, spec: &Value) -> Vec<Injected> {
    let whole: BTreeSet<_> = table::entries(inside)
        .filter(|entry| entry.root == "/")
        .map(|entry| entry.device)
        .collect();
    let hosts: BTreeSet<_> = table::entries(outside).map(|entry| entry.device).collect();
    let known = Known::of(spec);
    table::entries(inside)
        .filter(|entry| match entry.root {
            "/" => hosts.contains(entry.device),
            _ => !whole.contains(entry.device),
        })
        .filter(|entry| !known.covers(entry.point))
        .map(|entry| Injected(entry.point.into()))
        .collect()
}

/// What runc looks after.
struct Known<'a> {
    points: BTreeSet<&'a str>,
    /// runc mounts hierarchies below them.
    cgroups: Vec<&'a str>,
}

impl<'a> Known<'a> {
    fn of(spec: &'a Value) -> Self {
        let list = |at: &str| {
            spec.pointer(at)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
        };
        let mounts = || {
            list("/mounts").filter_map(|mount| {
                let point = mount.get("destination")?.as_str()?;
                let kind = mount
                    .get("type")
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                Some((trimmed(point), kind))
            })
        };
        let paths = list("/linux/maskedPaths").chain(list("/linux/readonlyPaths"));
        Self {
            points: mounts()
                .map(|(point, _)| point)
                .chain(paths.filter_map(Value::as_str))
                .chain(["/", "/dev/console"])
                .collect(),
            cgroups: mounts()
                .filter(|(_, kind)| kind.starts_with("cgroup"))
                .map(|(point, _)| point)
                .collect(),
        }
    }

    fn covers(&self, point: &str) -> bool {
        let below = |parent: &str| {
            point
                .strip_prefix(parent)
                .is_some_and(|rest| rest.starts_with('/'))
        };
        self.points.contains(point) || self.cgroups.iter().any(|parent| below(parent))
    }
}

fn trimmed(point: &str) -> &str {
    match point.trim_end_matches('/') {
        "" => "/",
        trimmed => trimmed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const INSIDE: &str = "\
1 0 0:40 / / rw - overlay overlay rw
2 1 0:50 / /proc rw - proc proc rw
3 1 0:51 / /dev rw - tmpfs tmpfs rw
4 2 0:50 /sys /proc/sys ro - proc proc rw
5 2 0:51 /null /proc/kcore rw - tmpfs tmpfs rw
6 1 8:1 /pods/hosts /etc/hosts rw - ext4 /dev/vda rw
7 1 0:30 / /sys/fs/cgroup ro - tmpfs cgroup rw
8 7 0:31 /pods/a /sys/fs/cgroup/memory ro - cgroup cgroup rw
9 1 8:1 /usr/lib/libcuda.so.580 /usr/lib/libcuda.so.580 ro - ext4 /dev/vda rw
10 3 0:5 /nvidia0 /dev/nvidia0 rw - devtmpfs udev rw
11 1 0:25 /persistenced/socket /run/nvidia-persistenced/socket rw - tmpfs tmpfs rw
12 1 0:60 / /run/nvidia-ctk-hookA rw - tmpfs tmpfs rw,size=4k
13 2 0:60 /nvct-params /proc/driver/nvidia/params ro - tmpfs tmpfs rw
14 1 0:26 / /models ro - nfs server:/models rw
";
    const OUTSIDE: &str = "\
1 0 8:1 / / rw - ext4 /dev/vda rw
2 1 0:25 / /run rw - tmpfs tmpfs rw
3 1 0:26 / /srv/models rw - nfs server:/models rw
4 1 0:40 / /run/containerd/a/rootfs rw - overlay overlay rw
5 1 0:30 / /sys/fs/cgroup rw - tmpfs cgroup rw
";

    fn points(spec: &Value) -> Vec<String> {
        let found = find(INSIDE, OUTSIDE, spec);
        found
            .iter()
            .map(|mount| mount.destination().into())
            .collect()
    }

    #[test]
    fn what_hooks_mount_is_told_from_the_containers_own() {
        let spec = json!({
            "mounts": [
                {"destination": "/proc", "type": "proc"},
                {"destination": "/dev", "type": "tmpfs"},
                {"destination": "/etc/hosts/", "type": "bind"},
                {"destination": "/sys/fs/cgroup", "type": "cgroup"},
            ],
            "linux": {"maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"]},
        });
        let expected = [
            "/usr/lib/libcuda.so.580",
            "/dev/nvidia0",
            "/run/nvidia-persistenced/socket",
            "/models",
        ];
        assert_eq!(points(&spec), expected);
    }

    #[test]
    fn a_mount_of_the_spec_is_runcs() {
        let spec = json!({"mounts": [
            {"destination": "/models", "type": "bind"},
            {"destination": "/usr/lib/libcuda.so.580"},
        ]});
        let found = points(&spec);
        assert!(
            !found
                .iter()
                .any(|point| point == "/models" || point.contains("libcuda"))
        );
        assert!(found.iter().any(|point| point == "/etc/hosts"));
    }
}
