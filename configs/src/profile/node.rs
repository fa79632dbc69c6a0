//! The paths and commands of one node: the profile's, with whatever overrides them on top.
//!
//! ```text
//! --node KEY=VALUE > KYBERNATE_NODE_KEY > [node] of config.toml > profile
//! ```

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Profile, Root};
use crate::layers::Source;

/// How containerd's configuration is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Style {
    /// `containerd_config` is TOML that containerd reads, or a copy of it with variables replaced.
    File,
    /// `containerd_config` is a Go template that extends the distribution's `base` template and
    /// may be missing; `containerd_config_v3` is the one for containerd 2.x.
    GoTemplate,
    /// `containerd_drop_in` is a directory whose files the distribution itself merges.
    DropIn,
}

macro_rules! node {
    ($($(#[$doc:meta])* $key:ident: $kind:ty,)*) => {
        /// Every path and command that an installation uses.
        #[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
        #[serde(deny_unknown_fields)]
        pub struct Node {
            /// Name of the profile.
            pub profile: String,
            $($(#[$doc])* pub $key: $kind,)*
        }

        /// `[node]`: what an administrator may override, [`Node`]'s keys.
        #[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct NodeSettings {
            /// The profile, instead of what is detected.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub profile: Option<String>,
            $($(#[$doc])* #[serde(skip_serializing_if = "Option::is_none")]
            pub $key: Option<String>,)*
        }

        /// The keys of [`NodeSettings`].
        pub const KEYS: &[&str] = &["profile", $(stringify!($key)),*];

        impl NodeSettings {
            /// Lays the environment (`KYBERNATE_NODE_…`) over these.
            pub fn with_env(mut self, get: &impl Fn(&str) -> Option<String>) -> Self {
                let name = |key: &str| format!("KYBERNATE_NODE_{}", key.to_uppercase());
                if let Some(value) = get(&name("profile")) {
                    self.profile = Some(value);
                }
                $(if let Some(value) = get(&name(stringify!($key))) {
                    self.$key = Some(value);
                })*
                self
            }

            /// Sets a key by its name.
            pub fn set(&mut self, key: &str, value: &str) -> Result<(), NodeError> {
                match key {
                    "profile" => self.profile = Some(value.into()),
                    $(stringify!($key) => self.$key = Some(value.into()),)*
                    _ => return Err(NodeError::Key { key: key.into() }),
                }
                Ok(())
            }

            /// What is set, by name.
            pub fn values(&self) -> BTreeMap<&'static str, &str> {
                let mut values = BTreeMap::new();
                if let Some(value) = &self.profile {
                    values.insert("profile", value.as_str());
                }
                $(if let Some(value) = &self.$key {
                    values.insert(stringify!($key), value.as_str());
                })*
                values
            }
        }
    };
}

node! {
    /// How containerd's configuration is changed: `file`, `go-template` or `drop-in`.
    containerd_style: Style,
    /// containerd's program, for its version and for checking configurations.
    containerd_binary: PathBuf,
    /// The file that is changed.
    containerd_config: PathBuf,
    /// The one that is changed instead where containerd 2.x is in use; only for `go-template`.
    containerd_config_v3: PathBuf,
    /// The file that containerd reads; the same one, except where it is made from a template.
    containerd_rendered: PathBuf,
    /// Directory for a file of our own; only for `drop-in`.
    containerd_drop_in: PathBuf,
    /// containerd's gRPC socket.
    containerd_socket: PathBuf,
    /// Where containerd keeps what lasts.
    containerd_root: PathBuf,
    /// Where containerd keeps what ends with a reboot.
    containerd_state: PathBuf,
    /// The command that restarts containerd, for a shell.
    containerd_restart: String,
    /// CNI plugins.
    cni_bin_dir: PathBuf,
    /// CNI networks.
    cni_conf_dir: PathBuf,
    /// runc.
    runc: PathBuf,
    /// kubelet's directory.
    kubelet_root: PathBuf,
    /// kubelet's systemd unit, or nothing where its arguments are in a file.
    kubelet_unit: PathBuf,
    /// The file with kubelet's arguments, or nothing where they are in a unit.
    kubelet_args: PathBuf,
    /// The command that restarts kubelet, for a shell.
    kubelet_restart: String,
    /// Where our programs go.
    bin_dir: PathBuf,
    /// Where containerd is to look for NRI plugins, or nothing where its own place will do.
    #[serde(default)]
    nri_plugin_dir: PathBuf,
}

/// Why a node's paths could not be had.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NodeError {
    /// There is no such key.
    #[error("no path or command of a node is called {key:?}; there are {}", KEYS.join(", "))]
    Key {
        /// What was asked for.
        key: String,
    },
    /// A value is wrong, or missing.
    #[error("the paths and commands of this node are not right: {0}")]
    Value(String),
    /// A path is relative.
    #[error("{key} is {value:?}: write an absolute path")]
    Relative {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
}

/// One value, or several of which the first that exists is taken.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// A node's paths and commands, and where each comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The values.
    pub node: Node,
    /// Their sources, by key.
    pub sources: BTreeMap<&'static str, Source>,
}

/// Lays `overrides`, the weakest first, over the profile. Where a profile has several places for
/// a thing, the first that exists under `root` is taken, or the very first.
pub fn resolve(
    profile: &Profile,
    root: &Root,
    overrides: &[(Source, NodeSettings)],
) -> Result<Resolved, NodeError> {
    let mut table = toml::Table::new();
    let mut sources = BTreeMap::new();
    for key in KEYS {
        // What a kind of node does not have is empty.
        let value = match profile.node.get(*key) {
            None => String::new(),
            Some(OneOrMany::One(value)) => value.clone(),
            Some(OneOrMany::Many(values)) => root
                .first(values.iter().map(Path::new))
                .map(|path| path.display().to_string())
                .or_else(|| values.first().cloned())
                .unwrap_or_default(),
        };
        table.insert((*key).into(), value.into());
        sources.insert(*key, Source::Profile(profile.name.clone()));
    }
    table.insert("profile".into(), profile.name.clone().into());
    for (source, settings) in overrides {
        for (key, value) in settings.values() {
            table.insert(key.into(), value.into());
            sources.insert(key, source.clone());
        }
    }
    for (key, value) in &table {
        let value = value.as_str().unwrap_or_default();
        let is_path = !matches!(
            key.as_str(),
            "profile" | "containerd_style" | "containerd_restart" | "kubelet_restart"
        );
        if is_path && !value.is_empty() && !value.starts_with('/') {
            return Err(NodeError::Relative {
                key: key.clone(),
                value: value.into(),
            });
        }
    }
    let node = Node::deserialize(table).map_err(|e| NodeError::Value(e.message().to_owned()))?;
    Ok(Resolved { node, sources })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{all, find};

    #[test]
    fn later_layers_win_and_say_where_they_come_from() {
        let all = all();
        let env = NodeSettings::default().with_env(&|name| match name {
            "KYBERNATE_NODE_RUNC" => Some("/env/runc".into()),
            "KYBERNATE_NODE_BIN_DIR" => Some("/env/bin".into()),
            _ => None,
        });
        let mut flag = NodeSettings::default();
        flag.set("runc", "/flag/runc").unwrap();
        let overrides = [
            (Source::Environment("KYBERNATE_NODE_…".into()), env),
            (Source::Flag("--node".into()), flag),
        ];
        let profile = find(&all, "kubeadm").unwrap();
        let found = resolve(profile, &Root::new("/nonexistent"), &overrides).unwrap();
        assert_eq!(found.node.runc, Path::new("/flag/runc"));
        assert_eq!(found.sources["runc"], Source::Flag("--node".into()));
        assert_eq!(found.node.bin_dir, Path::new("/env/bin"));
        assert_eq!(
            found.sources["kubelet_root"],
            Source::Profile("kubeadm".into())
        );
    }

    #[test]
    fn keys_and_values_are_checked() {
        let mut settings = NodeSettings::default();
        let err = settings.set("rnuc", "/x").unwrap_err().to_string();
        assert!(
            err.contains("rnuc") && err.contains("containerd_socket"),
            "{err}"
        );
        settings.set("runc", "bin/runc").unwrap();
        let all = all();
        let profile = find(&all, "kubeadm").unwrap();
        let overrides = [(Source::Flag("--node".into()), settings)];
        let err = resolve(profile, &Root::new("/nonexistent"), &overrides).unwrap_err();
        assert!(matches!(err, NodeError::Relative { .. }), "{err}");
    }

    #[test]
    fn the_first_place_that_exists_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("usr/sbin")).unwrap();
        std::fs::write(dir.path().join("usr/sbin/runc"), "").unwrap();
        let all = all();
        let profile = find(&all, "kubeadm").unwrap();
        let found = resolve(profile, &Root::new(dir.path()), &[]).unwrap();
        assert_eq!(found.node.runc, Path::new("/usr/sbin/runc"));
    }
}
