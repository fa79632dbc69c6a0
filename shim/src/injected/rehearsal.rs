//! Finds out what a node's runtime makes of a container, before it is restored.
//!
//! `runc restore` runs no createContainer hook, and a runtime that wraps runc changes specs for
//! `create` alone. So the runtime creates the container first, under another name, from the same
//! spec and in the same root: hooks run, nothing of the image does. Its mounts and the spec that
//! the runtime made of ours are kept, and the container is deleted again.

use std::{collections::BTreeSet, fs, io, path::Path};

use kybernate_oci::manifest::Mount;
use serde_json::{Value, json};

use super::Tree;
use crate::{
    container::{ContainerFacts, read_pid},
    runc::RuncError,
    spec::{SpecError, SpecFacts},
};

/// Its bundle, in the container's.
const BUNDLE: &str = "rehearsal";
/// Name of the file with the first process in it.
const PID_FILE: &str = "pid";
/// What a rehearsal changes in a spec, and changes back in what the runtime made of it.
const OWN: [&str; 4] = [
    "/root/path",
    "/process/terminal",
    "/linux/cgroupsPath",
    "/hooks/poststop",
];
/// Hooks that runc runs at restore, too, before the container has its mounts.
const EARLY_HOOKS: [&str; 2] = ["/hooks/prestart", "/hooks/createRuntime"];
/// What NVIDIA's programs are named like. They put mounts into a container, and would fail where
/// there is no `/proc` yet.
const NVIDIA: &str = "nvidia-";

/// Why there is nothing to learn.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    /// The spec.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The runtime does not create the container.
    #[error("the runtime can't create the container that is to be restored: {0}")]
    Create(RuncError),
    /// The node.
    #[error("cannot {action} for the rehearsal of a container: {source}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Something is not there.
    #[error(
        "the archived processes had {} from hooks outside the spec, and this node's hooks mount \
         nothing there; they come from NVIDIA's container toolkit in most cases: restore on a node \
         with the same driver version and the same toolkit configuration, in a pod that asks for \
         the same GPUs", missing.join(", ")
    )]
    Missing {
        /// Mount points.
        missing: Vec<String>,
    },
}

/// What a rehearsal has shown.
#[derive(Debug)]
pub struct Rehearsal {
    /// The mounts that hooks made.
    pub mounts: Vec<Tree>,
}

/// What a container is called in its rehearsal.
#[must_use]
pub fn name(id: &str) -> String {
    format!("{id}-rehearsal")
}

impl Rehearsal {
    /// Whether one is needed: the archive has mounts of hooks, the runtime may change the spec, or
    /// nothing is known of the images (`expected` is `None`) and the spec has hooks.
    #[must_use]
    pub fn is_needed(facts: &ContainerFacts, spec: &Value, expected: Option<&[Mount]>) -> bool {
        let has_hooks = || {
            let hooks = spec.get("hooks").and_then(Value::as_object);
            hooks.is_some_and(|hooks| {
                ["prestart", "createRuntime", "createContainer"]
                    .iter()
                    .any(|kind| hooks.get(*kind).is_some_and(|hooks| !hooks.is_null()))
            })
        };
        facts.runc.is_wrapped()
            || expected.map_or_else(has_hooks, |mounts| mounts.iter().any(|m| m.injected))
    }

    /// Creates and deletes the container. `started` hears of its first process. Afterwards the
    /// bundle has the spec that the runtime made of it.
    ///
    /// # Errors
    /// The runtime fails, or nothing is mounted where the archive's processes `expected` it.
    pub async fn run(
        facts: &ContainerFacts,
        expected: Option<&[Mount]>,
        started: impl FnOnce(u32) -> io::Result<()>,
    ) -> Result<Self, RehearsalError> {
        let bundle = facts.bundle.join(BUNDLE);
        let kept = Self::run_in(&bundle, facts, started).await;
        if let Err(error) = facts.runc.delete(&name(&facts.id), true).await {
            tracing::warn!(id = facts.id, %error, "a rehearsal is not deleted");
        }
        let removed = remove(&bundle);
        let rehearsal = kept?;
        removed.map_err(host("remove its bundle"))?;
        rehearsal.check(expected.unwrap_or_default())?;
        Ok(rehearsal)
    }

    async fn run_in(
        bundle: &Path,
        facts: &ContainerFacts,
        started: impl FnOnce(u32) -> io::Result<()>,
    ) -> Result<Self, RehearsalError> {
        let original = SpecFacts::read_whole(&facts.bundle)?;
        remove(bundle).map_err(host("remove an old bundle"))?;
        fs::create_dir(bundle).map_err(host("make a bundle"))?;
        let spec = rehearsed(original.clone(), &facts.rootfs);
        SpecFacts::write_whole(bundle, &spec)?;

        let pid_file = bundle.join(PID_FILE);
        let mut command = facts.runc.command("create");
        command
            .arg("--bundle")
            .arg(bundle)
            .arg("--pid-file")
            .arg(&pid_file);
        if facts.options.no_pivot_root {
            command.arg("--no-pivot");
        }
        command.arg(name(&facts.id));
        let created = facts.runc.run_attached(command).await;
        created.map_err(RehearsalError::Create)?;
        let pid = read_pid(&pid_file).map_err(host("read the pid"))?;
        started(pid).map_err(host("note the process"))?;

        let made = SpecFacts::read_whole(bundle)?;
        let mounts = tokio::task::spawn_blocking({
            let made = made.clone();
            move || {
                let injected = super::of(pid, &made)?;
                Tree::clone_all(pid, &injected)
            }
        });
        let mounts = mounts
            .await
            .unwrap_or_else(|bug| Err(io::Error::other(bug)));
        let mounts = mounts.map_err(host("take over mounts"))?;
        SpecFacts::write_whole(&facts.bundle, &restored(made, &original))?;
        Ok(Self { mounts })
    }

