//! Which containers are prepared, and how. No I/O.

use std::path::PathBuf;

use kybernate_config::{
    names::{MANAGED, RESTORE_FROM},
    settings::NriSettings,
};
use serde::Deserialize;

use super::restore::{self, RESTORE_PREFIX, SourceError};
use crate::nri::api::{Container, ContainerAdjustment, PodSandbox};

/// Value of [`MANAGED`]: the version of the plugin that has prepared a container.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the administrator has decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    handlers: Vec<String>,
    restore_dirs: Vec<PathBuf>,
}

/// The plugin's file in the runtime's NRI configuration directory. What it leaves out is taken
/// from the node's settings.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct DropIn {
    handlers: Option<Vec<String>>,
    restore_dirs: Option<Vec<PathBuf>>,
}

/// Why settings make no policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Every pod without a runtime class would be touched.
    #[error("handlers contains an empty name, which every pod without a runtime class has")]
    EmptyHandler,
    /// No pod would ever be prepared.
    #[error("handlers is empty; name the runtime handlers whose pods are to be prepared")]
    NoHandler,
    /// Nobody could tell what is under it.
    #[error("restore_dirs contains {0:?}; write absolute paths without `.`, `..` and `//`")]
    Directory(PathBuf),
    /// Every file of the node would be a restore source.
    #[error("restore_dirs contains /, which would let pods be restored from any file of the node")]
    Root,
    /// The plugin's configuration file does not parse.
    #[error("the plugin's NRI configuration file does not parse: {0}")]
    DropIn(#[from] Box<toml::de::Error>),
}

/// Why a container is not created.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A restore source that is none.
    #[error("pod annotation {RESTORE_PREFIX}{container} {reason}")]
    Source {
        /// Name of the container.
        container: String,
        /// What is wrong with the value.
        reason: SourceError,
    },
    /// A restore source on the container itself that is none.
    #[error("container annotation {RESTORE_FROM} {0}")]
    OwnSource(SourceError),
    /// A pod's author has set the annotation that the shim obeys.
    #[error(
        "pod annotation {RESTORE_FROM} is not for pods; annotate the pod with \
         {RESTORE_PREFIX}{container} instead"
    )]
    Bypass {
        /// Name of the container.
        container: String,
    },
    /// Two restore sources for one container.
    #[error(
        "pod annotation {RESTORE_PREFIX}{container} and container annotation {RESTORE_FROM} name \
         different archives; remove one"
    )]
    Two {
        /// Name of the container.
        container: String,
    },
}

impl Policy {
    /// The policy of a node's settings.
    pub fn new(settings: &NriSettings) -> Result<Self, PolicyError> {
        Self {
            handlers: settings.handlers.clone(),
            restore_dirs: settings.restore_dirs.clone(),
        }
        .checked()
    }

    /// The policy with the plugin's configuration file laid over it.
    pub fn with_drop_in(&self, text: &str) -> Result<Self, PolicyError> {
        let drop_in: DropIn = toml::from_str(text).map_err(Box::new)?;
        Self {
            handlers: drop_in.handlers.unwrap_or_else(|| self.handlers.clone()),
            restore_dirs: drop_in
                .restore_dirs
                .unwrap_or_else(|| self.restore_dirs.clone()),
        }
        .checked()
    }

    fn checked(self) -> Result<Self, PolicyError> {
        if self.handlers.is_empty() {
            return Err(PolicyError::NoHandler);
        }
        if self.handlers.iter().any(String::is_empty) {
            return Err(PolicyError::EmptyHandler);
        }
        for dir in &self.restore_dirs {
            let plain = dir.to_str().is_some_and(restore::is_plain);
            if !dir.is_absolute() || !plain {
                return Err(PolicyError::Directory(dir.clone()));
            }
            if dir.parent().is_none() {
                return Err(PolicyError::Root);
            }
        }
        Ok(self)
    }

