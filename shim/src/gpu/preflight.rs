//! What can't work, found before a process is touched.

use std::{fs, path::Path};

use kybernate_cuda::protocol::{Device, Facts, Op};

use super::{GpuError, helper::Helper};
use crate::cgroup::Cgroup;

/// The first driver branch with the checkpoint calls.
const DRIVER: u32 = 570;
/// Host memory beside the copy of device memory.
const SLACK: u64 = 256 << 20;

/// Refuses what the driver can't save. `pids` are the processes with CUDA state.
pub fn check(facts: &Facts, pids: &[u32]) -> Result<(), GpuError> {
    if let Some(branch) = branch(&facts.driver)
        && branch < DRIVER
    {
        return Err(GpuError::Unsupported {
            what: format!(
                "driver {} can't save the state of CUDA processes",
                facts.driver
            ),
            remedy: "install driver 570 or newer",
        });
    }
    let used = |device: &&Device| device.users.iter().any(|user| pids.contains(&user.pid));
    if let Some(device) = facts.devices.iter().filter(used).find(|device| device.mig) {
        return Err(GpuError::Unsupported {
            what: format!(
                "GPU {} ({}) is partitioned (MIG), of which the driver can't save the state",
                device.minor, device.uuid
            ),
            remedy: "run the workload on a whole GPU (nvidia-smi -mig 0)",
        });
    }
    let shared = facts
        .devices
        .iter()
        .flat_map(|device| &device.users)
        .find(|user| user.mps && pids.contains(&user.pid));
    if let Some(user) = shared {
        return Err(GpuError::Unsupported {
            what: format!(
                "process {} ({}) uses the GPU through the multi-process service (MPS), of which \
                 the driver can't save the state",
                user.pid,
                super::evidence::name(user.pid)
            ),
            remedy: "run the workload without MPS",
        });
    }
    Ok(())
}

/// The branch of a driver: 580 of `580.159.04`.
#[must_use]
pub fn branch(driver: &str) -> Option<u32> {
    driver.split('.').next()?.parse().ok()
}

/// Bytes of device memory of some processes.
#[must_use]
pub fn device_memory(facts: &Facts, pids: &[u32]) -> u64 {
    facts
        .devices
        .iter()
        .flat_map(|device| &device.users)
        .filter(|user| pids.contains(&user.pid))
        .map(|user| user.memory)
        .sum()
}

/// Makes sure that `needed` bytes more fit into host memory and below the limits of the cgroup,
/// which are raised for the operation where that is allowed.
pub async fn make_room(
    helper: &Helper,
    cgroup: &Cgroup,
    needed: u64,
    may_raise: bool,
) -> Result<(), GpuError> {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    if let Some(free) = available(&meminfo)
        && free < needed + SLACK
    {
        return Err(GpuError::Memory {
            needed,
            place: "this node".into(),
            free,
            remedy: "free host memory, or checkpoint on a node with more",
        });
    }
    for limit in limits(cgroup) {
        let free = limit.bytes.saturating_sub(limit.used);
        if free >= needed + SLACK {
            continue;
        }
        if !may_raise {
            return Err(GpuError::Memory {
                needed,
                place: format!("the container's limit {}", limit.path),
                free,
                remedy: "raise the pod's memory limit, or allow gpu.raise_memory_limit",
            });
        }
        let value = (limit.bytes + needed + SLACK).to_string();
        for path in [swap_limit(&limit), Some(limit.path)].into_iter().flatten() {
            let value = value.clone();
            helper
                .set("raise the memory limit", Op::Hold { path, value })
                .await?;
        }
    }
    Ok(())
}

/// On cgroup v1 the limit of memory and swap together, which the limit of memory must not exceed;
/// containerd makes them equal.
fn swap_limit(limit: &Limit) -> Option<String> {
    let path = limit.path.strip_suffix("memory.limit_in_bytes")?;
    let path = format!("{path}memory.memsw.limit_in_bytes");
    let bytes = number(Path::new(&path))?;
    (bytes < i64::MAX as u64 / 2).then_some(path)
}

/// A limit on memory.
#[derive(Debug, PartialEq, Eq)]
struct Limit {
    path: String,
    bytes: u64,
    used: u64,
}

/// The limits that a cgroup is under, outermost first: an inner one can't be used beyond it.
fn limits(cgroup: &Cgroup) -> Vec<Limit> {
    let (start, limit, used) = match cgroup {
        Cgroup::V2(path) => (Some(path.as_path()), "memory.max", "memory.current"),
        Cgroup::V1(paths) => (
            paths.get("memory").map(|path| path.as_path()),
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
        ),
    };
    let mut found: Vec<_> = start
        .into_iter()
        .flat_map(Path::ancestors)
        .filter_map(|directory| {
            let path = directory.join(limit);
            Some(Limit {
                bytes: number(&path)?,
                used: number(&directory.join(used)).unwrap_or(0),
                path: path.to_string_lossy().into_owned(),
            })
        })
        // cgroup v1 has no word for "none": the largest number of whole pages.
        .filter(|limit| limit.bytes < i64::MAX as u64 / 2)
        .collect();
    found.reverse();
    found
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kybernate_cuda::protocol::User;

    fn facts(driver: &str, mig: bool, mps: bool) -> Facts {
        Facts {
            driver: driver.into(),
            devices: vec![Device {
                uuid: "GPU-1".into(),
                mig,
                users: vec![User {
                    pid: 7,
                    memory: 100,
                    mps,
                }],
                ..Device::default()
            }],
            ..Facts::default()
        }
    }

    #[test]
    fn what_the_driver_cannot_save_is_refused_by_name() {
        for (facts, word) in [
            (facts("565.57.01", false, false), "570"),
            (facts("580.1", true, false), "MIG"),
            (facts("580.1", false, true), "MPS"),
        ] {
            let error = check(&facts, &[7]).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        check(&facts("580.1", false, false), &[7]).unwrap();
        // What others do on the node is no matter.
        check(&facts("580.1", true, true), &[8]).unwrap();
    }

    #[test]
    fn memory_is_that_of_the_processes_alone() {
        assert_eq!(device_memory(&facts("", false, false), &[7]), 100);
        assert_eq!(device_memory(&facts("", false, false), &[8]), 0);
    }

    #[test]
    fn the_limit_of_memory_and_swap_is_raised_along() {
        let dir = tempfile::tempdir().unwrap();
        let limit = |name: &str| Limit {
            path: dir.path().join(name).to_string_lossy().into_owned(),
            bytes: 1,
            used: 0,
        };
        let v1 = limit("memory.limit_in_bytes");
        assert_eq!(swap_limit(&v1), None);
        let both = dir.path().join("memory.memsw.limit_in_bytes");
        fs::write(&both, "4096\n").unwrap();
        assert_eq!(swap_limit(&v1), Some(both.to_string_lossy().into_owned()));
        assert_eq!(swap_limit(&limit("memory.max")), None);
    }

    #[test]
    fn limits_come_from_the_outside_in() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("pod/container");
        fs::create_dir_all(&inner).unwrap();
        for (path, limit) in [
            ("pod", "max\n"),
            ("pod/container", "4096\n"),
            ("", "8192\n"),
        ] {
            fs::write(dir.path().join(path).join("memory.max"), limit).unwrap();
            fs::write(dir.path().join(path).join("memory.current"), "1024\n").unwrap();
        }
        let found = limits(&Cgroup::V2(inner));
        let bytes: Vec<_> = found
            .iter()
            .map(|limit| (limit.bytes, limit.used))
            .collect();
        assert_eq!(bytes, [(8192, 1024), (4096, 1024)]);
    }
}