    /// Makes sure that nothing is missing.
    fn check(&self, expected: &[Mount]) -> Result<(), RehearsalError> {
        let have: BTreeSet<&str> = self.mounts.iter().map(|tree| &*tree.destination).collect();
        let missing: Vec<String> = expected
            .iter()
            .filter(|mount| mount.injected && !have.contains(&*mount.destination))
            .map(|mount| mount.destination.clone())
            .collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(RehearsalError::Missing { missing })
        }
    }
}

/// The spec of a rehearsal: it has no terminal, a cgroup of its own, and nobody hears of its end.
fn rehearsed(mut spec: Value, rootfs: &Path) -> Value {
    set(&mut spec, "/root/path", Some(json!(rootfs)));
    if spec.pointer("/process/terminal").is_some() {
        set(&mut spec, "/process/terminal", Some(json!(false)));
    }
    let cgroup = spec.pointer("/linux/cgroupsPath").and_then(Value::as_str);
    if let Some(path) = cgroup.map(name) {
        set(&mut spec, "/linux/cgroupsPath", Some(json!(path)));
    }
    set(&mut spec, "/hooks/poststop", None);
    spec
}

/// The spec that the runtime `made` of a rehearsal's, for the container itself.
fn restored(mut made: Value, original: &Value) -> Value {
    for at in OWN {
        set(&mut made, at, original.pointer(at).cloned());
    }
    for at in EARLY_HOOKS {
        if let Some(hooks) = made.pointer_mut(at).and_then(Value::as_array_mut) {
            hooks.retain(|hook| !is_nvidias(hook));
        }
    }
    made
}

fn is_nvidias(hook: &Value) -> bool {
    let path = hook.get("path").and_then(Value::as_str).map(Path::new);
    let name = path
        .and_then(Path::file_name)
        .and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with(NVIDIA))
}

/// Sets or removes what is at a pointer of two parts.
fn set(spec: &mut Value, at: &str, value: Option<Value>) {
    let (parent, name) = at.rsplit_once('/').expect("a pointer has parts");
    match (
        spec.pointer_mut(parent).and_then(Value::as_object_mut),
        value,
    ) {
        (Some(parent), Some(value)) => drop(parent.insert(name.into(), value)),
        (Some(parent), None) => drop(parent.remove(name)),
        (None, _) => {}
    }
}

fn remove(bundle: &Path) -> io::Result<()> {
    match fs::remove_dir_all(bundle) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn host(action: &'static str) -> impl FnOnce(io::Error) -> RehearsalError {
    move |source| RehearsalError::Host { action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Value {
        json!({
            "root": {"path": "rootfs", "readonly": true},
            "process": {"terminal": true, "args": ["a"]},
            "linux": {"cgroupsPath": "/pods/a"},
            "hooks": {
                "createRuntime": [
                    {"path": "/usr/bin/nvidia-container-runtime-hook"},
                    {"path": "/opt/mine"},
                ],
                "poststop": [{"path": "/opt/mine"}],
            },
        })
    }

    #[test]
    fn a_rehearsal_stays_apart_and_its_traces_go() {
        let rehearsed = rehearsed(spec(), Path::new("/run/a/rootfs"));
        assert_eq!(rehearsed["root"]["path"], "/run/a/rootfs");
        assert_eq!(rehearsed["process"]["terminal"], false);
        assert_eq!(rehearsed["linux"]["cgroupsPath"], "/pods/a-rehearsal");
        assert!(rehearsed["hooks"].get("poststop").is_none());

        let mut made = rehearsed;
        made["mounts"] = json!([{"destination": "/usr/lib/libcuda.so"}]);
        let restored = restored(made, &spec());
        let mut expected = spec();
        expected["mounts"] = json!([{"destination": "/usr/lib/libcuda.so"}]);
        expected["hooks"]["createRuntime"] = json!([{"path": "/opt/mine"}]);
        assert_eq!(restored, expected);
    }

    #[test]
    fn a_spec_without_any_of_it_stays_without() {
        let bare = json!({"root": {"path": "rootfs"}});
        let rehearsed = rehearsed(bare.clone(), Path::new("/r"));
        assert_eq!(rehearsed, json!({"root": {"path": "/r"}}));
        assert_eq!(restored(rehearsed, &bare), bare);
    }

    #[test]
    fn what_the_nodes_hooks_do_not_mount_is_named() {
        let mount = |destination: &str, injected| Mount {
            destination: destination.into(),
            injected,
            ..Mount::default()
        };
        let expected = [
            mount("/etc/hosts", false),
            mount("/usr/lib/libcuda.so.580", true),
        ];
        let error = Rehearsal { mounts: Vec::new() }
            .check(&expected)
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("had /usr/lib/libcuda.so.580 from hooks"),
            "{text}"
        );
    }
}
