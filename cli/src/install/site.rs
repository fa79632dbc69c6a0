//! The node that is installed on: what kind it is, where its things are, and what is installed.
//!
//! ```text
//! --node > KYBERNATE_NODE_… > config.toml > the last time's > where a package is > profile
//! ```

use std::{io, path::Path};

use anyhow::Context;
use kybernate_config::{
    Settings,
    layers::{NODE_FILE, Source},
    profile::{self, Node, NodeSettings, Profile, Root},
    settings,
};

use super::{
    Request,
    file::{self, Content, Facts},
    host::Host,
    receipt::{Installed, Receipt, STATE_DIR},
};

/// Where packages put programs.
const PACKAGED: &str = "/usr/bin";

/// A node and what is known of it.
#[derive(Debug)]
pub struct Site {
    /// Its files and programs.
    pub host: Host,
    /// What kind of node it is.
    pub profile: Profile,
    /// Its paths and commands.
    pub node: Node,
    /// Those that were named, and are to be kept.
    pub overrides: NodeSettings,
    /// What its kind was told by.
    pub evidence: Vec<String>,
}

/// Tells what kind of node it is and where its things are. What is installed wins over detection.
pub fn survey(request: &Request, receipt: Option<&Receipt>) -> anyhow::Result<Site> {
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
    // What was named for another kind of node means nothing on this one.
    let last = receipt
        .filter(|receipt| receipt.node.profile == profile.name)
        .map(|receipt| last_time(&request.root, &request.from, receipt))
        .unwrap_or_default();
    let packaged = packaged(request);
    let mut overrides = last.clone();
    lay(&mut overrides, &env)?;
    lay(&mut overrides, &request.node)?;
    if settings.bin_dir.is_none() && overrides.bin_dir.is_none() {
        overrides.bin_dir.clone_from(&packaged.bin_dir);
    }
    let layers = [
        (Source::Flag("--from".into()), packaged),
        (Source::File(NODE_FILE.into()), last),
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

/// What was named at the last installation: `[node]` of the file that it has written. A key that
/// this version does not know is left out, and a file that nobody can read is written anew.
fn last_time(root: &Root, from: &Path, receipt: &Receipt) -> NodeSettings {
    let mut last = NodeSettings::default();
    let path = Path::new(settings::DEFAULT_PATH).with_file_name(NODE_FILE);
    let text = receipt.file(&path).map(|_| root.read_text(&path));
    let table: Option<toml::Table> = text.and_then(|text| text.ok()?.parse().ok());
    let named = table
        .as_ref()
        .and_then(|table| table.get("node")?.as_table());
    for (key, value) in named.into_iter().flatten() {
        if key != "profile"
            && let Some(value) = value.as_str()
        {
            let _ = last.set(key, value);
        }
    }
    // A package's programs were used where they are: those of another directory don't go there.
    let ours = |file: &Installed| file.path.starts_with(PACKAGED);
    let here = root.target(PACKAGED).is_ok_and(|path| path == from);
    if last.bin_dir.as_deref() == Some(PACKAGED) && !here && !receipt.files.iter().any(ours) {
        last.bin_dir = None;
    }
    last
}

/// Lays what is set in `upper` over `lower`.
fn lay(lower: &mut NodeSettings, upper: &NodeSettings) -> anyhow::Result<()> {
    for (key, value) in upper.values() {
        lower.set(key, value)?;
    }
    Ok(())
}

/// The `[node]` section of the node's settings file.
fn file_settings(root: &Root) -> anyhow::Result<NodeSettings> {
    let path = Path::new(settings::DEFAULT_PATH);
    match root.read_text(path) {
        Ok(text) => Ok(Settings::parse(path, &text)?.node),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(NodeSettings::default()),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The receipt in a root that is not locked.
pub fn receipt_in(root: &Root) -> anyhow::Result<Option<Receipt>> {
    Receipt::read(&root.target(STATE_DIR)?).context("cannot read what is installed")
}

/// A file's content before any installation.
pub fn backup_in(root: &Root, facts: &Facts) -> io::Result<Content> {
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
