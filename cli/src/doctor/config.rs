//! How containerd's CRI plugin is configured: the runtime handler of the class.
//!
//! The running containerd tells in its CRI status, as JSON (containerd 1.7.24 and 2.1.9,
//! `pkg/cri/config` and `internal/cri/config`). Where it does not answer, its file is read.

use kybernate_config::names::{RUNC_RUNTIME_TYPE, RUNTIME_HANDLER, RUNTIME_TYPE, SHIM_BINARY};
use serde::Deserialize;

use super::Finding;

/// The part of a handler's configuration that matters.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Handler {
    /// Runtime type.
    #[serde(alias = "runtimeType")]
    pub runtime_type: String,
    /// The shim's path, if it is not found by type.
    #[serde(alias = "runtimePath")]
    pub runtime_path: String,
    /// Globs of the container annotations that reach the spec.
    #[serde(alias = "ContainerAnnotations", deserialize_with = "null_is_empty")]
    pub container_annotations: Vec<String>,
    /// The shim's options.
    #[serde(deserialize_with = "null_is_empty")]
    pub options: Options,
}

/// The part of a shim's options that matters.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Options {
    /// runc's name or path.
    pub binary_name: String,
    /// Whether systemd makes the cgroups.
    pub systemd_cgroup: bool,
}

/// Go writes `null` for slices and maps that were never made.
fn null_is_empty<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Finds a handler in the `config` of a verbose CRI status. The error says what is there.
pub fn from_status(text: &str, name: &str) -> Result<Handler, String> {
    let config: serde_json::Value =
        serde_json::from_str(text).map_err(|e| format!("the CRI's config does not parse: {e}"))?;
    let runtimes = &config["containerd"]["runtimes"];
    let Some(found) = runtimes.get(name) else {
        let names: Vec<&str> = runtimes
            .as_object()
            .map(|map| map.keys().map(String::as_str).collect())
            .unwrap_or_default();
        return Err(absent(name, &names));
    };
    serde_json::from_value(found.clone()).map_err(|e| format!("handler {name}: {e}"))
}

/// Finds a handler in the text of a config file of version 2 or 3.
pub fn from_file(text: &str, name: &str) -> Result<Handler, String> {
    let config: toml::Table =
        toml::from_str(text).map_err(|e| format!("the config does not parse: {e}"))?;
    let mut names = Vec::new();
    for plugin in config
        .get("plugins")
        .and_then(toml::Value::as_table)
        .into_iter()
        .flatten()
    {
        let Some(runtimes) = plugin
            .1
            .get("containerd")
            .and_then(|containerd| containerd.get("runtimes"))
            .and_then(toml::Value::as_table)
        else {
            continue;
        };
        if let Some(found) = runtimes.get(name) {
            return found
                .clone()
                .try_into()
                .map_err(|e| format!("handler {name}: {e}"));
        }
        names.extend(runtimes.keys().map(String::as_str));
    }
    Err(absent(name, &names))
}

fn absent(name: &str, names: &[&str]) -> String {
    match names {
        [] => format!("no handler {name:?}, nor any other"),
        _ => format!("no handler {name:?}, only {}", names.join(", ")),
    }
}

/// What to write into containerd's config.
pub fn registration(major: u32, name: &str) -> String {
    let plugin = if major >= 2 {
        "io.containerd.cri.v1.runtime"
    } else {
        "io.containerd.grpc.v1.cri"
    };
    format!(
        "add to containerd's config.toml and restart containerd:\n\
         [plugins.'{plugin}'.containerd.runtimes.{name}]\n\
         \x20 runtime_type = \"{RUNC_RUNTIME_TYPE}\"\n\
         \x20 runtime_path = \"/usr/local/bin/{SHIM_BINARY}\"\n\
         \x20 container_annotations = [\"kybernate.io/*\"]"
    )
}

