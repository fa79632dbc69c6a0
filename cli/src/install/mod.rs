//! Installing on a node, and taking away again.
//!
//! ```text
//! profile ─> node ─┬─> locate: which of containerd's files ─> wishes: what each file is to be
//! receipt ─────────┴─> plan: what has to be changed ─> check: what containerd makes of it
//!                      ─> apply: journal, rename, restart, receipt; or everything back
//! ```
//!
//! Everything up to the check only reads. What was there before is in the receipt, so that an
//! installation over another one starts from the untouched files, and an uninstallation ends
//! with them.

mod activate;
mod apply;
mod check;
mod containerd;
mod diff;
mod edit;
mod file;
mod hooks;
mod host;
mod journal;
mod locate;
mod plan;
mod prepare;
mod programs;
mod ready;
mod receipt;
mod shims;
mod site;
mod status;
mod wishes;

#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use kybernate_config::profile::{self, NodeSettings, Root};

use activate::{activate, needs_restart, wait_for};
use apply::{Ledger, Recovery};
use file::Facts;
use host::Host;
use plan::{Originals, Plan};
use prepare::prepare;
use receipt::{Kind, Receipt, STATE_DIR};
use site::{Site, backup_in, receipt_in};

pub use host::{ENTER, Reach, enter};
pub use status::status;

/// What an installation is told.
#[derive(Debug, Clone)]
pub struct Request {
    /// The node's root directory.
    pub root: Root,
    /// How its programs are run.
    pub reach: Reach,
    /// Directory with Kybernate's programs.
    pub from: PathBuf,
    /// Paths and commands that were named by flags.
    pub node: NodeSettings,
    /// containerd's runtime type of the handler.
    pub runtime_type: Option<String>,
    /// Whether kubelet is to speak to the CRI hooks; as it is installed where nothing is said.
    pub hooks: Option<bool>,
    /// Whether the NRI plugin is to be installed; the same.
    pub nri: Option<bool>,
    /// Whether services may be restarted.
    pub restart: bool,
    /// How long containerd may take to come back.
    pub patience: Duration,
    /// Whether pods of the class may lose their shim.
    pub force: bool,
}

/// What was done, or would be.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// The node's kind and how that is known.
    pub found: Vec<String>,
    /// A unified diff of every file.
    pub diff: String,
    /// What the administrator has to know.
    pub notes: Vec<String>,
    /// How many files were changed.
    pub changed: usize,
    /// Whether containerd was asked about the new configuration.
    pub checked: bool,
}

/// Says what an installation would change, or changes it.
pub fn install(request: &Request, dry_run: bool) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    if !dry_run
        && request
            .root
            .exists(Path::new(STATE_DIR).join("journal.json"))
    {
        // With nothing installed, what is undone takes the state directory along.
        recover(request, Some(&Ledger::open(&request.root)?), &mut outcome)?;
    }
    let made = Ledger::missing(&request.root);
    let ledger = if dry_run {
        None
    } else {
        Some(Ledger::open(&request.root)?)
    };
    let receipt = receipt_in(&request.root)?;
    let planned = prepare(request, receipt.as_ref(), &ledger, &mut outcome);
    let (site, plan, new) = match planned {
        Ok(planned) => planned,
        Err(error) => {
            abandon(ledger, receipt.as_ref(), &made);
            return Err(error);
        }
    };
    outcome.diff = plan.changes.iter().map(apply::Change::diff).collect();
    outcome.changed = plan.changes.len();
    outcome.notes.extend(plan.notes.iter().cloned());
    outcome.notes.extend(site.profile.note.clone());
    let Some(ledger) = ledger else {
        return Ok(outcome);
    };
    commit(
        request,
        &site,
        &ledger,
        &plan,
        Some(new),
        made,
        &mut outcome,
    )?;
    Ok(outcome)
}

