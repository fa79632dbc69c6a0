//! Which shim a container runs under. containerd does not tell: a registration by
//! `runtime_path` looks like runc's own in its records. The parent of the container's first
//! process is the shim.

use std::{fs, path::Path};

use kybernate_config::names::{RUNTIME_TYPE, SHIM_BINARY};

/// How containerd names every shim.
const SHIM_PREFIX: &str = "containerd-shim-";

/// What is known about a container's shim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shim {
    /// It is ours.
    Ours,
    /// It is not; this is its name.
    Other(String),
    /// Nothing can be seen, for example from another PID namespace.
    Unknown,
}

/// The shim of a container with a runtime type and a first process.
pub(crate) fn of(runtime: &str, pid: u32) -> Shim {
    // `ctr run --runtime` also takes a path.
    let by_path = runtime.starts_with('/') && named(Path::new(runtime)) == Shim::Ours;
    if runtime == RUNTIME_TYPE || by_path {
        return Shim::Ours;
    }
    if !runtime.is_empty() && !is_runc(runtime) {
        return Shim::Other(format!("the runtime {runtime}"));
    }
    let exe = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        fs::read_link(format!("/proc/{}/exe", parent(&stat)?)).ok()
    };
    exe().map_or(Shim::Unknown, |exe| named(&exe))
}

/// Whether containerd takes a runtime of this type for runc's.
pub(crate) fn is_runc(runtime: &str) -> bool {
    runtime.starts_with("io.containerd.runc.")
}

/// What a program is.
fn named(exe: &Path) -> Shim {
    let Some(name) = exe.file_name().and_then(|name| name.to_str()) else {
        return Shim::Unknown;
    };
    // The kernel says so of a file that an upgrade has replaced.
    match name.strip_suffix(" (deleted)").unwrap_or(name) {
        SHIM_BINARY => Shim::Ours,
        other if other.starts_with(SHIM_PREFIX) => Shim::Other(other.to_owned()),
        _ => Shim::Unknown,
    }
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
    fn shims_are_told_by_their_programs() {
        assert_eq!(
            named(Path::new("/usr/bin/containerd-shim-runc-v2")),
            Shim::Other("containerd-shim-runc-v2".into())
        );
        assert_eq!(
            named(Path::new("/opt/containerd-shim-kybernate-v1")),
            Shim::Ours
        );
        assert_eq!(
            named(Path::new("/opt/containerd-shim-kybernate-v1 (deleted)")),
            Shim::Ours
        );
        assert_eq!(named(Path::new("/usr/bin/bash")), Shim::Unknown);
    }

    #[test]
    fn a_runtime_type_can_say_enough() {
        assert_eq!(
            of("io.containerd.runsc.v1", 1),
            Shim::Other("the runtime io.containerd.runsc.v1".into())
        );
        assert_eq!(of(RUNTIME_TYPE, 1), Shim::Ours);
        assert_eq!(of("/opt/containerd-shim-kybernate-v1", 1), Shim::Ours);
        // No process has this pid.
        assert_eq!(of("io.containerd.runc.v2", u32::MAX), Shim::Unknown);
    }
}
