//! The cgroup of a container, on either version: pids, signals, metrics, memory that ran out.
//!
//! v1 has a directory per controller, v2 one for all. Which one a machine has is told by the
//! file `cgroup.controllers` at the root. In the hybrid set-up the controllers are v1's.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use protobuf::well_known_types::any::Any;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::sys;

pub mod oom;
mod read;
pub mod v1;
pub mod v2;

/// Where cgroups are mounted.
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Rounds in which what survives a kill is killed again. Much memory takes a while to be freed.
const KILL_ROUNDS: u32 = 500;
/// Pause between them.
const KILL_PAUSE: std::time::Duration = std::time::Duration::from_millis(10);
/// How many processes are held at a time.
const SIGNAL_BATCH: usize = 128;

/// The directories of a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cgroup {
    /// By controller name.
    V1(BTreeMap<String, PathBuf>),
    /// The one directory.
    V2(PathBuf),
}

/// Whether this machine has the unified hierarchy alone.
#[must_use]
pub fn is_unified() -> bool {
    Path::new(CGROUP_ROOT).join("cgroup.controllers").exists()
}

impl Cgroup {
    /// The cgroup that runc made, from `paths` of its state, or else the one `pid` is in.
    pub fn of(paths: &[(String, PathBuf)], pid: u32) -> io::Result<Self> {
        let unified = is_unified();
        if !paths.is_empty() {
            return Ok(Self::from_paths(paths, unified));
        }
        let memberships = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let found = read::directories(&memberships, &mounts);
        if found.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "no cgroup is mounted",
            ));
        }
        Ok(Self::from_paths(&found, unified))
    }

    fn from_paths(paths: &[(String, PathBuf)], unified: bool) -> Self {
        let whole = paths.iter().find(|(controller, _)| controller.is_empty());
        match whole.filter(|_| unified) {
            Some((_, path)) => Self::V2(path.clone()),
            None => Self::V1(
                paths
                    .iter()
                    .filter(|(name, _)| !name.is_empty())
                    .cloned()
                    .collect(),
            ),
        }
    }

    /// The directory that lists the processes.
    fn processes(&self) -> Option<&Path> {
        match self {
            Self::V2(path) => Some(path),
            Self::V1(paths) => ["freezer", "pids", "memory", "devices", "name=systemd"]
                .iter()
                .find_map(|controller| paths.get(*controller))
                .or_else(|| paths.values().next())
                .map(PathBuf::as_path),
        }
    }

    /// All processes in it and in what was made below it. Those that come and go meanwhile
    /// may be missing.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        if let Some(directory) = self.processes() {
            collect_pids(directory, &mut pids);
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Sends a signal to all processes but `except`.
    ///
    /// A pid that is free again may be anybody's. So each process is held by a pidfd first,
    /// and gets the signal if its pid is still a member's after that.
    pub fn signal(&self, number: i32, except: &[u32]) -> io::Result<()> {
        self.check_foreign()?;
        let pids: Vec<u32> = self
            .pids()
            .into_iter()
            .filter(|pid| !except.contains(pid))
            .collect();
        for pids in pids.chunks(SIGNAL_BATCH) {
            let held: Vec<_> = pids.iter().map(|pid| (*pid, hold(*pid))).collect();
            let members = self.pids();
            for (pid, process) in held {
                let Some(process) = process.filter(|_| members.contains(&pid)) else {
                    continue;
                };
                let sent = match Signal::from_named_raw(number) {
                    Some(signal) => pidfd_send_signal(&process, signal).map_err(io::Error::from),
                    // Real-time signals, and 0.
                    None => sys::kill(pid, number),
                };
                if let Err(error) = sent
                    && error.raw_os_error() != Some(nix::libc::ESRCH)
                {
                    tracing::warn!(pid, number, %error, "cannot send a signal");
                }
            }
        }
        Ok(())
    }

    /// A group that this process is in too is no container's, whatever runc or a container
    /// without a cgroup of its own made of it.
    fn check_foreign(&self) -> io::Result<()> {
        if self.pids().contains(&std::process::id()) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the cgroup holds the shim itself, so its processes are not all the container's",
            ));
        }
        Ok(())
    }

    /// Kills all processes, frozen or not, and those they start meanwhile. Blocks for a short
    /// time.
    pub fn kill(&self) -> io::Result<()> {
        self.check_foreign()?;
        if let Self::V2(path) = self {
            match fs::write(path.join("cgroup.kill"), "1") {
                Err(error) if error.kind() == io::ErrorKind::NotFound && !path.exists() => {
                    return Ok(());
                }
                // Kernels before 5.14 have no such file.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => return other,
            }
        }
        for _ in 0..KILL_ROUNDS {
            if self.pids().is_empty() {
                return Ok(());
            }
            self.signal(Signal::KILL.as_raw(), &[])?;
            self.thaw_for_kill()?;
            std::thread::sleep(KILL_PAUSE);
        }
        let left = self.pids();
        if left.is_empty() {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("processes {left:?} do not end"),
        ))
    }

    /// Lets frozen processes see that they were killed. v2 does that by itself.
    pub fn thaw_for_kill(&self) -> io::Result<()> {
        let Self::V1(paths) = self else { return Ok(()) };
        let Some(freezer) = paths.get("freezer") else {
            return Ok(());
        };
        match fs::write(freezer.join("freezer.state"), "THAWED") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Metrics, typed as containerd expects them on this kind of machine.
    pub fn metrics(&self) -> io::Result<Any> {
        use protobuf::Message;
        let (type_url, value) = match self {
            Self::V1(paths) => (
                "io.containerd.cgroups.v1.Metrics",
                v1::metrics(paths).write_to_bytes(),
            ),
            Self::V2(path) => (
                "io.containerd.cgroups.v2.Metrics",
                v2::metrics(path)?.write_to_bytes(),
            ),
        };
        let value = value.map_err(io::Error::other)?;
        Ok(Any {
            type_url: type_url.into(),
            value,
            ..Any::default()
        })
    }
}