/// Judges a handler of containerd `major`. `executable` tells whether a path or name can be
/// executed.
pub fn judge(major: u32, handler: &Handler, executable: impl Fn(&str) -> bool) -> Vec<Finding> {
    const CHECK: &str = "runtime handler";
    let Handler {
        runtime_type,
        runtime_path,
        container_annotations,
        ..
    } = handler;
    let program = if runtime_path.is_empty() {
        SHIM_BINARY
    } else {
        runtime_path
    };
    let mut findings = Vec::new();
    let by_path =
        runtime_type == RUNC_RUNTIME_TYPE && runtime_path.rsplit('/').next() == Some(SHIM_BINARY);
    if by_path && executable(runtime_path) {
        findings.push(Finding::ok(
            CHECK,
            format!("{runtime_type} at {runtime_path}"),
        ));
    } else if by_path {
        findings.push(Finding::fail(
            CHECK,
            format!("{runtime_path} is not there or not executable"),
            format!("install {SHIM_BINARY} there, or mend runtime_path in containerd's config"),
        ));
    } else if runtime_type == RUNTIME_TYPE && major < 2 {
        findings.push(Finding::fail(
            CHECK,
            format!("{runtime_type}, to which containerd 1 hands no checkpoint options"),
            registration(major, RUNTIME_HANDLER),
        ));
    } else if runtime_type == RUNTIME_TYPE && executable(program) {
        findings.push(Finding::ok(CHECK, runtime_type.clone()));
    } else if runtime_type == RUNTIME_TYPE {
        findings.push(Finding::warn(
            CHECK,
            format!("{runtime_type}, but {program} can't be executed from here"),
            "put it into containerd's PATH or beside containerd, or mend runtime_path",
        ));
    } else {
        findings.push(Finding::fail(
            CHECK,
            format!("runs {runtime_type} {runtime_path}, which is another shim"),
            format!("set runtime_path to {SHIM_BINARY} in containerd's config"),
        ));
    }
    if container_annotations.iter().any(|glob| matches_ours(glob)) {
        findings.push(Finding::ok("annotations", "kybernate.io/* reach the shim"));
    } else {
        findings.push(Finding::warn(
            "annotations",
            "kybernate.io/* do not reach the shim, so `kybernate restore` can't work",
            "set container_annotations = [\"kybernate.io/*\"] for the handler in containerd's config",
        ));
    }
    findings
}

/// Whether Go's `path.Match` would let our annotations through, for the globs people write.
fn matches_ours(glob: &str) -> bool {
    matches!(
        glob,
        "kybernate.io/*" | "kybernate.io/restore-from" | "*/*" | "kybernate*/*"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    const STATUS: &str = r#"{"containerd": {"defaultRuntimeName": "runc", "runtimes": {
      "runc": {"runtimeType": "io.containerd.runc.v2", "runtimePath": "",
               "ContainerAnnotations": null, "options": null},
      "kybernate": {"runtimeType": "io.containerd.runc.v2",
                    "runtimePath": "/usr/local/bin/containerd-shim-kybernate-v1",
                    "PodAnnotations": [], "ContainerAnnotations": ["kybernate.io/*"],
                    "options": {"SystemdCgroup": true, "BinaryName": "/opt/runc"}}}},
      "containerdRootDir": "/var/lib/containerd"}"#;

    const FILE: &str = r#"
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "pause:3"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kybernate]
    runtime_type = "io.containerd.kybernate.v1"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kybernate.options]
      SystemdCgroup = true
"#;

    #[test]
    fn a_running_containerd_tells_its_handlers() {
        let handler = from_status(STATUS, "kybernate").unwrap();
        assert_eq!(handler.options.binary_name, "/opt/runc");
        assert!(handler.options.systemd_cgroup);
        assert!(
            judge(2, &handler, |_| true)
                .iter()
                .all(|f| f.level == Level::Ok)
        );
        assert_eq!(judge(2, &handler, |_| false)[0].level, Level::Fail);

        let runc = judge(2, &from_status(STATUS, "runc").unwrap(), |_| true);
        assert_eq!((runc[0].level, runc[1].level), (Level::Fail, Level::Warn));
        let err = from_status(STATUS, "other").unwrap_err();
        assert!(err.contains("kybernate, runc"), "{err}");
        assert!(
            from_status("{}", "x")
                .unwrap_err()
                .contains("nor any other")
        );
        assert!(from_status("[", "x").is_err());
    }

    #[test]
    fn a_config_file_tells_them_too() {
        let handler = from_file(FILE, "kybernate").unwrap();
        assert_eq!(handler.runtime_type, RUNTIME_TYPE);
        assert!(handler.options.systemd_cgroup);
        let found = judge(2, &handler, |name| name == SHIM_BINARY);
        assert_eq!((found[0].level, found[1].level), (Level::Ok, Level::Warn));
        assert_eq!(judge(2, &handler, |_| false)[0].level, Level::Warn);
        assert_eq!(judge(1, &handler, |_| true)[0].level, Level::Fail);
        assert!(
            from_file(FILE, "runc")
                .unwrap_err()
                .contains("only kybernate")
        );
        assert!(from_file("version = ", "runc").is_err());
    }

    #[test]
    fn what_is_advised_registers_the_handler() {
        for major in [1, 2] {
            let advice = registration(major, "kybernate");
            let text = advice.split_once('\n').unwrap().1;
            let handler = from_file(text, "kybernate").unwrap();
            assert!(
                judge(major, &handler, |_| true)
                    .iter()
                    .all(|f| f.level == Level::Ok),
                "{text}"
            );
        }
    }
}