    /// Whether the pod's containers are prepared.
    #[must_use]
    pub fn is_class(&self, pod: &PodSandbox) -> bool {
        self.handlers.contains(&pod.runtime_handler)
    }

    /// What to change about a container that is being created: nothing of a foreign pod's.
    pub fn adjust(
        &self,
        pod: &PodSandbox,
        container: &Container,
    ) -> Result<Option<ContainerAdjustment>, Refusal> {
        if !self.is_class(pod) {
            return Ok(None);
        }
        let name = || container.name.clone();
        // The runtime may pass a pod's annotations on to its containers. The shim would obey
        // this one, and nobody would have checked it.
        if pod.annotations.contains_key(RESTORE_FROM) {
            return Err(Refusal::Bypass { container: name() });
        }
        let asked = pod
            .annotations
            .get(&format!("{RESTORE_PREFIX}{}", container.name));
        if let Some(source) = asked {
            restore::parse(source, &self.restore_dirs).map_err(|reason| Refusal::Source {
                container: name(),
                reason,
            })?;
        }
        // Pods can't set it here: it comes from a client of the CRI, such as `kybernate restore`.
        let own = container.annotations.get(RESTORE_FROM);
        if let Some(source) = own {
            restore::parse(source, &self.restore_dirs).map_err(Refusal::OwnSource)?;
        }
        let mut adjustment = ContainerAdjustment::new();
        adjustment
            .annotations
            .insert(MANAGED.into(), VERSION.into());
        match (asked, own) {
            (Some(asked), Some(own)) if asked != own => {
                return Err(Refusal::Two { container: name() });
            }
            (Some(asked), None) => {
                adjustment
                    .annotations
                    .insert(RESTORE_FROM.into(), asked.clone());
            }
            _ => {}
        }
        Ok(Some(adjustment))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect()
    }

    fn pod(handler: &str, pairs: &[(&str, &str)]) -> PodSandbox {
        PodSandbox {
            runtime_handler: handler.into(),
            annotations: annotations(pairs),
            ..Default::default()
        }
    }

    fn container(name: &str, pairs: &[(&str, &str)]) -> Container {
        Container {
            name: name.into(),
            annotations: annotations(pairs),
            ..Default::default()
        }
    }

    fn policy() -> Policy {
        Policy::new(&NriSettings::default()).unwrap()
    }

    const SOURCE: &str = "/var/lib/kybernate/a.tar.zst";

    #[test]
    fn foreign_pods_are_left_alone_whatever_their_annotations_say() {
        let annotated = [
            (RESTORE_FROM, "/etc/shadow"),
            ("restore.kybernate.io/app", "not a path"),
            (MANAGED, "x"),
        ];
        for handler in ["", "runc", "kybernate2", "Kybernate", "kybernat"] {
            let container = container("app", &annotated);
            assert_eq!(
                policy().adjust(&pod(handler, &annotated), &container),
                Ok(None)
            );
        }
    }

    #[test]
    fn class_containers_are_marked_and_nothing_else() {
        let adjustment = policy()
            .adjust(&pod("kybernate", &[]), &container("app", &[]))
            .unwrap()
            .unwrap();
        assert_eq!(adjustment.annotations, annotations(&[(MANAGED, VERSION)]));
    }

    #[test]
    fn the_restore_source_reaches_the_container_it_is_for_and_no_other() {
        let pod = pod("kybernate", &[("restore.kybernate.io/app", SOURCE)]);
        let annotations_of = |name| {
            policy()
                .adjust(&pod, &container(name, &[]))
                .unwrap()
                .unwrap()
                .annotations
        };
        assert_eq!(
            annotations_of("app").get(RESTORE_FROM).map(String::as_str),
            Some(SOURCE)
        );
        for other in ["ap", "app2", "", "sidecar"] {
            assert!(!annotations_of(other).contains_key(RESTORE_FROM), "{other}");
        }
    }

