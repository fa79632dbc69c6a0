//! Settings: flag > environment (`KYBERNATE_…`) > `/etc/kybernate/config.toml` > node profile >
//! default. The node profile's values are in `node.toml` beside the file.
//!
//! Parsing is apart from reading, so that tests feed text and maps.

use std::path::{Path, PathBuf};

use kybernate_age::Recipient;
use serde::{Deserialize, Serialize};

use crate::{
    layers,
    names::RUNTIME_HANDLER,
    profile::NodeSettings,
    wishes::{TriggerSettings, WishSettings},
};

mod error;
mod gpu;
mod hooks;

pub use error::SettingsError;
pub use gpu::{GpuSettings, Thp};
pub use hooks::{HooksSettings, RetentionSettings, RetentionSize};

/// Where the settings file lies unless `KYBERNATE_CONFIG` names another.
pub const DEFAULT_PATH: &str = "/etc/kybernate/config.toml";

/// Everything that an administrator can set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How checkpoints are taken.
    pub checkpoint: CheckpointSettings,
    /// How containers are restored.
    pub restore: RestoreSettings,
    /// The container runtime of the node.
    pub containerd: ContainerdSettings,
    /// Which pods are prepared for checkpoints, and what they may be restored from.
    pub nri: NriSettings,
    /// What happens to GPU state.
    pub gpu: GpuSettings,
    /// What pods may wish for their containers.
    pub wishes: WishSettings,
    /// Checkpoints that containers ask for themselves.
    pub trigger: TriggerSettings,
    /// Paths and commands of the node that its profile does not tell right.
    pub node: NodeSettings,
    /// The process between kubelet and containerd.
    pub hooks: HooksSettings,
    /// How many archives kubelet's checkpoint API may leave on the node.
    pub retention: RetentionSettings,
}

/// `[checkpoint]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointSettings {
    /// Compression level unless the request names one: `fast`, `default`, `high`, or a number.
    pub level: String,
    /// Memory for frames that wait for compression: `auto` or a size like `256MiB`.
    pub buffer: String,
    /// Directory for CRIU's small images while a dump runs. Best on tmpfs.
    pub work_dir: PathBuf,
    /// Seconds after which a checkpoint rolls back, whatever deadline its caller set.
    pub timeout_s: u64,
    /// Seconds after a checkpoint within which containerd must resume a container that it paused
    /// for it; later the shim does.
    pub resume_within_s: u64,
    /// Where it is noted what a checkpoint or restore has to undo should its shim die. Best on
    /// tmpfs: after a restart of the node there is nothing to undo.
    pub journal_dir: PathBuf,
    /// Who can read what is written: age recipients. Empty for archives in plain text.
    pub encrypt_to: Vec<Recipient>,
    /// Whether containerd gets plain CRIU images though `encrypt_to` is set. It packs them itself,
    /// and nothing encrypts them.
    pub plain_unencrypted: bool,
}

/// `[restore]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RestoreSettings {
    /// Where images are staged when memory allows.
    pub memory_dir: PathBuf,
    /// Where images are staged when they would take too much memory.
    pub disk_dir: PathBuf,
    /// Whether an archive is restored only if one of `trusted_keys` has signed it.
    pub require_signature: bool,
    /// PEM files of the Ed25519 public keys whose signatures count.
    pub trusted_keys: Vec<PathBuf>,
    /// Files of the age identities that open encrypted archives; root's alone.
    pub identities: Vec<PathBuf>,
    /// Whether an encrypted archive is staged in `disk_dir`, in plain text, when memory is too
    /// small for it.
    pub decrypt_to_disk: bool,
}

/// `[containerd]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContainerdSettings {
    /// containerd's gRPC socket.
    pub socket: PathBuf,
}

/// `[nri]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NriSettings {
    /// Runtime handlers whose pods are prepared; no other pod is touched.
    pub handlers: Vec<String>,
    /// The runtime's NRI socket.
    pub socket: PathBuf,
    /// Name that the plugin registers under.
    pub name: String,
    /// Two digits; plugins with lower ones are asked first.
    pub index: String,
    /// Directories under which archives may lie that a pod names as its restore source.
    pub restore_dirs: Vec<PathBuf>,
}

impl Default for CheckpointSettings {
    fn default() -> Self {
        Self {
            level: "default".into(),
            buffer: "auto".into(),
            work_dir: "/run/kybernate/dump".into(),
            timeout_s: 3600,
            resume_within_s: 10,
            journal_dir: "/run/kybernate/journal".into(),
            encrypt_to: Vec::new(),
            plain_unencrypted: false,
        }
    }
}

