//! What runc makes for a restore, and forgets when it is killed: `runc delete` knows a container
//! from the end of its restore on (libcontainer/criu_linux.go of 1.1 and 1.3).
//!
//! ```text
//! the container's cgroups
//! <root>/<id>/criu-root      its root file system once more, mounted
//! <root>/<id>/state.json     last
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use kybernate_cuda::process::Process;
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
};

use super::strays::kill;
use crate::{
    cgroup::{self, CGROUP_ROOT, pids_below},
    spec::SpecFacts,
};

/// How long killed processes may take to be gone.
const GONE: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(10);
const STATE: &str = "state.json";
const ROOT: &str = "criu-root";

/// Where runc will make the cgroups of a container. What is there already is not the restore's,
/// and systemd removes its own.
#[must_use]
pub fn by_restore(spec: &SpecFacts) -> Vec<PathBuf> {
    let Some(path) = spec.cgroups_path.as_deref() else {
        return Vec::new();
    };
    if !path.starts_with('/') || spec.has_systemd_cgroup() {
        return Vec::new();
    }
    below(Path::new(CGROUP_ROOT), cgroup::is_unified(), path)
}

fn below(root: &Path, unified: bool, path: &str) -> Vec<PathBuf> {
    let path = path.trim_start_matches('/');
    let hierarchies = if unified {
        vec![root.to_owned()]
    } else {
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let places = hierarchies.into_iter().map(|place| place.join(path));
    let mut places: Vec<_> = places.filter(|place| !place.exists()).collect();
    places.sort();
    places
}

/// Ends what is in the cgroups, and removes them. Blocks.
pub fn remove(cgroups: &[PathBuf]) -> Result<(), String> {
    let until = Instant::now() + GONE;
    for cgroup in cgroups {
        loop {
            let pids = pids_below(cgroup);
            if pids.contains(&std::process::id()) {
                return Err(format!("{} is this program's own", cgroup.display()));
            }
            pids.into_iter().filter_map(Process::now).for_each(kill);
            match remove_tree(cgroup) {
                Ok(()) => break,
                Err(error) if Instant::now() >= until => {
                    return Err(format!("cannot remove {}: {error}", cgroup.display()));
                }
                Err(_) => thread::sleep(POLL),
            }
        }
    }
    Ok(())
}

/// Removes runc's directory of a container that it does not know. Blocks.
pub fn forget(state: &Path) -> Result<(), String> {
    if !state.exists() {
        return Ok(());
    }
    let failed = |error: &dyn std::fmt::Display| {
        format!(
            "cannot remove what runc left in {}: {error}",
            state.display()
        )
    };
    loop {
        match umount2(&state.join(ROOT), MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT | Errno::EPERM) => break,
            Err(errno) => return Err(failed(&errno)),
        }
    }
    // From here on `runc delete` does it, which fails while something is mounted there.
    if state.join(STATE).exists() {
        return Ok(());
    }
    // Never into a directory: what is in one may be the container's own root.
    let remove = || {
        for entry in fs::read_dir(state)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                fs::remove_dir(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        fs::remove_dir(state)
    };
    remove().map_err(|error: io::Error| failed(&error))
}

/// Removes a cgroup and those below it; the files in them are no files.
fn remove_tree(cgroup: &Path) -> io::Result<()> {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(cgroup) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runc_knows_is_runcs_and_nothing_of_a_root_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a");
        fs::create_dir_all(state.join(ROOT)).unwrap();
        fs::write(state.join(STATE), "{}").unwrap();
        forget(&state).unwrap();
        assert!(state.join(STATE).exists());
        fs::rename(state.join(STATE), state.join("notes")).unwrap();
        fs::write(state.join(ROOT).join("file"), "").unwrap();
        assert!(forget(&state).unwrap_err().contains("runc left"));
        assert!(state.join(ROOT).join("file").exists());
        fs::remove_file(state.join(ROOT).join("file")).unwrap();
        forget(&state).unwrap();
        assert!(!state.exists());
        forget(&state).unwrap();
    }

    #[test]
    fn what_is_there_before_is_not_the_restores() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("memory/pod/a")).unwrap();
        fs::create_dir_all(dir.path().join("freezer/pod")).unwrap();
        let made = below(dir.path(), false, "/pod/a");
        assert_eq!(made, [dir.path().join("freezer/pod/a")]);
        fs::create_dir_all(made[0].join("inner")).unwrap();
        remove(&made).unwrap();
        assert!(!made[0].exists());
        remove(&made).unwrap();
        assert!(dir.path().join("memory/pod/a").exists());
        assert_eq!(
            below(dir.path(), true, "/pod/a"),
            [dir.path().join("pod/a")]
        );
    }
}