fn hold(pid: u32) -> Option<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// All processes in a cgroup's directory and below it.
#[must_use]
pub fn pids_below(directory: &Path) -> Vec<u32> {
    let mut pids = Vec::new();
    collect_pids(directory, &mut pids);
    pids
}

fn collect_pids(directory: &Path, pids: &mut Vec<u32>) {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    pids.extend(
        text.lines()
            .filter_map(|line| line.parse::<u32>().ok())
            .filter(|pid| *pid != 0),
    );
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_pids(&entry.path(), pids);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pids_are_collected_from_the_whole_tree() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("cgroup.procs"), "7\n3\n").unwrap();
        fs::write(dir.path().join("a/b/cgroup.procs"), "0\n5\n7\n").unwrap();
        assert_eq!(Cgroup::V2(dir.path().into()).pids(), [3, 5, 7]);
        assert!(Cgroup::V2(dir.path().join("gone")).pids().is_empty());
    }

    #[test]
    fn the_unified_path_counts_on_a_unified_machine_only() {
        let paths = [
            (String::new(), "/u".into()),
            ("memory".to_owned(), "/m".into()),
        ];
        assert_eq!(Cgroup::from_paths(&paths, true), Cgroup::V2("/u".into()));
        let v1 = Cgroup::from_paths(&paths, false);
        assert_eq!(v1, Cgroup::V1([("memory".to_owned(), "/m".into())].into()));
        assert_eq!(v1.processes(), Some(Path::new("/m")));
    }

    #[test]
    fn a_group_that_holds_the_shim_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.kill"), "").unwrap();
        fs::write(
            dir.path().join("cgroup.procs"),
            std::process::id().to_string(),
        )
        .unwrap();
        let group = Cgroup::V2(dir.path().into());
        assert!(group.kill().is_err() && group.signal(0, &[]).is_err());
        assert_eq!(
            fs::read_to_string(dir.path().join("cgroup.kill")).unwrap(),
            ""
        );
    }

    #[test]
    fn a_killed_v2_group_is_told_by_one_file() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.kill"), "").unwrap();
        let group = Cgroup::V2(dir.path().into());
        group.kill().unwrap();
        assert_eq!(
            fs::read_to_string(dir.path().join("cgroup.kill")).unwrap(),
            "1"
        );
        Cgroup::V2(dir.path().join("gone")).kill().unwrap();
    }
}
