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

mod apply;
mod check;
mod containerd;
mod diff;
mod edit;
mod file;
mod hooks;
mod host;
mod locate;
mod plan;
mod ready;
mod receipt;
mod status;
mod wishes;

#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use kybernate_config::{
    Settings,
    layers::Source,
    names::RUNC_RUNTIME_TYPE,
    profile::{self, Node, NodeSettings, Profile, Root},
};

use apply::{Ledger, Recovery};
use containerd::Registration;
use file::{Content, Facts};
use host::Host;
use locate::{Loaded, Located, Place};
use plan::{Originals, Plan, Wish};
use receipt::{Kind, Receipt, STATE_DIR};

pub use host::{ENTER, Reach, enter};
pub use status::status;

/// Where packages put programs.
const PACKAGED: &str = "/usr/bin";

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

/// A node and what is known of it.
struct Site {
    host: Host,
    profile: Profile,
    node: Node,
    overrides: NodeSettings,
    evidence: Vec<String>,
}

/// Tells what kind of node it is and where its things are. What is installed wins over detection.
fn survey(request: &Request, receipt: Option<&Receipt>) -> anyhow::Result<Site> {
    let profiles = profile::all();
    let settings = file_settings(&request.root)?;
    let env = NodeSettings::default().with_env(&|name| std::env::var(name).ok());
    let named = [&request.node, &env, &settings]
        .into_iter()
        .find_map(|layer| layer.profile.clone())
        .or_else(|| receipt.map(|receipt| receipt.node.profile.clone()));
    let (profile, evidence) = match named {
        Some(name) => (profile::find(&profiles, &name)?.clone(), Vec::new()),
        None => {
            let found = profile::detect(&profiles, &request.root)?;
            (found.profile.clone(), found.evidence)
        }
    };
    let packaged = packaged(request);
    let mut overrides = request.node.clone();
    let is_set = |layer: &NodeSettings| layer.bin_dir.is_some();
    if ![&settings, &env, &overrides].into_iter().any(is_set) {
        overrides.bin_dir.clone_from(&packaged.bin_dir);
    }
    let layers = [
        (Source::Flag("--from".into()), packaged),
        (Source::File("config.toml".into()), settings),
        (Source::Environment("KYBERNATE_NODE_…".into()), env),
        (Source::Flag("--node".into()), request.node.clone()),
    ];
    let node = profile::resolve(&profile, &request.root, &layers)?.node;
    Ok(Site {
        host: Host {
            root: request.root.clone(),
            reach: request.reach,
        },
        profile,
        node,
        overrides,
        evidence,
    })
}

/// Programs that the system's package manager has put in place are used where they are: beside
/// copies of them an upgrade of the package would seem to change nothing.
fn packaged(request: &Request) -> NodeSettings {
    let here = request.root.is_own() && request.from == Path::new(PACKAGED);
    NodeSettings {
        bin_dir: here.then(|| PACKAGED.to_owned()),
        ..NodeSettings::default()
    }
}

