//! The facts of an OCI runtime spec (`config.json` in the bundle) that the shim itself needs.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader},
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// Name of the spec in a bundle.
pub const CONFIG_FILE: &str = "config.json";

/// Annotations that put containers into one shim, in this order.
pub const GROUP_ANNOTATIONS: [&str; 2] = [
    "io.containerd.runc.v2.group",
    kybernate_config::names::CRI_SANDBOX_ID,
];

/// What the shim takes from a spec.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecFacts {
    /// `annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `linux.cgroupsPath`.
    pub cgroups_path: Option<String>,
    /// Whether the container's init is the first process of a PID namespace of its own, so
    /// that the kernel ends the other processes with it.
    pub owns_pid_namespace: bool,
    /// `root.path`; relative to the bundle when it is not absolute.
    pub root: PathBuf,
}

/// Why a spec could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The file can't be read.
    #[error("cannot read the runtime spec {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file can't be written.
    #[error("cannot write the runtime spec {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not a runtime spec.
    #[error("the runtime spec {path} does not parse: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parser's message.
        source: serde_json::Error,
    },
}

#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    linux: Option<Linux>,
    #[serde(default)]
    root: Option<Root>,
}

#[derive(Deserialize)]
struct Linux {
    #[serde(default, rename = "cgroupsPath")]
    cgroups_path: Option<String>,
    #[serde(default)]
    namespaces: Option<Vec<Namespace>>,
}

#[derive(Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

#[derive(Deserialize)]
struct Root {
    #[serde(default)]
    path: PathBuf,
}

impl SpecFacts {
    /// Reads the spec of a bundle.
    pub fn read(bundle: &Path) -> Result<Self, SpecError> {
        let path = bundle.join(CONFIG_FILE);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(source) => return Err(SpecError::Read { path, source }),
        };
        let spec = serde_json::from_reader(BufReader::new(file))
            .map_err(|source| SpecError::Parse { path, source })?;
        Ok(Self::from_spec(spec))
    }

    /// The whole spec of a bundle. It is large, so nobody keeps it.
    pub fn read_whole(bundle: &Path) -> Result<serde_json::Value, SpecError> {
        let path = bundle.join(CONFIG_FILE);
        let text = std::fs::read(&path).map_err(|source| SpecError::Read {
            path: path.clone(),
            source,
        })?;
        serde_json::from_slice(&text).map_err(|source| SpecError::Parse { path, source })
    }

    /// Makes `spec` the spec of a bundle.
    pub fn write_whole(bundle: &Path, spec: &serde_json::Value) -> Result<(), SpecError> {
        let path = bundle.join(CONFIG_FILE);
        let text = serde_json::to_vec(spec).expect("JSON that was read can be written");
        std::fs::write(&path, text).map_err(|source| SpecError::Write { path, source })
    }

    /// Parses the text of a spec.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text).map(Self::from_spec)
    }

    fn from_spec(spec: Spec) -> Self {
        let (cgroups_path, namespaces) = spec.linux.map_or((None, Vec::new()), |l| {
            (l.cgroups_path, l.namespaces.unwrap_or_default())
        });
        Self {
            annotations: spec.annotations.unwrap_or_default(),
            cgroups_path: cgroups_path.filter(|path| !path.is_empty()),
            owns_pid_namespace: namespaces
                .iter()
                .any(|n| n.kind == "pid" && n.path.is_empty()),
            root: spec.root.map_or_else(|| "rootfs".into(), |root| root.path),
        }
    }

    /// The id of the group whose containers share a shim; `id` when the container is alone.
    #[must_use]
    pub fn group<'a>(&'a self, id: &'a str) -> &'a str {
        GROUP_ANNOTATIONS
            .iter()
            .find_map(|name| self.annotations.get(*name))
            .filter(|group| !group.is_empty())
            .map_or(id, String::as_str)
    }

    /// Whether `cgroupsPath` has systemd's form `slice:prefix:name`.
    ///
    /// containerd writes this form exactly when the node's cgroups are systemd's, whatever
    /// the runtime's options say or fail to say.
    #[must_use]
    pub fn has_systemd_cgroup(&self) -> bool {
        self.cgroups_path.as_deref().is_some_and(|path| {
            let mut parts = path.split(':');
            let slice = parts.next().unwrap_or_default();
            let rest = (parts.next(), parts.next(), parts.next());
            (slice.is_empty() || slice.ends_with(".slice"))
                && matches!(rest, (Some(_), Some(name), None) if !name.is_empty())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_cgroup(path: &str) -> bool {
        let text = format!(r#"{{"linux":{{"cgroupsPath":"{path}"}}}}"#);
        SpecFacts::parse(&text).unwrap().has_systemd_cgroup()
    }

    #[test]
    fn systemd_paths_are_told_by_their_form() {
        assert!(with_cgroup(
            "kubepods-burstable-pod1.slice:cri-containerd:abc"
        ));
        assert!(with_cgroup(":runc:abc"));
        assert!(!with_cgroup("/kubepods/burstable/pod1/abc"));
        assert!(!with_cgroup("/a:b:c"));
        assert!(!with_cgroup("a.slice:b"));
        assert!(!with_cgroup(""));
    }

    #[test]
    fn a_joined_pid_namespace_is_not_owned() {
        let spec = |ns: &str| {
            SpecFacts::parse(&format!(r#"{{"linux":{{"namespaces":[{ns}]}}}}"#))
                .unwrap()
                .owns_pid_namespace
        };
        assert!(spec(r#"{"type":"mount"},{"type":"pid"}"#));
        assert!(!spec(r#"{"type":"pid","path":"/proc/7/ns/pid"}"#));
        assert!(!spec(r#"{"type":"mount"}"#));
    }

    #[test]
    fn the_runc_group_wins_over_the_sandbox() {
        let facts =
            |notes: &str| SpecFacts::parse(&format!(r#"{{"annotations":{{{notes}}}}}"#)).unwrap();
        assert_eq!(facts("").group("me"), "me");
        let sandbox = r#""io.kubernetes.cri.sandbox-id":"pod""#;
        assert_eq!(facts(sandbox).group("me"), "pod");
        let both = format!(r#"{sandbox},"io.containerd.runc.v2.group":"g""#);
        assert_eq!(facts(&both).group("me"), "g");
    }

    #[test]
    fn null_sections_are_empty_ones() {
        let facts = SpecFacts::parse(r#"{"annotations":null,"linux":null}"#).unwrap();
        assert!(facts.annotations.is_empty() && !facts.owns_pid_namespace);
        assert_eq!(facts.root, PathBuf::from("rootfs"));
    }
}
