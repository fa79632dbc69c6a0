//! `kybernate config show`: every setting, its value and where that comes from.

use std::{collections::BTreeMap, io::Write, path::PathBuf};

use kybernate_config::{
    layers::{self, Effective, NODE_FILE, Source},
    profile::{self, NodeSettings, Root},
    settings::DEFAULT_PATH,
};
use toml::Value;

use crate::{
    args::ConfigShow,
    display::{clean, columns},
    output::{Output, json},
};

/// Prints all settings; those of the node are the profile's where nothing else says them.
pub fn show(args: &ConfigShow, socket: Option<&PathBuf>) -> anyhow::Result<()> {
    let env = |name: &str| std::env::var(name).ok();
    let path = env("KYBERNATE_CONFIG").map_or_else(|| PathBuf::from(DEFAULT_PATH), PathBuf::from);
    let node = path.with_file_name(NODE_FILE);
    let (below, text) = (layers::read(&node)?, layers::read(&path)?);
    let flags: Vec<(&str, &str, Value)> = socket
        .map(|socket| {
            let value = Value::String(socket.display().to_string());
            ("containerd.socket", "--socket", value)
        })
        .into_iter()
        .collect();
    let mut shown = layers::effective((&node, &below), (&path, &text), env, &flags)?;
    let unknown = add_profile(&mut shown).err();
    if args.json {
        json(&shown)?;
        return Ok(());
    }
    let rows: Vec<[String; 3]> = shown
        .iter()
        .map(|(key, Effective { value, from })| {
            [
                key.clone(),
                clean(&value.to_string()),
                clean(&from.to_string()),
            ]
        })
        .collect();
    let mut out = Output::lock();
    out.write_all(columns(&rows).as_bytes())?;
    if let Some(error) = unknown {
        writeln!(out, "\nThe paths of the node (node.…) are unknown: {error}")?;
    }
    out.flush()?;
    Ok(())
}

/// Fills in what the profile of this node says.
fn add_profile(shown: &mut BTreeMap<String, Effective>) -> anyhow::Result<()> {
    let root = Root::new("/");
    let profiles = profile::all();
    let named = shown
        .get("node.profile")
        .and_then(|effective| effective.value.as_str());
    let profile = match named {
        Some(name) => profile::find(&profiles, name)?,
        None => profile::detect(&profiles, &root)?.profile,
    };
    // What is set already is laid over it by its key.
    let resolved = profile::resolve(
        profile,
        &root,
        &[(Source::Default, NodeSettings::default())],
    )?;
    for (key, value) in toml::Table::try_from(&resolved.node)? {
        shown
            .entry(format!("node.{key}"))
            .or_insert_with(|| Effective {
                value,
                from: Source::Profile(profile.name.clone()),
            });
    }
    Ok(())
}
