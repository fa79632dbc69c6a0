//! The CRIU configuration file of one container.
//!
//! runc hands CRIU the file that the annotation `org.criu.config` names (runc 1.1+,
//! libcontainer/criu_linux.go) at dump and at restore. It holds what runc has no flag for,
//! and holds it for this container alone: `/etc/criu/runc.conf` would change every other
//! container of the node. The annotation must be there when the container is created; the
//! file is written anew before each dump and restore, for the CRIU that is there then.

use std::{fs, io, path::Path};

use serde_json::{Map, Value, json};

use super::Version;

/// The annotation that runc looks up.
pub const ANNOTATION: &str = "org.criu.config";
/// Name of the file in the bundle.
const FILE: &str = "criu.conf";
/// Name of the file in the bundle with the lines that the container wishes for.
const WISHED: &str = "criu.options";

/// The options for every version, one per line.
///
/// - `tcp-close`: established connections are not kept, neither in the dump nor at restore:
///   the pod has another address then. Without it one open connection fails the dump.
/// - `ghost-limit`: unlinked files that are still open go into the images up to this size;
///   CRIU's default of 1 MiB is smaller than an ordinary temporary file.
/// - `enable-external-masters`: mounts that hooks made with propagation don't fail the dump.
const OPTIONS: &str = "\
tcp-close
ghost-limit 1073741824
enable-external-masters
";

/// `network-lock skip`: nothing has to be locked for connections that are not kept, the
/// running container keeps its own, and neither iptables nor nftables need be installed.
/// CRIU 4.1 and older crash on the option when it comes from a file that RPC names.
const SKIP_NETWORK_LOCK: (Version, &str) = (Version { major: 4, minor: 2 }, "network-lock skip\n");

/// Points a spec at the file in `bundle`. Returns whether the spec changed: one that names a
/// file of its own keeps it.
pub fn annotate(bundle: &Path, spec: &mut Value) -> bool {
    let Some(spec) = spec.as_object_mut() else {
        return false;
    };
    let annotations = spec.entry("annotations").or_insert(Value::Null);
    if annotations.is_null() {
        *annotations = Value::Object(Map::new());
    }
    let Some(annotations) = annotations.as_object_mut() else {
        return false;
    };
    if annotations.contains_key(ANNOTATION) {
        return false;
    }
    annotations.insert(ANNOTATION.into(), json!(bundle.join(FILE)));
    true
}

/// Keeps lines for every [`write()`] of the bundle's file, behind those of the shim: CRIU takes
/// the last of two. They come from [`kybernate_config::wishes::CriuOptions`], which knows no
/// option that names a file.
pub fn keep_options(bundle: &Path, lines: &str) -> io::Result<()> {
    fs::write(bundle.join(WISHED), lines)
}

/// A mount that CRIU neither dumps nor makes: it binds `source` to the mount point `destination`
/// when it restores, and ignores `source` when it dumps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct External<'a> {
    /// Mount point in the container.
    pub destination: &'a str,
    /// Where it can be had.
    pub source: &'a str,
}

impl External<'_> {
    /// Its line: `external mnt[KEY]:SOURCE`. The key is in the images, so it is the mount point at
    /// dump and at restore.
    fn line(&self) -> io::Result<String> {
        // CRIU takes what it reads apart at these (criu/config.c, criu/external.c).
        let is_plain = |text: &str| {
            let special = |c: char| c.is_whitespace() || matches!(c, '\\' | '"' | '\'' | '#' | ']');
            !text.is_empty() && !text.contains(special)
        };
        if !is_plain(self.destination) || !is_plain(self.source) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "a hook has mounted something at {}, and a name with blanks, quotes, `\\`, `#` \
                     or `]` can't be told to CRIU: mount it elsewhere",
                    self.destination
                ),
            ));
        }
        Ok(format!(
            "external mnt[{}]:{}\n",
            self.destination, self.source
        ))
    }
}

/// Writes the file for the given CRIU, with the mounts that runc does not tell it.
pub fn write(bundle: &Path, criu: Option<Version>, external: &[External<'_>]) -> io::Result<()> {
    let external: String = external
        .iter()
        .map(External::line)
        .collect::<io::Result<_>>()?;
    let (since, option) = SKIP_NETWORK_LOCK;
    let skip = if criu >= Some(since) { option } else { "" };
    let wished = match fs::read_to_string(bundle.join(WISHED)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        other => other?,
    };
    fs::write(
        bundle.join(FILE),
        format!("{OPTIONS}{skip}{external}{wished}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_with_and_without_annotations_is_pointed_at_the_file_once() {
        for mut spec in [
            json!({}),
            json!({"annotations": null}),
            json!({"annotations": {"a": "b"}}),
        ] {
            assert!(annotate(Path::new("/b"), &mut spec));
            assert_eq!(spec["annotations"][ANNOTATION], "/b/criu.conf");
            assert!(!annotate(Path::new("/b"), &mut spec));
        }
    }

    #[test]
    fn an_administrators_own_file_is_kept() {
        let mut spec = json!({"annotations": {ANNOTATION: "/etc/criu/mine.conf"}});
        assert!(!annotate(Path::new("/b"), &mut spec));
        assert_eq!(spec["annotations"][ANNOTATION], "/etc/criu/mine.conf");
    }

    #[test]
    fn what_a_container_wishes_for_stands_last() {
        let dir = tempfile::tempdir().unwrap();
        keep_options(dir.path(), "ghost-limit 5\ntimeout 9\n").unwrap();
        write(dir.path(), None, &[]).unwrap();
        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert_eq!(text, format!("{OPTIONS}ghost-limit 5\ntimeout 9\n"));
    }

    #[test]
    fn mounts_are_told_by_their_point() {
        let dir = tempfile::tempdir().unwrap();
        let mount = |destination| External {
            destination,
            source: "/run/0",
        };
        write(dir.path(), None, &[mount("/usr/lib/libcuda.so.580")]).unwrap();
        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(text.contains("external mnt[/usr/lib/libcuda.so.580]:/run/0\n"));
        for bad in ["/a b", "/a\\040b", "/a]", "/a#b", "/a\nleave-running"] {
            let error = write(dir.path(), None, &[mount(bad)]).unwrap_err();
            assert!(error.to_string().contains(bad), "{error}");
        }
    }

    #[test]
    fn an_old_criu_does_not_get_the_option_that_crashes_it() {
        let dir = tempfile::tempdir().unwrap();
        for (criu, skips) in [
            (None, false),
            (Some(Version { major: 4, minor: 1 }), false),
            (Some(Version { major: 4, minor: 2 }), true),
            (Some(Version { major: 5, minor: 0 }), true),
        ] {
            write(dir.path(), criu, &[]).unwrap();
            let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
            assert!(text.contains("tcp-close\n"));
            assert_eq!(text.contains("network-lock skip\n"), skips, "{criu:?}");
        }
    }
}
