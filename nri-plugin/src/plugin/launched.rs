//! The plugin where the runtime has launched it.

use std::sync::Arc;

use tracing::warn;

use super::{Plugin, PluginError};
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
}

/// The plugin's configuration file, which a runtime hands to plugins that it launches alone.
#[derive(Debug)]
pub enum File {
    /// The runtime hands it over, and who stands by gets to know it.
    Handed(Option<Arc<Standby>>),
    /// It was handed over earlier.
    Known(String),
}

impl Launched {
    /// A plugin with this configuration file.
    #[must_use]
    pub fn new(plugin: Plugin, file: File) -> Self {
        Self { plugin, file }
    }
}

impl Handler for Launched {
    type Refusal = PluginError;

    fn configure(&self, runtime: &ConfigureRequest) -> Result<Events, PluginError> {
        match &self.file {
            File::Known(file) => self.plugin.configure(&ConfigureRequest {
                config: file.clone(),
                ..runtime.clone()
            }),
            File::Handed(standby) => {
                let events = self.plugin.configure(runtime)?;
                let told = standby
                    .as_ref()
                    .map(|standby| standby.tell(&runtime.config));
                if let Some(Err(error)) = told {
                    warn!("the standby is lost: {error}");
                }
                Ok(events)
            }
        }
    }

    fn synchronize(&self, pods: Vec<PodSandbox>, containers: Vec<Container>, more: bool) {
        self.plugin.synchronize(pods, containers, more);
    }

    fn create_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> Result<Option<ContainerAdjustment>, PluginError> {
        self.plugin.create_container(pod, container)
    }

    fn event(&self, event: Event, pod: PodSandbox, container: Option<Container>) {
        self.plugin.event(event, pod, container);
    }
}