impl Default for RestoreSettings {
    fn default() -> Self {
        Self {
            memory_dir: "/run/kybernate/restore".into(),
            disk_dir: "/var/lib/kybernate/restore".into(),
            require_signature: false,
            trusted_keys: Vec::new(),
            identities: Vec::new(),
            decrypt_to_disk: false,
        }
    }
}

impl Default for ContainerdSettings {
    fn default() -> Self {
        Self {
            socket: "/run/containerd/containerd.sock".into(),
        }
    }
}

impl Default for NriSettings {
    fn default() -> Self {
        Self {
            handlers: vec![RUNTIME_HANDLER.into()],
            socket: "/var/run/nri/nri.sock".into(),
            name: "kybernate".into(),
            index: "10".into(),
            restore_dirs: vec![
                "/var/lib/kubelet/checkpoints".into(),
                "/var/lib/kybernate".into(),
            ],
        }
    }
}

impl Settings {
    /// Reads the files and the environment of this process.
    ///
    /// A missing file means defaults; a file that is there must parse.
    pub fn load() -> Result<Self, SettingsError> {
        let env = |name: &str| std::env::var(name).ok();
        let path = env("KYBERNATE_CONFIG").map_or_else(|| PathBuf::from(DEFAULT_PATH), Into::into);
        let node = path.with_file_name(layers::NODE_FILE);
        let (below, text) = (layers::read(&node)?, layers::read(&path)?);
        layers::settings((&node, &below), (&path, &text))?.with_env(env)
    }

    /// Parses the text of a settings file; `path` is for messages alone.
    pub fn parse(path: &Path, text: &str) -> Result<Self, SettingsError> {
        toml::from_str(text).map_err(|error| SettingsError::parse(path, text, error))
    }

