//! What a lab may leave behind, and labs that were killed before they could clean up.

use std::{fs, path::Path, path::PathBuf};

use anyhow::{Result, ensure};

use super::roots;

/// The lab's cgroup in every hierarchy of the host, whether it exists or not.
fn cgroups(name: &str) -> Result<Vec<PathBuf>> {
    Ok(fs::read_to_string("/proc/self/mountinfo")?
        .lines()
        .filter_map(|line| {
            let (mount, filesystem) = line.split_once(" - ")?;
            let kind = filesystem.split(' ').next()?;
            let target = mount.split(' ').nth(4)?;
            (kind == "cgroup" || kind == "cgroup2").then(|| Path::new(target).join(name))
        })
        .collect())
}

/// Fails when something of the lab of this name is left: a cgroup (and so a process), a mount, its directory.
pub fn left_behind(name: &str) -> Result<()> {
    let dir = roots::lab_dir()?.join("run").join(name);
    let mut left: Vec<String> = cgroups(name)?
        .iter()
        .filter(|path| path.exists())
        .map(|path| {
            let processes = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
            format!("cgroup {} (processes: {processes:?})", path.display())
        })
        .collect();
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    left.extend(
        mounts
            .lines()
            .filter(|line| line.contains(name))
            .map(|line| format!("mount {line}")),
    );
    if dir.exists() {
        left.push(format!("directory {}", dir.display()));
    }
    ensure!(
        left.is_empty(),
        "lab {name} left behind: {}",
        left.join("; ")
    );
    Ok(())
}

/// Removes labs whose supervisor was killed: their processes died with it, the rest did not.
pub fn sweep() -> Result<()> {
    let run = roots::lab_dir()?.join("run");
    let Ok(entries) = fs::read_dir(&run) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.split('-').nth(2).unwrap_or_default();
        if owner.is_empty() || Path::new("/proc").join(owner).exists() {
            continue;
        }
        let groups = cgroups(&name)?;
        if groups.iter().any(|group| has_processes(group)) {
            continue; // its supervisor is at work
        }
        for group in groups {
            remove_cgroup(&group);
        }
        let _ = fs::remove_dir_all(entry.path());
    }
    Ok(())
}

fn has_processes(group: &Path) -> bool {
    let own = fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|text| !text.is_empty());
    own || children(group).iter().any(|child| has_processes(child))
}

fn remove_cgroup(group: &Path) {
    for child in children(group) {
        remove_cgroup(&child);
    }
    let _ = fs::remove_dir(group);
}

fn children(group: &Path) -> Vec<PathBuf> {
    fs::read_dir(group)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
