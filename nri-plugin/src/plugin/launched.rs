//! The plugin where the runtime has launched it.
//!
//! containerd up to 1.7.25 does not start at all when a plugin that it launches ends at once or
//! refuses its configuration. So settings that can't be used are no reason for either: containers
//! of the class are refused, with the reason, and the node's others are created.

use std::sync::{Arc, PoisonError, RwLock};

use kybernate_config::{Settings, settings::NriSettings};
use tracing::{error, warn};

use super::{EVENTS, Plugin, PluginError, policy::Policy};
use crate::{
    nri::{
        api::{ConfigureRequest, Container, ContainerAdjustment, Event, PodSandbox},
        events::Events,
        stub::Handler,
    },
    standby::Standby,
};

/// A plugin that was launched, or the standby that goes on in its place.
#[derive(Debug)]
pub struct Launched {
    plugin: Plugin,
    file: File,
    /// Why the node's settings can't be used.
    unusable: Option<String>,
    /// Why containers of the class are refused.
    refusing: RwLock<Option<String>>,
}

/// The plugin's configuration file, which a runtime hands to plugins that it launches alone.
#[derive(Debug)]
pub enum File {
    /// The runtime hands it over, and who stands by gets to know it.
    Handed(Option<Arc<Standby>>),
    /// It was handed over earlier.
    Known(String),
}

/// The node's settings, usable or not.
#[derive(Debug)]
pub struct Node {
    /// How to register.
    pub nri: NriSettings,
    policy: Policy,
    unusable: Option<String>,
}

impl Node {
    /// What was read.
    #[must_use]
    pub fn new(read: Result<Settings, impl ToString>) -> Self {
        let (settings, unread) = match read {
            Ok(settings) => (settings, None),
            Err(error) => (Settings::default(), Some(error.to_string())),
        };
        let of_class = Policy::of_class(&settings.nri);
        let (policy, unusable) = match (unread, Policy::new(&settings)) {
            (None, Ok(policy)) => (policy, None),
            (Some(why), _) => (of_class, Some(why)),
            (None, Err(error)) => (of_class, Some(error.to_string())),
        };
        Self {
            nri: settings.nri,
            policy,
            unusable,
        }
    }
}

impl Launched {
    /// A plugin with these settings and this configuration file.
    #[must_use]
    pub fn new(node: Node, file: File) -> Self {
        Self {
            plugin: Plugin::new(node.policy),
            file,
            refusing: node.unusable.clone().into(),
            unusable: node.unusable,
        }
    }
}

impl Handler for Launched {
    type Refusal = PluginError;

    /// Never refuses.
    fn configure(&self, runtime: &ConfigureRequest) -> Result<Events, PluginError> {
        let mut runtime = runtime.clone();
        match &self.file {
            File::Known(file) => runtime.config.clone_from(file),
            File::Handed(Some(standby)) => {
                if let Err(error) = standby.tell(&runtime.config) {
                    warn!("the standby is lost: {error}");
                }
            }
            File::Handed(None) => {}
        }
        let configured = self.plugin.configure(&runtime).map_err(|e| e.to_string());
        let why = self.unusable.clone().or(configured.err());
        if let Some(why) = &why {
            error!("containers of the class are refused: {why}");
        }
        *self
            .refusing
            .write()
            .unwrap_or_else(PoisonError::into_inner) = why;
        Ok(EVENTS)
    }

    fn synchronize(&self, pods: Vec<PodSandbox>, containers: Vec<Container>, more: bool) {
        self.plugin.synchronize(pods, containers, more);
    }

    fn create_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> Result<Option<ContainerAdjustment>, PluginError> {
        let refusing = self.refusing.read().unwrap_or_else(PoisonError::into_inner);
        match &*refusing {
            Some(why) if self.plugin.is_class(&pod) => Err(PluginError::Settings(why.clone())),
            Some(_) => Ok(None),
            None => self.plugin.create_container(pod, container),
        }
    }

    fn event(&self, event: Event, pod: PodSandbox, container: Option<Container>) {
        self.plugin.event(event, pod, container);
    }
}
