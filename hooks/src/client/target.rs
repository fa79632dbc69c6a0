//! What a user calls a container: `<id or prefix>` or `<namespace>/<pod>/<container>`.

use std::{fmt, str::FromStr};

/// The container that a command is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// containerd's id, or the start of it as long as only one container has it.
    Id(String),
    /// A container of a pod, by the names that Kubernetes gives them.
    Pod {
        /// Kubernetes namespace.
        namespace: String,
        /// Name of the pod.
        pod: String,
        /// Name of the container in the pod.
        container: String,
    },
}

/// Text that names no container.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no container; write an id, the start of one, or namespace/pod/container")]
pub struct TargetError(String);

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let parts: Vec<&str> = text.split('/').collect();
        let bad = || TargetError(text.to_owned());
        if !parts.iter().all(|part| is_name(part)) {
            return Err(bad());
        }
        match parts[..] {
            [id] => Ok(Self::Id(id.to_owned())),
            [namespace, pod, container] => Ok(Self::Pod {
                namespace: namespace.to_owned(),
                pod: pod.to_owned(),
                container: container.to_owned(),
            }),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => f.write_str(id),
            Self::Pod {
                namespace,
                pod,
                container,
            } => write!(f, "{namespace}/{pod}/{container}"),
        }
    }
}

/// Whether containerd and Kubernetes could call something so.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && text.as_bytes()[0].is_ascii_alphanumeric()
}

/// containerd's filter for ids that start with `prefix`, which must be a name.
pub(crate) fn id_filter(prefix: &str) -> String {
    // The only character of a name that a regular expression takes for something else. The
    // value is a quoted string, in which a backslash stands for itself when doubled.
    format!("id~=\"^{}\"", prefix.replace('.', "\\\\."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_pods_parse_and_display() {
        for text in ["0a1b2c", "my_task.v1", "default/web-0/nginx"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        assert!(matches!("a/b/c".parse(), Ok(Target::Pod { .. })));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "", "a/b", "a/b/c/d", "a//c", "/a/b/c", "-n", "a b", "a\"b", "^a", "a/../c",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_filter_takes_dots_literally() {
        assert_eq!(id_filter("a.b"), r#"id~="^a\\.b""#);
    }
}
