//! What the manifest says about the container and its host, read from `/proc` and the spec.
//!
//! Parsing is apart from reading. A fact that can't be read is left empty: it informs a
//! reader and decides nothing.

use std::{collections::BTreeSet, fs};

use kybernate_config::names;
use kybernate_oci::manifest::{Container, Host, Mount, Pod, Process};
use serde_json::Value;

use super::tree;
use crate::{injected::Injected, mount::table};

/// Identity of a container from its spec's annotations.
#[must_use]
pub fn container(id: &str, namespace: &str, state: &str, spec: &Value) -> Container {
    let note = |name: &str| {
        spec.get("annotations")
            .and_then(|a| a.get(name))
            .and_then(Value::as_str)
            .map(String::from)
    };
    let pod = note(names::CRI_SANDBOX_ID).map(|sandbox| Pod {
        name: note(names::CRI_SANDBOX_NAME).unwrap_or_default(),
        namespace: note(names::CRI_SANDBOX_NAMESPACE).unwrap_or_default(),
        uid: note(names::CRI_SANDBOX_UID).unwrap_or_default(),
        sandbox,
    });
    Container {
        id: id.into(),
        name: note(names::CRI_CONTAINER_NAME).unwrap_or_else(|| id.into()),
        namespace: namespace.into(),
        pod,
        image: note(names::CRI_IMAGE_NAME),
        state: state.into(),
    }
}

/// The machine. `runc` and `criu` are version texts that the caller has.
#[must_use]
pub fn host(runc: &str, criu: &str) -> Host {
    let uname = nix::sys::utsname::uname();
    let text = |part: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
        uname
            .as_ref()
            .map(|u| part(u).to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    let v2 = fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap_or(false);
    Host {
        hostname: text(|u| u.nodename()),
        arch: std::env::consts::ARCH.into(),
        kernel: text(|u| u.release()),
        cpu_features: cpu_features(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        cgroup: if v2 { "v2" } else { "v1" }.into(),
        runc: runc.into(),
        criu: criu.into(),
    }
}

/// The feature flags of the first CPU in the text of `/proc/cpuinfo`, sorted.
#[must_use]
pub fn cpu_features(cpuinfo: &str) -> Vec<String> {
    cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("flags")?.split_once(':'))
        .map(|(_, flags)| flags.split_ascii_whitespace().map(String::from).collect())
        .map(|flags: BTreeSet<String>| flags.into_iter().collect())
        .unwrap_or_default()
}

/// The process tree below and including `init`, parents before children.
#[must_use]
pub fn processes(init: u32) -> Vec<Process> {
    let mut found = Vec::new();
    let mut pending = vec![(init, 0)];
    while let Some((host_pid, parent)) = pending.pop() {
        let Ok(status) = fs::read_to_string(format!("/proc/{host_pid}/status")) else {
            continue;
        };
        let process = process(&status, parent);
        let mut children = tree::children(host_pid);
        children.reverse();
        pending.extend(children.into_iter().map(|child| (child, process.pid)));
        found.push(process);
    }
    found
}

/// Bytes of memory that a dump of these processes may hold, pages that they share counted once
/// for each.
#[must_use]
pub fn memory(pids: &[u32]) -> u64 {
    pids.iter()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok())
        .map(|status| own_memory(&status))
        .sum()
}

/// Bytes that are not a file's, from the text of a `/proc/<pid>/status`.
fn own_memory(status: &str) -> u64 {
    bytes(status, "RssAnon") + bytes(status, "RssShmem")
}

/// A field of the text of a `/proc/<pid>/status`.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

/// A field in KiB, as bytes; 0 where there is none.
fn bytes(status: &str, name: &str) -> u64 {
    field(status, name)
        .and_then(|v| v.split_ascii_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

/// One process from the text of its `/proc/<pid>/status`.
fn process(status: &str, parent: u32) -> Process {
    let number = |name: &str| {
        field(status, name)
            .and_then(|v| v.split_ascii_whitespace().last()?.parse().ok())
            .unwrap_or(0)
    };
    Process {
        pid: number("NSpid"),
        parent,
        name: field(status, "Name").unwrap_or_default().into(),
        threads: number("Threads"),
        resident_bytes: bytes(status, "VmRSS"),
    }
}

/// The mounts that a container's first process sees. `injected` are those that no spec names.
#[must_use]
pub fn mounts(init: u32, injected: &[Injected]) -> Vec<Mount> {
    let table = fs::read_to_string(format!("/proc/{init}/mountinfo")).unwrap_or_default();
    list_mounts(&table, injected)
}

pub(super) fn list_mounts(mountinfo: &str, injected: &[Injected]) -> Vec<Mount> {
    let is_injected = |point| injected.iter().any(|mount| mount.destination() == point);
    table::entries(mountinfo)
        .map(|entry| Mount {
            destination: entry.point.into(),
            kind: entry.kind.into(),
            // For a bind mount the path inside the file system says more than the device.
            source: match entry.root {
                "/" => entry.source.into(),
                inside => inside.into(),
            },
            read_only: entry.is_read_only(),
            injected: is_injected(entry.point),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_cri_container_is_named_by_its_pod() {
        let spec = json!({"annotations": {
            names::CRI_SANDBOX_ID: "s", names::CRI_SANDBOX_NAME: "web",
            names::CRI_SANDBOX_NAMESPACE: "prod", names::CRI_CONTAINER_NAME: "app",
        }});
        let found = container("id", "k8s.io", "running", &spec);
        assert_eq!(
            (found.name.as_str(), found.pod.unwrap().name.as_str()),
            ("app", "web")
        );
        let plain = container("id", "default", "running", &json!({}));
        assert_eq!((plain.name.as_str(), plain.pod), ("id", None));
    }

    #[test]
    fn a_process_has_its_innermost_pid() {
        let status = "Name:\tredis server\nNSpid:\t4711\t22\t1\nVmRSS:\t   20 kB\nThreads:\t5\n";
        assert_eq!(
            process(status, 0),
            Process {
                pid: 1,
                parent: 0,
                name: "redis server".into(),
                threads: 5,
                resident_bytes: 20480
            }
        );
    }

    #[test]
    fn what_files_hold_is_not_dumped() {
        let status = "VmRSS:\t 70 kB\nRssAnon:\t 20 kB\nRssFile:\t 40 kB\nRssShmem:\t 10 kB\n";
        assert_eq!(own_memory(status), 30 << 10);
        assert!(memory(&[std::process::id()]) > 0);
        assert_eq!(memory(&[u32::MAX]), 0);
    }

    #[test]
    fn this_process_is_in_its_own_tree() {
        let tree = processes(std::process::id());
        assert_eq!(tree[0].parent, 0);
        assert!(tree[0].resident_bytes > 0 && tree[0].threads > 0);
    }

    #[test]
    fn mounts_name_the_bound_path() {
        let text = "\
1 0 0:40 / / rw,relatime - overlay overlay rw,lowerdir=/a
2 1 8:1 /var/lib/kubelet/hosts /etc/hosts ro,relatime shared:1 - ext4 /dev/vda rw
";
        let mounts = list_mounts(text, &[]);
        assert_eq!(mounts[0].source, "overlay");
        assert_eq!(mounts[1].source, "/var/lib/kubelet/hosts");
        assert!(mounts[1].read_only && !mounts[0].read_only);
    }

    #[test]
    fn cpu_features_come_sorted() {
        assert_eq!(
            cpu_features("model : x\nflags\t\t: sse avx aes\n"),
            ["aes", "avx", "sse"]
        );
    }
}