    #[test]
    fn a_source_that_is_none_refuses_its_container_with_the_annotation_named() {
        let pod = pod("kybernate", &[("restore.kybernate.io/app", "/etc/shadow")]);
        let message = policy()
            .adjust(&pod, &container("app", &[]))
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("restore.kybernate.io/app") && message.contains("/etc/shadow"),
            "{message}"
        );
        assert!(policy().adjust(&pod, &container("sidecar", &[])).is_ok());
    }

    #[test]
    fn a_pod_does_not_get_past_the_check_with_the_annotation_that_the_shim_obeys() {
        let bypass = [(RESTORE_FROM, SOURCE)];
        for on_container in [&bypass[..], &[]] {
            let refusal = policy()
                .adjust(&pod("kybernate", &bypass), &container("app", on_container))
                .unwrap_err();
            assert!(
                refusal.to_string().contains("restore.kybernate.io/app"),
                "{refusal}"
            );
            assert!(matches!(refusal, Refusal::Bypass { .. }));
        }
    }

    #[test]
    fn a_source_that_the_container_brings_is_checked_like_any() {
        let adjust = |on_pod: &[_], source| {
            policy().adjust(
                &pod("kybernate", on_pod),
                &container("app", &[(RESTORE_FROM, source)]),
            )
        };
        let marked = annotations(&[(MANAGED, VERSION)]);
        assert_eq!(adjust(&[], SOURCE).unwrap().unwrap().annotations, marked);
        let same = [("restore.kybernate.io/app", SOURCE)];
        assert_eq!(adjust(&same, SOURCE).unwrap().unwrap().annotations, marked);
        assert!(matches!(
            adjust(&[], "/etc/shadow"),
            Err(Refusal::OwnSource(_))
        ));
        let other = "/var/lib/kybernate/b.tar.zst";
        assert!(matches!(adjust(&same, other), Err(Refusal::Two { .. })));
    }

    #[test]
    fn a_forged_marker_is_overwritten() {
        let forged = [(MANAGED, "99")];
        let adjustment = policy()
            .adjust(&pod("kybernate", &forged), &container("app", &forged))
            .unwrap();
        assert_eq!(
            adjustment.unwrap().annotations.get(MANAGED).unwrap(),
            VERSION
        );
    }

    #[test]
    fn settings_that_open_too_much_are_refused() {
        let with = |handlers: &[&str], dirs: &[&str]| {
            Policy::new(&NriSettings {
                handlers: handlers.iter().map(|name| (*name).into()).collect(),
                restore_dirs: dirs.iter().map(Into::into).collect(),
                ..Default::default()
            })
        };
        assert!(with(&["a", "b"], &["/a/b"]).is_ok());
        assert!(with(&["a"], &[]).is_ok());
        assert!(matches!(with(&[], &["/a"]), Err(PolicyError::NoHandler)));
        assert!(matches!(
            with(&["a", ""], &["/a"]),
            Err(PolicyError::EmptyHandler)
        ));
        assert!(matches!(with(&["a"], &["/"]), Err(PolicyError::Root)));
        for dir in ["a", "", "/a/../b", "/a/"] {
            assert!(
                matches!(with(&["a"], &[dir]), Err(PolicyError::Directory(_))),
                "{dir}"
            );
        }
    }

    #[test]
    fn a_drop_in_replaces_what_it_names() {
        let changed = policy().with_drop_in("handlers = ['gpu']\n").unwrap();
        assert!(changed.is_class(&pod("gpu", &[])) && !changed.is_class(&pod("kybernate", &[])));
        assert_eq!(changed.restore_dirs, policy().restore_dirs);
        assert_eq!(policy().with_drop_in("").unwrap(), policy());
        let error = policy()
            .with_drop_in("handler = ['gpu']\n")
            .unwrap_err()
            .to_string();
        assert!(error.contains("handler"), "{error}");
        assert!(matches!(
            policy().with_drop_in("handlers = []"),
            Err(PolicyError::NoHandler)
        ));
    }
}
