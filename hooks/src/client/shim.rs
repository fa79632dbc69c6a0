//! Which shim a container runs under. containerd does not tell: a registration by
//! `runtime_path` looks like runc's own in its records. The parent of the container's first
//! process is the shim.

use std::{fs, path::Path};

use kybernate_config::names::{RUNTIME_TYPE, SHIM_BINARY};

/// How containerd names every shim.
const SHIM_PREFIX: &str = "containerd-shim-";

/// The shim or runtime that is known not to be ours; `None` also where nothing can be seen,
/// for example from another PID namespace.
pub(crate) fn other(runtime: &str, pid: u32) -> Option<String> {
    if runtime == RUNTIME_TYPE {
        return None;
    }
    if !runtime.is_empty() && !runtime.starts_with("io.containerd.runc.") {
        return Some(format!("the runtime {runtime}"));
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let exe = fs::read_link(format!("/proc/{}/exe", parent(&stat)?)).ok()?;
    named(&exe)
}

/// The name of a program that is a shim and not ours.
fn named(exe: &Path) -> Option<String> {
    let name = exe.file_name()?.to_str()?;
    // The kernel says so of a file that an upgrade has replaced.
    let name = name.strip_suffix(" (deleted)").unwrap_or(name);
    (name.starts_with(SHIM_PREFIX) && name != SHIM_BINARY).then(|| name.to_owned())
}

/// The parent's pid in the text of `/proc/<pid>/stat`.
fn parent(stat: &str) -> Option<u32> {
    // The command name stands in parentheses and may itself hold some.
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_behind_any_name() {
        assert_eq!(parent("17 (sh) S 4 17 17 0"), Some(4));
        assert_eq!(parent("17 (a) S 9 (b)) S 4 17 17 0"), Some(4));
        assert_eq!(parent("17 sh S"), None);
    }

    #[test]
    fn only_other_shims_are_named() {
        assert_eq!(
            named(Path::new("/usr/bin/containerd-shim-runc-v2")).as_deref(),
            Some("containerd-shim-runc-v2")
        );
        assert_eq!(named(Path::new("/opt/containerd-shim-kybernate-v1")), None);
        assert_eq!(
            named(Path::new("/opt/containerd-shim-kybernate-v1 (deleted)")),
            None
        );
        assert_eq!(named(Path::new("/usr/bin/bash")), None);
    }

    #[test]
    fn a_foreign_runtime_type_is_named() {
        assert_eq!(
            other("io.containerd.runsc.v1", 1).unwrap(),
            "the runtime io.containerd.runsc.v1"
        );
        assert_eq!(other(RUNTIME_TYPE, 1), None);
    }
}