/// Says what an uninstallation would change, or changes it.
pub fn uninstall(request: &Request, dry_run: bool) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let pending = request
        .root
        .exists(Path::new(STATE_DIR).join("journal.json"));
    if receipt_in(&request.root)?.is_none() && !pending {
        let nothing = format!(
            "nothing is installed: there is no {STATE_DIR}/receipt.json under {}",
            request.root.path().display()
        );
        if request.reach != Reach::Entered {
            bail!(nothing);
        }
        // From a container, which is started again until it succeeds, on nodes of all kinds.
        outcome.notes.push(nothing);
        return Ok(outcome);
    }
    let ledger = if dry_run {
        None
    } else {
        Some(Ledger::open(&request.root)?)
    };
    recover(request, ledger.as_ref(), &mut outcome)?;
    let Some(receipt) = receipt_in(&request.root)? else {
        return Ok(outcome);
    };
    let site = Site {
        host: Host {
            root: request.root.clone(),
            reach: request.reach,
        },
        profile: profile::find(&profile::all(), &receipt.node.profile)?.clone(),
        node: receipt.node.clone(),
        overrides: NodeSettings::default(),
        evidence: Vec::new(),
    };
    if request.reach != Reach::Files && !request.force {
        refuse_with_pods(request, &site)?;
    }
    let originals = Originals {
        root: &request.root,
        receipt: Some(&receipt),
        backup: |facts: &Facts| backup_in(&request.root, facts),
    };
    let plan = originals.plan(Vec::new())?;
    outcome.diff = plan.changes.iter().map(apply::Change::diff).collect();
    outcome.changed = plan.changes.len();
    outcome.notes.extend(plan.notes.iter().cloned());
    if let Some(ledger) = ledger {
        commit(
            request,
            &site,
            &ledger,
            &plan,
            None,
            Vec::new(),
            &mut outcome,
        )?;
    }
    Ok(outcome)
}

/// Refuses while pods of the class run.
fn refuse_with_pods(request: &Request, site: &Site) -> anyhow::Result<()> {
    let socket = request.root.target(&site.node.containerd_socket)?;
    let pods = wait_for(ready::class_pods(&socket)).map_err(anyhow::Error::msg)?;
    match pods {
        Ok(pods) if pods.is_empty() => Ok(()),
        Ok(pods) => bail!(
            "pods of the class still run, and could not be stopped without their shim: {}; \
             delete them first, or say --force",
            pods.join(", ")
        ),
        // Shims and what they run go on without containerd.
        Err(why) => match shims::running(&request.root).len() {
            0 => Ok(()),
            count => bail!(
                "containerd can't be asked which pods of the class still run ({why}), and {count} \
                 of their shims do: start it and delete the pods first, or say --force"
            ),
        },
    }
}

/// Undoes or finishes what an interrupted run has left.
fn recover(
    request: &Request,
    ledger: Option<&Ledger>,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let Some(ledger) = ledger else { return Ok(()) };
    match ledger.recover()? {
        Recovery::None => {}
        Recovery::Finished => outcome
            .notes
            .push("an interrupted run was complete, and is recorded now".into()),
        Recovery::RolledBack { kinds, node } => {
            outcome
                .notes
                .push("an interrupted run was undone first".into());
            if let Some(node) = node
                && request.restart
                && request.reach != Reach::Files
            {
                let host = Host {
                    root: request.root.clone(),
                    reach: request.reach,
                };
                let wanted = ledger.receipt()?.is_some();
                activate(&host, &node, &kinds, wanted, request.patience)
                    .map_err(anyhow::Error::msg)
                    .context("after an interrupted run was undone")?;
            }
        }
    }
    Ok(())
}

/// Leaves nothing behind where nothing was begun.
fn abandon(ledger: Option<Ledger>, receipt: Option<&Receipt>, made: &[PathBuf]) {
    if let Some(ledger) = ledger {
        // What can't be removed is an empty directory of ours.
        let _ = ledger.clear(receipt, made);
    }
}

/// Makes the changes.
fn commit(
    request: &Request,
    site: &Site,
    ledger: &Ledger,
    plan: &Plan,
    new: Option<Receipt>,
    made: Vec<PathBuf>,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let installing = new.is_some();
    if plan.changes.is_empty() && installing && ledger.receipt()? == new {
        return Ok(());
    }
    let kinds: Vec<Kind> = plan.changes.iter().map(|change| change.kind).collect();
    let restarts = needs_restart(&kinds);
    let may = request.restart && request.reach != Reach::Files;
    let socket = request.root.target(&site.node.containerd_socket)?;
    let runs = may && restarts && wait_for(ready::answers(&socket)).map_err(anyhow::Error::msg)?;
    if restarts && !may {
        outcome.notes.push(format!(
            "containerd was not restarted: the change takes effect with `{}`",
            site.node.containerd_restart
        ));
    } else if restarts && !runs {
        outcome.notes.push(format!(
            "containerd does not answer at {}, so it was not restarted",
            socket.display()
        ));
    }
    let before = ledger.receipt()?.is_some();
    let mut activate = |back: bool| {
        let wanted = if back { before } else { installing };
        let mut kinds = kinds.clone();
        if !runs {
            kinds.retain(|kind| !needs_restart(&[*kind]));
        }
        if !may {
            return Ok(());
        }
        activate(&site.host, &site.node, &kinds, wanted, request.patience)
    };
    ledger.apply(&plan.changes, new, made, &mut activate, &mut |_| {})?;
    Ok(())
}
