//! A checkpoint that waits in its middle, and somebody else who looks around meanwhile.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use kybernate_integration::{
    Container, Lab,
    checkpoint::{Archive, Finished, run},
    eventually,
};
use tokio::task::JoinHandle;

/// As `shim/src/fault.rs` reads it.
pub const FAULT: &str = "/run/kybernate/faults";
/// Nobody's user and group.
const NOBODY: &[&str] = &[
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--",
];

/// Runs a program in the lab as a user who is not root.
pub async fn as_nobody(lab: &Lab, argv: &[&str]) -> Result<Finished> {
    run(lab, &[NOBODY, argv].concat()).await
}

/// A checkpoint that stands still at a step, its container already running again or not yet.
pub struct Halfway {
    pub archive: Archive,
    lab: Arc<Lab>,
    taking: JoinHandle<Result<Finished>>,
}

impl Halfway {
    /// Takes a checkpoint up to a step.
    pub async fn at(container: &Container, step: &str) -> Result<Self> {
        let lab = &container.lab;
        fs::create_dir_all(lab.path("/run/kybernate"))?;
        fs::write(lab.path(FAULT), format!("{step} wait"))?;
        let archive = Archive::new(lab)?;
        let (to, id) = (archive.clone(), container.id.clone());
        let halfway = Self {
            archive,
            lab: lab.clone(),
            taking: tokio::spawn(async move { to.try_take(&id, &[]).await }),
        };
        let reached = lab.path(format!("{FAULT}.reached"));
        eventually("the step", Duration::from_secs(30), || async {
            Ok(reached.exists().then_some(()))
        })
        .await?;
        Ok(halfway)
    }

    /// Lets it go on, to its end.
    pub async fn finish(self) -> Result<Archive> {
        let Self {
            archive,
            lab,
            taking,
        } = self;
        forget(&lab);
        taking.await?.context("kybernate checkpoint")?.ok()?;
        Ok(archive)
    }
}

/// Removes the fault. A failed case must not leave one to the next.
pub fn forget(lab: &Lab) {
    for file in [FAULT.to_owned(), format!("{FAULT}.reached")] {
        let _ = fs::remove_file(lab.path(file));
    }
}

/// Everything below a directory of the lab, with itself, by its path there. Links are not followed.
pub fn below(lab: &Lab, top: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![top.to_owned()];
    while let Some(path) = pending.pop() {
        let inside: PathBuf = lab.path(&path);
        let Ok(facts) = fs::symlink_metadata(&inside) else {
            continue;
        };
        if facts.is_dir() {
            let entries = fs::read_dir(&inside).into_iter().flatten().flatten();
            pending.extend(
                entries.map(|entry| format!("{path}/{}", entry.file_name().to_string_lossy())),
            );
        }
        found.push(path);
    }
    found
}