/// The `[node]` section of the node's settings file.
fn file_settings(root: &Root) -> anyhow::Result<NodeSettings> {
    let path = Path::new(kybernate_config::settings::DEFAULT_PATH);
    match root.read_text(path) {
        Ok(text) => Ok(Settings::parse(path, &text)?.node),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(NodeSettings::default()),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The receipt in a root that is not locked.
fn receipt_in(root: &Root) -> anyhow::Result<Option<Receipt>> {
    Receipt::read(&root.target(STATE_DIR)?).context("cannot read what is installed")
}

fn backup_in(root: &Root, facts: &Facts) -> io::Result<Content> {
    let path = root.target(STATE_DIR)?.join("backup").join(&facts.sha256);
    let bytes = std::fs::read(path)?;
    if file::digest(&bytes) != facts.sha256 {
        return Err(io::Error::other("the backup is damaged"));
    }
    Ok(Content {
        bytes,
        facts: facts.clone(),
    })
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
        bail!(
            "nothing is installed: there is no {STATE_DIR}/receipt.json under {}",
            request.root.path().display()
        );
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
        let socket = request.root.target(&site.node.containerd_socket)?;
        // A containerd that does not answer has no pods that could be asked for.
        let pods = wait_for(ready::class_pods(&socket)).map_err(anyhow::Error::msg)?;
        let pods = pods.unwrap_or_default();
        if !pods.is_empty() {
            bail!(
                "pods of the class still run, and could not be stopped without their shim: {}; \
                 delete them first, or say --force",
                pods.join(", ")
            );
        }
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

/// Everything that only reads: the node, the plan, and containerd's opinion of it.
fn prepare(
    request: &Request,
    receipt: Option<&Receipt>,
    ledger: &Option<Ledger>,
    outcome: &mut Outcome,
) -> anyhow::Result<(Site, Plan, Receipt)> {
    let site = survey(request, receipt)?;
    let node = &site.node;
    outcome.found.push(match site.evidence.is_empty() {
        true => site.profile.title.clone(),
        false => format!("{} ({})", site.profile.title, site.evidence.join(", ")),
    });
    let hooks = request
        .hooks
        .unwrap_or_else(|| receipt.is_some_and(|receipt| receipt.hooks));
    if let Some(why) = site.profile.hooks_refused.as_ref().filter(|_| hooks) {
        bail!(
            "--with-hooks does not work on {}: {why}",
            site.profile.title
        );
    }
    let nri = request
        .nri
        .unwrap_or_else(|| receipt.is_none_or(|receipt| receipt.nri));
    let originals = Originals {
        root: &request.root,
        receipt,
        backup: |facts: &Facts| backup_in(&request.root, facts),
    };
    let bytes = |path: &Path| Ok(originals.original(path)?.map(|content| content.bytes));
    let version = site.host.ask(&node.containerd_binary, &["--version"]);
    let version = version.filter(|said| said.success).map(|said| said.stdout);
    let major = version.as_deref().and_then(crate::doctor::version);
    if let Some(version) = &version {
        outcome.found.push(version.trim().to_owned());
    }
    if major.is_some_and(|version| version < (1, 7)) {
        bail!("this containerd is too old: 1.7 or later is needed");
    }
    let major = major.map(|(major, _)| major);
    let located = locate::locate(&request.root, node, major, &bytes)?;
    // containerd knows best what is in effect; its files tell the rest.
    let dumped = match ledger {
        Some(_) => check::present(&site.host, &node.containerd_binary, &located.loaded)?,
        None => None,
    };
    let merged = dumped.as_ref().unwrap_or(&located.merged);
    let runtime_type = request
        .runtime_type
        .clone()
        .or_else(|| receipt.map(|receipt| receipt.runtime_type.clone()))
        .unwrap_or_else(|| RUNC_RUNTIME_TYPE.to_owned());
    let registration = Registration {
        runtime_type: runtime_type.clone(),
        bin_dir: node.bin_dir.display().to_string(),
        runc: wishes::uncommon_runc(&request.root, node),
    };
    if runtime_type != RUNC_RUNTIME_TYPE && major == Some(1) {
        outcome.notes.push(format!(
            "containerd 1 hands checkpoint options to {RUNC_RUNTIME_TYPE} alone: pods of the type \
             {runtime_type} run, and can't be checkpointed"
        ));
    }
    let setup = wishes::Setup {
        located: &located,
        merged,
        registration: &registration,
        major,
        nri,
    };
    let configured = setup.wish(|path| originals.original(path))?;
    outcome.notes.extend(configured.notes);
    if ledger.is_some() && !configured.texts.is_empty() {
        let after = apply_texts(&located, &configured.texts);
        let tables = |config: &containerd::Config| {
            let wanted = merged.tables(config.version, &registration);
            config.has(&wanted[..1])
        };
        outcome.checked = check::compare(
            &site.host,
            &node.containerd_binary,
            &located.loaded,
            &after,
            tables,
        )?;
    }
    if ledger.is_some() && !outcome.checked && !configured.texts.is_empty() {
        outcome.notes.push(format!(
            "the new configuration was not checked by containerd: {} can't be run here",
            node.containerd_binary.display()
        ));
    }
    let mut wanted: Vec<Wish> = wishes::programs(&request.from, &request.root, node, hooks)?;
    wanted.push(wishes::settings(node, &site.overrides));
    if nri {
        wanted.push(wishes::plugin(&request.from, merged)?);
    }
    if hooks {
        wanted.extend(hooks::units(node));
    }
    wanted.extend(configured.wishes);
    if hooks {
        wanted.push(hooks::kubelet(&request.root, node, |path| {
            originals.original(path)
        })?);
    }
    let plan = originals.plan(wanted)?;
    let mut new = Receipt::new(node.clone(), runtime_type, hooks, nri);
    new.files.clone_from(&plan.installed);
    if let Some(receipt) = receipt {
        new.directories.clone_from(&receipt.directories);
    }
    Ok((site, plan, new))
}

/// What containerd will read: what it reads now, with changed and added texts.
fn apply_texts(located: &Located, texts: &[(PathBuf, String)]) -> Vec<Loaded> {
    let mut files = located.loaded.clone();
    for (path, text) in texts {
        let config = containerd::Config::parse(text).unwrap_or_else(|_| located.merged.clone());
        let new = Loaded {
            path: path.clone(),
            text: text.clone(),
            config,
        };
        // k0s merges its own way: as if all were one file.
        let one = matches!(&located.place, Place::DropIn(_))
            && files.len() == 1
            && !files[0].config.table.contains_key("imports");
        if let Some(file) = files.iter_mut().find(|file| file.path == *path) {
            *file = new;
        } else if one {
            let body = text.lines().filter(|line| !line.starts_with("version"));
            let body: String = body.map(|line| format!("{line}\n")).collect();
            files[0].text.push_str(&format!("\n{body}"));
        } else {
            files.push(new);
        }
    }
    files
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

/// Whether containerd has to read its configuration anew.
fn needs_restart(kinds: &[Kind]) -> bool {
    kinds
        .iter()
        .any(|kind| matches!(kind, Kind::Containerd | Kind::Plugin))
}

/// Restarts what uses changed files, and waits until it is back. `installed` says whether the
/// runtime should be there then.
fn activate(
    host: &Host,
    node: &Node,
    kinds: &[Kind],
    installed: bool,
    patience: Duration,
) -> Result<(), String> {
    let run = |line: &str| {
        let said = host
            .shell(line)
            .map_err(|e| format!("cannot run `{line}`: {e}"))?;
        match said.success {
            true => Ok(()),
            false => Err(format!("`{line}` failed: {}", said.stderr.trim())),
        }
    };
    if needs_restart(kinds) {
        run(&node.containerd_restart)?;
        let socket = host
            .root
            .target(&node.containerd_socket)
            .map_err(|e| e.to_string())?;
        wait_for(ready::wait(&socket, installed, patience))
            .flatten()
            .map_err(|why| format!("containerd did not come back as it should: {why}"))?;
    }
    let unit_exists = host.root.exists(Path::new(hooks::UNITS).join(hooks::UNIT));
    let services = kinds
        .iter()
        .any(|kind| matches!(kind, Kind::Unit | Kind::Kubelet));
    if services {
        run("systemctl daemon-reload")?;
    }
    if services && unit_exists {
        run(&format!("systemctl enable --now {}", hooks::UNIT))?;
    } else if unit_exists && kinds.contains(&Kind::Program) {
        run(&format!("systemctl try-restart {}", hooks::UNIT))?;
    }
    if kinds.contains(&Kind::Kubelet) {
        run(&node.kubelet_restart)?;
    }
    if services && !unit_exists {
        // kubelet has left it; what `enable` has made goes along.
        run(&format!(
            "systemctl stop {socket} {unit}; rm -f {units}/multi-user.target.wants/{unit} \
             {units}/sockets.target.wants/{socket}; systemctl daemon-reload",
            unit = hooks::UNIT,
            socket = hooks::SOCKET_UNIT,
            units = hooks::UNITS,
        ))?;
    }
    Ok(())
}

/// Waits for something that talks to containerd.
fn wait_for<T>(future: impl Future<Output = T>) -> Result<T, String> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map(|runtime| runtime.block_on(future))
        .map_err(|e| format!("cannot wait for containerd: {e}"))
}
