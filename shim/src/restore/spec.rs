//! What `runc restore` does not do of a spec, and `runc create` does.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use super::RestoreError;
use crate::{container::ContainerFacts, spec::SpecFacts};

/// Does it. Everything that a restore needs to find in the root is there by now.
pub fn complete(facts: &ContainerFacts) -> Result<(), RestoreError> {
    let mut spec = SpecFacts::read_whole(&facts.bundle)?;
    // runc follows links when it makes a container; at restore it hands names to CRIU, which would
    // mount the link itself (criu/mount-v2.c).
    if resolve(&mut spec, |source| fs::canonicalize(source).ok()) {
        SpecFacts::write_whole(&facts.bundle, &spec)?;
    }
    if spec.pointer("/root/readonly").and_then(Value::as_bool) == Some(true) {
        make_read_only(&facts.rootfs)?;
    }
    Ok(())
}

/// `runc create` does that itself; `runc restore` of runc 1.1 leaves it to CRIU, which restores no
/// flags of the root.
fn make_read_only(rootfs: &Path) -> Result<(), RestoreError> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(None::<&str>, rootfs, None::<&str>, flags, None::<&str>).map_err(|errno| {
        RestoreError::Host {
            action: "make read-only",
            path: rootfs.into(),
            source: errno.into(),
        }
    })
}

/// Names the sources of bind mounts without links, and tells whether that changed any. A source
/// that can't be resolved stays: runc says why.
fn resolve(spec: &mut Value, canonical: impl Fn(&Path) -> Option<PathBuf>) -> bool {
    let mounts = spec.get_mut("mounts").and_then(Value::as_array_mut);
    let mut changed = false;
    for mount in mounts.into_iter().flatten().filter(|mount| is_bind(mount)) {
        let source = mount.get("source").and_then(Value::as_str).map(Path::new);
        let source = source.filter(|source| source.is_absolute());
        let Some(resolved) = source.and_then(|path| canonical(path).filter(|to| to != path)) else {
            continue;
        };
        if let Some(resolved) = resolved.to_str() {
            mount["source"] = json!(resolved);
            changed = true;
        }
    }
    changed
}

fn is_bind(mount: &Value) -> bool {
    let options = mount.get("options").and_then(Value::as_array);
    let options = options.into_iter().flatten().filter_map(Value::as_str);
    mount.get("type").and_then(Value::as_str) == Some("bind")
        || options
            .into_iter()
            .any(|option| matches!(option, "bind" | "rbind"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_of_bind_mounts_are_named_without_links() {
        let mut spec = json!({"mounts": [
            {"destination": "/a", "source": "/link", "options": ["rbind", "ro"]},
            {"destination": "/b", "source": "/link", "type": "bind"},
            {"destination": "/c", "source": "/link", "type": "tmpfs"},
            {"destination": "/d", "source": "/plain", "type": "bind"},
            {"destination": "/e", "source": "/missing", "type": "bind"},
        ]});
        let canonical = |path: &Path| match path.to_str() {
            Some("/link") => Some("/target".into()),
            Some("/missing") => None,
            _ => Some(path.to_owned()),
        };
        assert!(resolve(&mut spec, canonical));
        let sources: Vec<_> = (0..5)
            .map(|n| spec["mounts"][n]["source"].as_str())
            .collect();
        let expected = ["/target", "/target", "/link", "/plain", "/missing"];
        assert_eq!(sources, expected.map(Some));
        assert!(!resolve(&mut spec, canonical));
        assert!(!resolve(&mut json!({}), canonical));
    }
}