    /// Lays the environment over the file.
    pub fn with_env(mut self, get: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let path = |name: &str, to: &mut PathBuf| {
            if let Some(value) = get(name) {
                *to = value.into();
            }
        };
        path("KYBERNATE_WORK_DIR", &mut self.checkpoint.work_dir);
        path("KYBERNATE_JOURNAL_DIR", &mut self.checkpoint.journal_dir);
        path("KYBERNATE_RESTORE_MEMORY_DIR", &mut self.restore.memory_dir);
        path("KYBERNATE_RESTORE_DISK_DIR", &mut self.restore.disk_dir);
        path("KYBERNATE_CONTAINERD_SOCKET", &mut self.containerd.socket);
        path("KYBERNATE_NRI_SOCKET", &mut self.nri.socket);
        path("KYBERNATE_GPU_HELPER", &mut self.gpu.helper);
        path("KYBERNATE_GPU_LIBCUDA", &mut self.gpu.libcuda);
        path("KYBERNATE_HOOKS_SOCKET", &mut self.hooks.socket);
        path("KYBERNATE_RETENTION_DIR", &mut self.retention.dir);
        let text = |name: &str, to: &mut String| {
            if let Some(value) = get(name) {
                *to = value;
            }
        };
        text("KYBERNATE_LEVEL", &mut self.checkpoint.level);
        text("KYBERNATE_BUFFER", &mut self.checkpoint.buffer);
        text("KYBERNATE_NRI_NAME", &mut self.nri.name);
        text("KYBERNATE_NRI_INDEX", &mut self.nri.index);
        text("KYBERNATE_HOOKS_METRICS", &mut self.hooks.metrics);
        // Lists take the separators that people know: commas, and colons as in PATH.
        if let Some(value) = get("KYBERNATE_NRI_HANDLERS") {
            self.nri.handlers = value.split(',').map(|name| name.trim().into()).collect();
        }
        if let Some(value) = get("KYBERNATE_HOOKS_HANDLERS") {
            self.hooks.handlers = value.split(',').map(|name| name.trim().into()).collect();
        }
        if let Some(value) = get("KYBERNATE_NRI_RESTORE_DIRS") {
            self.nri.restore_dirs = value.split(':').map(Into::into).collect();
        }
        let number = |name: &'static str, to: &mut u64| {
            if let Some(value) = get(name) {
                *to = value
                    .parse()
                    .map_err(|_| SettingsError::Number { name, value })?;
            }
            Ok(())
        };
        number(
            "KYBERNATE_CHECKPOINT_TIMEOUT_S",
            &mut self.checkpoint.timeout_s,
        )?;
        number(
            "KYBERNATE_RESUME_WITHIN_S",
            &mut self.checkpoint.resume_within_s,
        )?;
        number("KYBERNATE_HOOKS_DRAIN_S", &mut self.hooks.drain_s)?;
        number("KYBERNATE_RETENTION_PER_POD", &mut self.retention.per_pod)?;
        number("KYBERNATE_RETENTION_PER_NODE", &mut self.retention.per_node)?;
        let size = |name: &'static str, to: &mut RetentionSize| {
            if let Some(value) = get(name) {
                *to = value
                    .try_into()
                    .map_err(|source| SettingsError::Size { name, source })?;
            }
            Ok(())
        };
        size("KYBERNATE_RETENTION_TOTAL", &mut self.retention.total)?;
        size("KYBERNATE_RETENTION_MIN_FREE", &mut self.retention.min_free)?;
        self.node = self.node.with_env(&get);
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_round_trip_through_toml() {
        let text = toml::to_string(&Settings::default()).unwrap();
        assert_eq!(
            Settings::parse(Path::new("x"), &text).unwrap(),
            Settings::default()
        );
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place() {
        let err = Settings::parse(Path::new("/c.toml"), "[checkpoint]\nlevle = \"fast\"\n")
            .unwrap_err()
            .to_string();
        assert!(
            err.contains("/c.toml") && err.contains("levle") && err.contains("line 2"),
            "{err}"
        );
    }

    #[test]
    fn environment_wins_over_the_file() {
        let file = "[checkpoint]\nlevel = \"high\"\nbuffer = \"1GiB\"\n";
        let settings = Settings::parse(Path::new("x"), file)
            .unwrap()
            .with_env(|name| (name == "KYBERNATE_LEVEL").then(|| "fast".into()))
            .unwrap();
        assert_eq!(settings.checkpoint.level, "fast");
        assert_eq!(settings.checkpoint.buffer, "1GiB");
    }

    #[test]
    fn lists_come_from_the_environment_too() {
        let settings = Settings::default()
            .with_env(|name| match name {
                "KYBERNATE_NRI_HANDLERS" => Some("kybernate, gpu".into()),
                "KYBERNATE_NRI_RESTORE_DIRS" => Some("/a:/b".into()),
                _ => None,
            })
            .unwrap();
        assert_eq!(settings.nri.handlers, ["kybernate", "gpu"]);
        assert_eq!(
            settings.nri.restore_dirs,
            [Path::new("/a"), Path::new("/b")]
        );
    }

    #[test]
    fn a_timeout_that_is_no_number_is_refused() {
        let err = Settings::default()
            .with_env(|name| (name == "KYBERNATE_CHECKPOINT_TIMEOUT_S").then(|| "soon".into()))
            .unwrap_err();
        assert!(err.to_string().contains("soon"));
    }

    #[test]
    fn sizes_are_checked_where_they_are_set() {
        let text = "[retention]\ntotal = \"50GiB\"\n";
        let settings = Settings::parse(Path::new("x"), text).unwrap();
        assert_eq!(settings.retention.total.bytes(), 50 << 30);
        assert_eq!(settings.retention.min_free.bytes(), 0);
        let err = Settings::parse(Path::new("x"), "[retention]\ntotal = \"much\"\n").unwrap_err();
        assert!(err.to_string().contains("much"), "{err}");
        let name = "KYBERNATE_RETENTION_MIN_FREE";
        let err = Settings::default()
            .with_env(|asked| (asked == name).then(|| "little".into()))
            .unwrap_err()
            .to_string();
        assert!(err.contains(name) && err.contains("little"), "{err}");
    }

    #[test]
    fn a_recipient_that_is_none_is_named_with_its_place() {
        let good = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";
        let text =
            |two: &str| format!("[checkpoint]\nencrypt_to = [\n  '{good}',\n  '{two}',\n]\n");
        let settings = Settings::parse(Path::new("x"), &text(good)).unwrap();
        assert_eq!(settings.checkpoint.encrypt_to[1].to_string(), good);
        let again = toml::to_string(&settings).unwrap();
        assert_eq!(Settings::parse(Path::new("x"), &again).unwrap(), settings);
        let bad = good.replace("zvk", "zvq");
        let error = Settings::parse(Path::new("/c.toml"), &text(&bad))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/c.toml") && error.contains(&bad) && error.contains("encrypt_to"),
            "{error}"
        );
    }

    #[test]
    fn the_shipped_file_says_what_the_defaults_are() {
        let text = include_str!("../systemd/hooks.toml");
        assert_eq!(
            Settings::parse(Path::new("hooks.toml"), text).unwrap(),
            Settings::default()
        );
    }
}
