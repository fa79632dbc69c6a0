//! Where each setting comes from.
//!
//! ```text
//! flag > environment > config.toml > node.toml, which the installer writes > default
//! ```
//!
//! `node.toml` lies beside `config.toml` and holds what the node's profile says, so that no part
//! has to find out anew what kind of node it runs on.

use std::{cell::RefCell, collections::BTreeMap, fmt, io, path::Path};

use serde::Serialize;
use toml::{Table, Value};

use crate::{Settings, settings::SettingsError};

/// Name of the file with the profile's values, beside the settings file.
pub const NODE_FILE: &str = "node.toml";

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Built in.
    Default,
    /// The node's profile of this name, or the file that the installer has written from it.
    Profile(String),
    /// A settings file.
    File(String),
    /// An environment variable.
    Environment(String),
    /// A flag.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Profile(name) => write!(f, "node profile {name}"),
            Self::File(path) => write!(f, "file {path}"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// An effective value and its source.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Effective {
    /// The value.
    pub value: Value,
    /// Where it comes from.
    pub from: Source,
}

/// Lays `upper` over `lower`, table by table.
pub fn merge(lower: &mut Table, upper: Table) {
    for (key, value) in upper {
        match (lower.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (_, value) => {
                lower.insert(key, value);
            }
        }
    }
}

/// The text of the file, or nothing where there is none.
pub fn read(path: &Path) -> Result<String, SettingsError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(SettingsError::Read {
            path: path.into(),
            source,
        }),
    }
}

/// The settings of a node file with those of a settings file on top. Each must be right by itself.
pub fn settings(node: (&Path, &str), file: (&Path, &str)) -> Result<Settings, SettingsError> {
    if node.1.is_empty() {
        return Settings::parse(file.0, file.1);
    }
    Settings::parse(node.0, node.1)?;
    Settings::parse(file.0, file.1)?;
    let mut table = table(node.0, node.1)?;
    merge(&mut table, self::table(file.0, file.1)?);
    Settings::parse(file.0, &table.to_string())
}

fn table(path: &Path, text: &str) -> Result<Table, SettingsError> {
    text.parse()
        .map_err(|error| SettingsError::parse(path, text, error))
}

/// Every setting by its dotted name, with its value and its source.
pub fn effective(
    node: (&Path, &str),
    file: (&Path, &str),
    env: impl Fn(&str) -> Option<String>,
    flags: &[(&str, &str, Value)],
) -> Result<BTreeMap<String, Effective>, SettingsError> {
    let settings = settings(node, file)?.with_env(&env)?;
    let mut sources = BTreeMap::new();
    let defaults = leaves(&Settings::default());
    for key in defaults.keys() {
        sources.insert(key.clone(), Source::Default);
    }
    let node_table = table(node.0, node.1)?;
    let profile = node_table
        .get("node")
        .and_then(|table| table.get("profile"))
        .and_then(Value::as_str)
        .unwrap_or("unknown")
        .to_owned();
    for key in flatten(&node_table).into_keys() {
        sources.insert(key, Source::Profile(profile.clone()));
    }
    for key in flatten(&table(file.0, file.1)?).into_keys() {
        sources.insert(key, Source::File(file.0.display().to_string()));
    }
    for (name, key) in variables() {
        if env(&name).is_some() {
            sources.insert(key, Source::Environment(name));
        }
    }
    let mut values = leaves(&settings);
    for (key, flag, value) in flags {
        values.insert((*key).to_owned(), value.clone());
        sources.insert((*key).to_owned(), Source::Flag((*flag).to_owned()));
    }
    Ok(values
        .into_iter()
        .map(|(key, value)| {
            let from = sources.remove(&key).unwrap_or(Source::Default);
            (key, Effective { value, from })
        })
        .collect())
}

/// Which environment variable sets which setting, found out by trying: a list would grow stale.
fn variables() -> Vec<(String, String)> {
    let asked = RefCell::new(Vec::new());
    let record = |name: &str| {
        asked.borrow_mut().push(name.to_owned());
        None
    };
    if Settings::default().with_env(record).is_err() {
        return Vec::new();
    }
    let before = leaves(&Settings::default());
    let mut found = Vec::new();
    for name in asked.into_inner() {
        // Values that no default has and that parse as what settings are.
        for probe in ["7", "true", "false", "7MiB"] {
            let set = Settings::default().with_env(|asked| (asked == name).then(|| probe.into()));
            let Ok(set) = set else { continue };
            let changed = leaves(&set)
                .into_iter()
                .find(|(key, value)| before.get(key) != Some(value));
            if let Some((key, _)) = changed {
                found.push((name, key));
                break;
            }
        }
    }
    found
}

fn leaves(settings: &Settings) -> BTreeMap<String, Value> {
    Table::try_from(settings)
        .map(|table| flatten(&table))
        .unwrap_or_default()
}

fn flatten(table: &Table) -> BTreeMap<String, Value> {
    fn visit(prefix: &str, table: &Table, into: &mut BTreeMap<String, Value>) {
        for (key, value) in table {
            let name = match prefix {
                "" => key.clone(),
                prefix => format!("{prefix}.{key}"),
            };
            match value {
                Value::Table(table) => visit(&name, table, into),
                value => {
                    into.insert(name, value.clone());
                }
            }
        }
    }
    let mut into = BTreeMap::new();
    visit("", table, &mut into);
    into
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(env: &[(&str, &str)]) -> BTreeMap<String, Effective> {
        let env: BTreeMap<String, String> = env
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        effective(
            (
                Path::new("/n"),
                "[node]\nprofile = 'microk8s'\n[containerd]\nsocket = '/snap.sock'\n[checkpoint]\nlevel = 'fast'\n",
            ),
            (Path::new("/c"), "[checkpoint]\nlevel = 'high'\n"),
            |name| env.get(name).cloned(),
            &[],
        )
        .unwrap()
    }

    #[test]
    fn every_layer_wins_over_those_below() {
        let shown = show(&[("KYBERNATE_BUFFER", "1GiB")]);
        let of = |key: &str| (shown[key].value.to_string(), shown[key].from.to_string());
        assert_eq!(
            of("containerd.socket"),
            ("\"/snap.sock\"".into(), "node profile microk8s".into())
        );
        assert_eq!(
            of("checkpoint.level"),
            ("\"high\"".into(), "file /c".into())
        );
        assert_eq!(
            of("checkpoint.buffer"),
            ("\"1GiB\"".into(), "environment KYBERNATE_BUFFER".into())
        );
        assert_eq!(of("checkpoint.timeout_s").1, "default");
        let shown = show(&[("KYBERNATE_CONTAINERD_SOCKET", "/snap.sock")]);
        assert_eq!(
            shown["containerd.socket"].from,
            Source::Environment("KYBERNATE_CONTAINERD_SOCKET".into()),
            "a variable counts though it says what the file says"
        );
    }

    #[test]
    fn every_variable_is_traced_to_its_setting() {
        let found = variables();
        let asked = RefCell::new(0);
        let _ = Settings::default().with_env(|_| {
            *asked.borrow_mut() += 1;
            None
        });
        assert_eq!(found.len(), asked.into_inner(), "{found:?}");
    }

    #[test]
    fn a_wrong_node_file_is_named() {
        let err = settings(
            (Path::new("/etc/kybernate/node.toml"), "[wrong]\n"),
            (Path::new("/c"), ""),
        )
        .unwrap_err()
        .to_string();
        assert!(err.contains("node.toml"), "{err}");
    }
}
