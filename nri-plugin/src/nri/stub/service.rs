//! The service that the runtime calls: unpacks requests for the handler.
//!
//! Every method is here whose event can be subscribed to. What a runtime calls beyond those is
//! answered UNIMPLEMENTED by the ttrpc server, which has no such method; a generated method that
//! were not overridden would answer NOT_FOUND, and NRI 0.12 falls back to `StateChange` on
//! UNIMPLEMENTED alone.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use tracing::{error, info};
use ttrpc::{Code, Error, Result, asynchronous::TtrpcContext as Context, get_status};

use super::Handler;
use crate::nri::{
    api::{
        self, ConfigureRequest, ConfigureResponse, ContainerRequest, CreateContainerResponse,
        Empty, Event, PodRequest, StateChangeEvent, SynchronizeRequest, SynchronizeResponse,
    },
    events::Events,
};

pub(super) struct Service<H> {
    handler: Arc<H>,
    /// Set when the runtime has taken the plugin in.
    in_service: Arc<AtomicBool>,
}

impl<H: Handler> Service<H> {
    pub(super) fn new(handler: Arc<H>, in_service: Arc<AtomicBool>) -> Self {
        Self {
            handler,
            in_service,
        }
    }

    fn of_pod(&self, event: Event, request: PodRequest) -> Result<Empty> {
        self.handler
            .event(event, request.pod.unwrap_or_default(), None);
        Ok(Empty::new())
    }

    fn of_container(&self, event: Event, request: ContainerRequest) -> Result<Empty> {
        self.handler.event(
            event,
            request.pod.unwrap_or_default(),
            request.container.into_option(),
        );
        Ok(Empty::new())
    }
}

fn refused(code: Code, why: impl std::fmt::Display) -> Error {
    Error::RpcStatus(get_status(code, why))
}

#[async_trait]
impl<H: Handler> api::Plugin for Service<H> {
    async fn configure(&self, _: &Context, runtime: ConfigureRequest) -> Result<ConfigureResponse> {
        let wanted = self.handler.configure(&runtime).map_err(|why| {
            error!("not configured: {why}");
            refused(Code::INVALID_ARGUMENT, why)
        })?;
        let events = wanted & Events::known_to(&runtime);
        if events == Events::NONE {
            // Nothing would mean everything.
            let why = format!(
                "{} {} knows none of the events that the plugin is there for",
                runtime.runtime_name, runtime.runtime_version
            );
            error!("not configured: {why}");
            return Err(refused(Code::FAILED_PRECONDITION, why));
        }
        info!(
            runtime = runtime.runtime_name,
            version = runtime.runtime_version,
            nri = runtime.NRI_version,
            events = format_args!("{:#x}", events.bits()),
            "registered"
        );
        Ok(ConfigureResponse {
            events: events.bits(),
            ..Default::default()
        })
    }

    async fn synchronize(
        &self,
        _: &Context,
        part: SynchronizeRequest,
    ) -> Result<SynchronizeResponse> {
        let more = part.more;
        self.handler.synchronize(part.pods, part.containers, more);
        if !more {
            info!("in service");
            self.in_service.store(true, Ordering::Relaxed);
        }
        Ok(SynchronizeResponse {
            more,
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &Context, _: Empty) -> Result<Empty> {
        info!("the runtime is going down");
        Ok(Empty::new())
    }

    async fn create_container(
        &self,
        _: &Context,
        request: ContainerRequest,
    ) -> Result<CreateContainerResponse> {
        let (pod, container) = (
            request.pod.unwrap_or_default(),
            request.container.unwrap_or_default(),
        );
        let adjust = self
            .handler
            .create_container(pod, container)
            .map_err(|why| refused(Code::INVALID_ARGUMENT, why))?;
        Ok(CreateContainerResponse {
            adjust: adjust.into(),
            ..Default::default()
        })
    }

    async fn state_change(&self, _: &Context, change: StateChangeEvent) -> Result<Empty> {
        // An event of a number that nobody has heard of is no reason to fail a pod.
        let event = change.event.enum_value_or(Event::UNKNOWN);
        self.handler.event(
            event,
            change.pod.unwrap_or_default(),
            change.container.into_option(),
        );
        Ok(Empty::new())
    }

    async fn run_pod_sandbox(&self, _: &Context, request: PodRequest) -> Result<Empty> {
        self.of_pod(Event::RUN_POD_SANDBOX, request)
    }

    async fn update_pod_sandbox(&self, _: &Context, request: PodRequest) -> Result<Empty> {
        self.of_pod(Event::UPDATE_POD_SANDBOX, request)
    }

    async fn post_update_pod_sandbox(&self, _: &Context, request: PodRequest) -> Result<Empty> {
        self.of_pod(Event::POST_UPDATE_POD_SANDBOX, request)
    }

    async fn stop_pod_sandbox(&self, _: &Context, request: PodRequest) -> Result<Empty> {
        self.of_pod(Event::STOP_POD_SANDBOX, request)
    }

    async fn remove_pod_sandbox(&self, _: &Context, request: PodRequest) -> Result<Empty> {
        self.of_pod(Event::REMOVE_POD_SANDBOX, request)
    }

    async fn post_create_container(&self, _: &Context, request: ContainerRequest) -> Result<Empty> {
        self.of_container(Event::POST_CREATE_CONTAINER, request)
    }

    async fn start_container(&self, _: &Context, request: ContainerRequest) -> Result<Empty> {
        self.of_container(Event::START_CONTAINER, request)
    }

    async fn post_start_container(&self, _: &Context, request: ContainerRequest) -> Result<Empty> {
        self.of_container(Event::POST_START_CONTAINER, request)
    }

    async fn update_container(&self, _: &Context, request: ContainerRequest) -> Result<Empty> {
        self.of_container(Event::UPDATE_CONTAINER, request)
    }

    async fn post_update_container(&self, _: &Context, request: ContainerRequest) -> Result<Empty> {
        self.of_container(Event::POST_UPDATE_CONTAINER, request)
    }

    async fn stop_container(&self, _: &Context, request: ContainerRequest) -> Result<Empty> {
        self.of_container(Event::STOP_CONTAINER, request)
    }

    async fn remove_container(&self, _: &Context, request: ContainerRequest) -> Result<Empty> {
        self.of_container(Event::REMOVE_CONTAINER, request)
    }
}
