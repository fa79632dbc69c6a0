//! What a lab consists of, to tell whether something is left or lost.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc, time::Duration};

use anyhow::{Result, ensure};

use crate::{Lab, eventually};

/// Directories whose content is part of a node's state, and how deep it is looked at.
const PLACES: [(&str, u32); 7] = [
    ("/run/kybernate", 9),
    ("/var/lib/kybernate", 9),
    ("/tmp", 2),
    ("/run/containerd/runc/k8s.io", 1),
    ("/run/containerd/io.containerd.runtime.v2.task/k8s.io", 1),
    (
        "/var/lib/containerd/io.containerd.grpc.v1.cri/containers",
        2,
    ),
    ("/run/containerd/fifo", 1),
];

/// Directories that come with the first checkpoint or restore and stay.
const FIXED: [&str; 8] = [
    "/run/kybernate",
    "/run/kybernate/dump",
    "/run/kybernate/journal",
    "/run/kybernate/levers",
    "/run/kybernate/levers/lock",
    "/run/kybernate/restore",
    "/var/lib/kybernate/archives",
    "/var/lib/kybernate/restore",
];

/// How long something may take to vanish.
const SETTLE: Duration = Duration::from_secs(10);

/// The state of a lab at one moment: mounts, cgroups, processes, files of ours, and which
/// cgroups are frozen and which processes traced.
#[derive(Debug)]
pub struct Node {
    lab: Arc<Lab>,
    facts: BTreeSet<String>,
}

impl Node {
    /// Looks at the lab. Nothing else should be going on in it.
    pub fn look(lab: &Arc<Lab>) -> Result<Self> {
        Ok(Self {
            lab: lab.clone(),
            facts: facts(lab)?,
        })
    }

    /// Fails unless the lab is, or soon will be, as it was; names what came and what went.
    pub async fn is_unchanged(&self) -> Result<()> {
        let same = eventually("the node as before", SETTLE, || async {
            Ok((facts(&self.lab)? == self.facts).then_some(()))
        })
        .await;
        if same.is_ok() {
            return Ok(());
        }
        let now = facts(&self.lab)?;
        let came: Vec<_> = now.difference(&self.facts).cloned().collect();
        let went: Vec<_> = self.facts.difference(&now).cloned().collect();
        ensure!(
            came.is_empty() && went.is_empty(),
            "the node has changed: new {came:?}; gone {went:?}"
        );
        Ok(())
    }
}

fn facts(lab: &Lab) -> Result<BTreeSet<String>> {
    let mut facts = BTreeSet::new();
    let mounts = fs::read_to_string(lab.path("/proc/1/mountinfo"))?;
    for line in mounts.lines() {
        let words: Vec<_> = line.split(' ').collect();
        let kind = words.iter().skip_while(|word| **word != "-").nth(1);
        facts.insert(format!("mount {} {}", words[4], kind.unwrap_or(&"")));
    }
    cgroups(&lab.path("/sys/fs/cgroup"), "", &mut facts);
    processes(lab, &mut facts)?;
    for (place, depth) in PLACES {
        files(&lab.path(place), place, depth, &mut facts);
    }
    Ok(facts)
}

fn cgroups(directory: &Path, name: &str, facts: &mut BTreeSet<String>) {
    let read = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_default();
    let state = read("freezer.state");
    if !state.is_empty() && state.trim() != "THAWED" {
        facts.insert(format!("frozen cgroup {name}"));
    }
    if read("cgroup.events").contains("frozen 1") {
        facts.insert(format!("frozen cgroup {name}"));
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let name = format!("{name}/{}", entry.file_name().to_string_lossy());
            cgroups(&entry.path(), &name, facts);
            facts.insert(format!("cgroup {name}"));
        }
    }
}

fn processes(lab: &Lab, facts: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(lab.path("/proc"))?.flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if pid.bytes().all(|byte| byte.is_ascii_digit())
            && let Ok(status) = fs::read_to_string(entry.path().join("status"))
        {
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap_or_default().trim().to_owned()
            };
            let name = field("Name:");
            facts.insert(format!("process {pid} {name}"));
            if field("TracerPid:") != "0" {
                facts.insert(format!("traced process {pid} {name}"));
            }
        }
    }
    Ok(())
}

fn files(directory: &Path, name: &str, depth: u32, facts: &mut BTreeSet<String>) {
    if depth == 0 {
        return;
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = format!("{name}/{}", entry.file_name().to_string_lossy());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(&entry.path(), &name, depth - 1, facts);
        }
        if !FIXED.contains(&name.as_str()) {
            facts.insert(format!("file {name}"));
        }
    }
}
