//! Where a container is restored from.
//!
//! A pod says so with one annotation per container:
//!
//! ```yaml
//! metadata:
//!   annotations:
//!     restore.kybernate.io/app: /var/lib/kubelet/checkpoints/checkpoint-default-app.tar.zst
//! ```
//!
//! A value is the absolute path of an archive on the node, under one of the directories that
//! the administrator allows, in which `{namespace}` stands for the pod's. Whoever may annotate a pod must not be able to make the node open
//! any other file.

use std::path::{Component, Path, PathBuf};

/// Prefix of the pod annotations; the rest of the key is a container's name.
pub const RESTORE_PREFIX: &str = "restore.kybernate.io/";

/// The kernel's limit, in bytes.
const LONGEST_PATH: usize = 4095;

/// Why a value is no restore source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Nothing there.
    #[error(
        "is empty; write the absolute path of an archive on the node, or remove the annotation"
    )]
    Empty,
    /// Relative, or a URL or an image reference.
    #[error("{0:?} is not an absolute path; write the path of an archive on the node")]
    Relative(String),
    /// Too long for any file.
    #[error("is {0} bytes long; a path has at most {LONGEST_PATH}")]
    Long(usize),
    /// Line breaks and other characters that no path of an archive has.
    #[error("{0:?} contains control characters")]
    Control(String),
    /// `..`, `.`, `//` or a slash at the end.
    #[error("{0:?} is not a plain path; leave out `.`, `..`, `//` and a slash at the end")]
    Indirect(String),
    /// The administrator does not allow it.
    #[error(
        "{path:?} is not under a directory that archives may be restored from ({allowed}); \
             restore_dirs in the [nri] settings of the node lists them"
    )]
    Elsewhere {
        /// The path.
        path: String,
        /// The directories allowed.
        allowed: String,
    },
}

/// Checks the value of an annotation against the directories allowed.
pub fn parse(value: &str, allowed: &[PathBuf]) -> Result<PathBuf, SourceError> {
    if value.is_empty() {
        return Err(SourceError::Empty);
    }
    if value.len() > LONGEST_PATH {
        return Err(SourceError::Long(value.len()));
    }
    if value.contains(char::is_control) {
        return Err(SourceError::Control(value.into()));
    }
    if !value.starts_with('/') {
        return Err(SourceError::Relative(value.into()));
    }
    if !is_plain(value) {
        return Err(SourceError::Indirect(value.into()));
    }
    let path = Path::new(value);
    // A directory itself is no archive in it.
    if !allowed
        .iter()
        .any(|dir| path != dir && path.starts_with(dir))
    {
        let allowed: Vec<_> = allowed
            .iter()
            .map(|dir| dir.display().to_string())
            .collect();
        return Err(SourceError::Elsewhere {
            path: value.into(),
            allowed: allowed.join(", "),
        });
    }
    Ok(path.into())
}

/// A directory's name that stands for the namespace of the pod.
const NAMESPACE: &str = "{namespace}";

/// The directories for pods of one namespace, so that the archives of one tenant are no restore
/// source of another's.
pub(super) fn of_namespace(dirs: &[PathBuf], namespace: &str) -> Vec<PathBuf> {
    let is_plain_name =
        !namespace.is_empty() && !namespace.contains('/') && is_plain(&format!("/{namespace}"));
    dirs.iter()
        .filter_map(|dir| {
            let is_place = |part: Component<'_>| part.as_os_str() == NAMESPACE;
            if !dir.components().any(is_place) {
                return Some(dir.clone());
            }
            is_plain_name.then(|| {
                let fill = |part: Component<'_>| match is_place(part) {
                    true => PathBuf::from(namespace),
                    false => PathBuf::from(part.as_os_str()),
                };
                dir.components().map(fill).collect()
            })
        })
        .collect()
}

/// Whether the text is a path exactly as the kernel would print it.
pub(super) fn is_plain(text: &str) -> bool {
    let plain: PathBuf = Path::new(text)
        .components()
        .filter(|part| matches!(part, Component::RootDir | Component::Normal(_)))
        .collect();
    plain.as_os_str() == text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dirs() -> Vec<PathBuf> {
        vec!["/var/lib/kubelet/checkpoints".into(), "/data".into()]
    }

    #[test]
    fn a_path_under_a_directory_allowed_is_taken_as_it_is() {
        for path in [
            "/data/a.tar.zst",
            "/var/lib/kubelet/checkpoints/x/y z.tar",
            "/data/..a",
            "/data/ü",
        ] {
            assert_eq!(parse(path, &dirs()), Ok(path.into()));
        }
    }

    #[test]
    fn anything_else_is_refused_with_what_was_found() {
        use SourceError::*;
        let refused = |value: &str| parse(value, &dirs()).unwrap_err();
        assert_eq!(refused(""), Empty);
        for value in [
            "a.tar",
            "registry/image@sha256:00",
            "file:///data/a",
            " /data/a",
            "../data/a",
        ] {
            assert_eq!(refused(value), Relative(value.into()));
        }
        for value in [
            "/data/../etc/shadow",
            "/data//a",
            "/data/./a",
            "/data/a/",
            "//data/a",
            "/data/..",
        ] {
            assert_eq!(refused(value), Indirect(value.into()), "{value}");
        }
        for value in ["/data/a\n", "/data/\0", "/da\tta/a"] {
            assert_eq!(refused(value), Control(value.into()));
        }
        for value in ["/etc/shadow", "/database/a", "/data", "/"] {
            assert!(matches!(refused(value), Elsewhere { .. }), "{value}");
        }
        assert_eq!(refused(&format!("/data/{}", "a".repeat(5000))), Long(5006));
        let message = refused("/etc/shadow").to_string();
        assert!(
            message.contains("/etc/shadow") && message.contains("/data"),
            "{message}"
        );
    }

    proptest! {
        #[test]
        fn nothing_leads_out_of_the_directories(value in "(/data)?(/(\\.|\\.\\.|[a-z]{0,3})){0,6}") {
            if let Ok(path) = parse(&value, &dirs()) {
                prop_assert!(path.components().skip(1).all(|part| matches!(part, Component::Normal(_))));
                prop_assert!(path.starts_with("/data") && path != Path::new("/data"));
                prop_assert_eq!(path.to_str(), Some(value.as_str()));
            }
        }
    }
}
