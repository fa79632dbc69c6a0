//! What Kybernate does to the containers of its pods.
//!
//! ```text
//! pod of a configured runtime handler          its containers
//!   restore.kybernate.io/<container>: PATH ──>   kybernate.io/restore-from: PATH   (checked)
//!   wishes: see [`wishes`]                 ──>   kybernate.io/…                    (checked)
//!   gpu.kybernate.io: "true"               ──>   mounts, environment, devices: see [`gpu`]
//!                                                kybernate.io/managed: <version>
//! any other pod                                not touched, the answer is empty
//! ```
//!
//! The runtime creates containers without asking when the plugin is away, so the shim takes the
//! marker `kybernate.io/managed` for the sign that a container was prepared.

pub mod gpu;
pub mod launched;
pub mod policy;
pub mod restore;
pub mod wishes;

use std::{
    collections::HashSet,
    mem,
    sync::{Mutex, PoisonError, RwLock},
};

use kybernate_config::names::{MANAGED, RESTORE_FROM};
use tracing::{debug, info, warn};

use self::policy::{Policy, PolicyError, Refusal};
use crate::nri::{
    api::{ConfigureRequest, Container, ContainerAdjustment, Event, PodSandbox},
    events::Events,
    stub::Handler,
};

/// What the plugin is asked about.
const EVENTS: Events = Events::of(Event::CREATE_CONTAINER);

/// The plugin. It keeps nothing about pods and containers between calls.
#[derive(Debug)]
pub struct Plugin {
    settings: Policy,
    /// With the configuration file of the runtime that is connected.
    policy: RwLock<Policy>,
    unprepared: Mutex<Unprepared>,
}

/// What the parts of a synchronization have told so far.
#[derive(Debug, Default)]
struct Unprepared {
    class_pods: HashSet<String>,
    /// Pod and name of every container without the marker.
    containers: Vec<(String, String)>,
}

/// Why the plugin says no.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// The configuration file of the runtime can't be used.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A container is not created.
    #[error(transparent)]
    Refusal(#[from] Refusal),
    /// Nor is any other of its class.
    #[error("the settings of kybernate-nri on this node can't be used: {0}")]
    Settings(String),
}

impl Plugin {
    /// A plugin with the policy of the node's settings.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy: policy.clone().into(),
            settings: policy,
            unprepared: Mutex::default(),
        }
    }

    /// Whether the pod's containers are prepared.
    #[must_use]
    pub fn is_class(&self, pod: &PodSandbox) -> bool {
        let policy = self.policy.read().unwrap_or_else(PoisonError::into_inner);
        policy.is_class(pod)
    }
}

impl Handler for Plugin {
    type Refusal = PluginError;

    fn configure(&self, runtime: &ConfigureRequest) -> Result<Events, PluginError> {
        let policy = self.settings.with_drop_in(&runtime.config)?;
        debug!(?policy, "configured");
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = policy;
        *self
            .unprepared
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Unprepared::default();
        Ok(EVENTS)
    }

    fn synchronize(&self, pods: Vec<PodSandbox>, containers: Vec<Container>, more: bool) {
        let policy = self.policy.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = self
            .unprepared
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        found.class_pods.extend(
            pods.into_iter()
                .filter(|pod| policy.is_class(pod))
                .map(|p| p.id),
        );
        found.containers.extend(
            containers
                .into_iter()
                .filter(|container| !container.annotations.contains_key(MANAGED))
                .map(|container| (container.pod_sandbox_id, container.name)),
        );
        if more {
            return;
        }
        let Unprepared {
            class_pods,
            containers,
        } = mem::take(&mut *found);
        let of_class: Vec<_> = containers
            .iter()
            .filter(|(pod, _)| class_pods.contains(pod))
            .collect();
        if let Some((pod, container)) = of_class.first() {
            warn!(
                count = of_class.len(),
                pod,
                container,
                "containers were created while this plugin was away and are not prepared; the \
                 first of them"
            );
        }
    }

    fn create_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> Result<Option<ContainerAdjustment>, PluginError> {
        let policy = self.policy.read().unwrap_or_else(PoisonError::into_inner);
        let (namespace, name) = (&pod.namespace, &pod.name);
        match policy.adjust(&pod, &container) {
            Ok(None) => Ok(None),
            Ok(Some(adjustment)) => {
                info!(
                    namespace,
                    pod = name,
                    container = container.name,
                    restore_from = adjustment.annotations.get(RESTORE_FROM),
                    "prepared"
                );
                Ok(Some(adjustment))
            }
            Err(refusal) => {
                warn!(
                    namespace,
                    pod = name,
                    container = container.name,
                    "refused: {refusal}"
                );
                Err(refusal.into())
            }
        }
    }

    /// Nothing but the creation of containers is subscribed to.
    fn event(&self, event: Event, pod: PodSandbox, _: Option<Container>) {
        debug!(?event, pod = pod.id, "not needed");
    }
}
