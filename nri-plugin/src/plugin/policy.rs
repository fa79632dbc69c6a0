//! Which containers are prepared, and how. No I/O.

use std::path::PathBuf;

use kybernate_config::{
    Settings,
    names::{MANAGED, OBEYED, RESTORE_FROM, RUNTIME_HANDLER},
    settings::NriSettings,
    wishes::{WishError, WishSettings},
};
use serde::Deserialize;

use super::{
    gpu,
    restore::{self, RESTORE_PREFIX, SourceError},
    wishes::{self, GPU, Wish},
};
use crate::nri::api::{Container, ContainerAdjustment, PodSandbox};

/// Value of [`MANAGED`]: the version of the plugin that has prepared a container.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the administrator has decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    handlers: Vec<String>,
    restore_dirs: Vec<PathBuf>,
    /// What pods may wish for.
    pub(super) wishes: WishSettings,
    /// Whether they may have a trigger socket.
    pub(super) trigger: bool,
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
    /// Something is granted that does not exist.
    #[error("a list in the [wishes] settings {0}")]
    Wishes(#[from] WishError),
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
    /// A wish that does not parse or is not granted.
    #[error("pod annotation {key} {reason}")]
    Wish {
        /// The annotation.
        key: String,
        /// What is wrong with the value.
        reason: WishError,
    },
    /// The same on the container itself.
    #[error("container annotation {key} {reason}")]
    OwnWish {
        /// The annotation.
        key: &'static str,
        /// What is wrong with the value.
        reason: WishError,
    },
    /// A pod's author has set an annotation that the shim obeys.
    #[error("pod annotation {key} is not for pods; annotate the pod with {instead} instead")]
    Bypass {
        /// The annotation.
        key: &'static str,
        /// The one that a pod may have.
        instead: String,
    },
    /// Two values for one container.
    #[error("pod annotation {key} and container annotation {own} differ; remove one")]
    Two {
        /// The pod's annotation.
        key: String,
        /// The container's.
        own: &'static str,
    },
}

impl Policy {
    /// The policy of a node's settings.
    pub fn new(settings: &Settings) -> Result<Self, PolicyError> {
        Self {
            handlers: settings.nri.handlers.clone(),
            restore_dirs: settings.nri.restore_dirs.clone(),
            wishes: settings.wishes.clone(),
            trigger: settings.trigger.allow,
        }
        .checked()
    }

    /// The policy of settings that can't be used: it tells which pods' containers are refused, and
    /// grants nothing.
    #[must_use]
    pub fn of_class(settings: &NriSettings) -> Self {
        let named: Vec<_> = settings
            .handlers
            .iter()
            .filter(|name| !name.is_empty())
            .cloned()
            .collect();
        Self {
            handlers: if named.is_empty() {
                vec![RUNTIME_HANDLER.into()]
            } else {
                named
            },
            restore_dirs: Vec::new(),
            wishes: WishSettings::default(),
            trigger: false,
        }
    }

    /// The policy with the plugin's configuration file laid over it.
    pub fn with_drop_in(&self, text: &str) -> Result<Self, PolicyError> {
        let drop_in: DropIn = toml::from_str(text).map_err(Box::new)?;
        Self {
            handlers: drop_in.handlers.unwrap_or_else(|| self.handlers.clone()),
            restore_dirs: drop_in
                .restore_dirs
                .unwrap_or_else(|| self.restore_dirs.clone()),
            ..self.clone()
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
        self.wishes.check()?;
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
        // The runtime may pass a pod's annotations on to its containers. The shim would obey
        // these, and nobody would have checked them.
        if let Some(key) = OBEYED
            .iter()
            .find(|key| pod.annotations.contains_key(**key))
        {
            return Err(Refusal::Bypass {
                key,
                instead: wishes::instead(key, &container.name),
            });
        }
        let mut adjustment = ContainerAdjustment::new();
        adjustment
            .annotations
            .insert(MANAGED.into(), VERSION.into());
        if let Some(source) = self.source(pod, container)? {
            adjustment.annotations.insert(RESTORE_FROM.into(), source);
        }
        for wish in &wishes::ALL {
            if let Some(value) = self.wish(wish, pod, container)? {
                adjustment.annotations.insert(wish.own.into(), value);
            }
        }
        if wishes::is_on(GPU, pod, container)? {
            gpu::make_checkpointable(container, &mut adjustment);
        }
        Ok(Some(adjustment))
    }

    /// The restore source that the container gets, unless it brings it already.
    fn source(&self, pod: &PodSandbox, container: &Container) -> Result<Option<String>, Refusal> {
        let key = format!("{RESTORE_PREFIX}{}", container.name);
        let dirs = restore::of_namespace(&self.restore_dirs, &pod.namespace);
        let asked = pod.annotations.get(&key);
        if let Some(source) = asked {
            restore::parse(source, &dirs).map_err(|reason| Refusal::Source {
                container: container.name.clone(),
                reason,
            })?;
        }
        // Pods can't set it here: it comes from a client of the CRI, such as `kybernate restore`.
        let own = container.annotations.get(RESTORE_FROM);
        if let Some(source) = own {
            restore::parse(source, &dirs).map_err(Refusal::OwnSource)?;
        }
        one(key, asked.cloned(), RESTORE_FROM, own)
    }

    /// The value of a wish that the container gets, unless it brings it already.
    fn wish(
        &self,
        wish: &Wish,
        pod: &PodSandbox,
        container: &Container,
    ) -> Result<Option<String>, Refusal> {
        let (key, asked) = wishes::find(wish.prefix, pod, container);
        let asked = match asked {
            Some(text) => (wish.judge)(text, self).map_err(|reason| Refusal::Wish {
                key: key.clone(),
                reason,
            })?,
            None => None,
        };
        let own = container.annotations.get(wish.own);
        if let Some(text) = own {
            let key = wish.own;
            (wish.judge)(text, self).map_err(|reason| Refusal::OwnWish { key, reason })?;
        }
        one(key, asked, wish.own, own)
    }
}

/// What is asked for, if the container does not have it; an error if it has something else.
fn one(
    key: String,
    asked: Option<String>,
    own: &'static str,
    has: Option<&String>,
) -> Result<Option<String>, Refusal> {
    match (asked, has) {
        (Some(asked), Some(has)) if asked == *has => Ok(None),
        (Some(_), Some(_)) => Err(Refusal::Two { key, own }),
        (asked, None) => Ok(asked),
        (None, Some(_)) => Ok(None),
    }
}

#[cfg(test)]
mod tests;
