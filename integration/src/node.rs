//! What a lab consists of, to tell whether something is left or lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use kybernate_config::names;

use crate::{Lab, Pod, eventually};

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
/// How long nothing has changed in a lab at rest.
const REST: Duration = Duration::from_millis(500);

/// The state of a lab at one moment: mounts, cgroups, processes, files of ours, and which
/// cgroups are frozen and which processes traced.
#[derive(Debug)]
pub struct Node {
    lab: Arc<Lab>,
    facts: BTreeSet<String>,
    look: fn(&Lab) -> Result<BTreeSet<String>>,
}

impl Node {
    /// Looks at the lab. Nothing else should be going on in it.
    pub fn look(lab: &Arc<Lab>) -> Result<Self> {
        Ok(Self {
            lab: lab.clone(),
            facts: facts(lab)?,
            look: facts,
        })
    }

    /// The same once the lab has come to rest, but processes are told apart by their names and not
    /// by their pids: containerd may have been restarted meanwhile.
    pub async fn look_at_names(lab: &Arc<Lab>) -> Result<Self> {
        let facts = eventually("a lab at rest", SETTLE, || async {
            let before = names_only(lab)?;
            tokio::time::sleep(REST).await;
            Ok((names_only(lab)? == before).then_some(before))
        })
        .await?;
        Ok(Self {
            lab: lab.clone(),
            facts,
            look: names_only,
        })
    }

    /// Fails unless the lab is, or soon will be, as it was; names what came and what went.
    pub async fn is_unchanged(&self) -> Result<()> {
        let same = eventually("the node as before", SETTLE, || async {
            Ok(((self.look)(&self.lab)? == self.facts).then_some(()))
        })
        .await;
        if same.is_ok() {
            return Ok(());
        }
        let now = (self.look)(&self.lab)?;
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
    interfaces(lab, &mut facts)?;
    for (place, depth) in PLACES {
        files(&lab.path(place), place, depth, &mut facts);
    }
    Ok(facts)
}

/// The facts with how many processes there are of a name, in place of each.
fn names_only(lab: &Lab) -> Result<BTreeSet<String>> {
    let (processes, mut facts): (BTreeSet<_>, BTreeSet<_>) = facts(lab)?
        .into_iter()
        .partition(|fact| fact.starts_with("process "));
    let mut names = BTreeMap::new();
    for process in &processes {
        let name = process.splitn(3, ' ').nth(2).unwrap_or_default();
        *names.entry(name).or_insert(0) += 1;
    }
    facts.extend(
        names
            .iter()
            .map(|(name, n)| format!("{n} processes {name}")),
    );
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

/// Network interfaces of the lab; its bridge comes with the first pod and stays.
fn interfaces(lab: &Lab, facts: &mut BTreeSet<String>) -> Result<()> {
    let text = fs::read_to_string(lab.path("/proc/1/net/dev"))?;
    let names = text
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0));
    let came = names.map(str::trim).filter(|name| *name != "lab0");
    facts.extend(came.map(|name| format!("network interface {name}")));
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

/// Nothing of an operation is left: no record, no helper, no guardian, no kernel setting, no
/// partial archive.
pub fn nothing_left(lab: &Lab) -> Result<()> {
    for program in [names::CUDA_BINARY, "kybernate-guardian", "criu", "runc"] {
        let left = lab.pids_of(program)?;
        ensure!(left.is_empty(), "{program} is left: {left:?}");
    }
    for (place, kept) in [
        ("/run/kybernate/journal", ""),
        ("/run/kybernate/levers", "lock"),
        ("/run/kybernate/dump", ""),
        ("/run/kybernate/restore", ""),
    ] {
        let entries = fs::read_dir(lab.path(place)).into_iter().flatten();
        let left: Vec<_> = entries
            .flatten()
            .map(|entry| entry.file_name())
            .filter(|name| *name != *kept)
            .collect();
        ensure!(left.is_empty(), "{place} holds {left:?}");
    }
    Ok(())
}

/// Removes a pod, and its cgroup as kubelet does, which must be empty then.
pub async fn remove(pod: &Pod, lab: &Lab) -> Result<()> {
    // containerd hears of the end of a shim a moment later.
    eventually("an end of the pod", SETTLE, || async {
        pod.remove().await.map(Some)
    })
    .await?;
    eventually("an end of the pod's shim", SETTLE, || async {
        Ok(pod.shims()?.is_empty().then_some(()))
    })
    .await?;
    let linux = pod.config.linux.as_ref().context("no cgroup")?;
    let name = linux.cgroup_parent.trim_start_matches('/');
    let mut groups = vec![lab.path("/sys/fs/cgroup").join(name)];
    for controller in fs::read_dir(lab.path("/sys/fs/cgroup"))?.flatten() {
        groups.push(controller.path().join(name));
    }
    eventually("empty cgroups of the pod", SETTLE, || async {
        for group in groups.iter().filter(|group| group.exists()) {
            fs::remove_dir(group).with_context(|| group.display().to_string())?;
        }
        Ok(Some(()))
    })
    .await
}
