//! Runs a plugin: registers it, serves its runtime, and comes back when the runtime does.
//!
//! The service is ready before the plugin registers, as the runtime calls back at once. After
//! registration nothing is asked of the runtime; a runtime that hangs up is connected to again,
//! for ever. A runtime hangs up when it restarts, when an answer has taken longer than its
//! limit (2 s by default), and when it does not like the plugin; its log tells which.

mod backoff;
mod service;

use std::{
    fmt::Display,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::net::UnixStream;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use ttrpc::asynchronous::{
    Client, Server,
    transport::{Listener, Socket},
};

use self::{backoff::Backoff, service::Service};
use super::{
    api::{
        ConfigureRequest, Container, ContainerAdjustment, Event, PodSandbox, RegisterPluginRequest,
        RuntimeClient, create_plugin,
    },
    connect::{ConnectError, Identity, connect},
    events::Events,
    mux::{Mux, MuxError, PLUGIN_SERVICE, RUNTIME_SERVICE},
};

/// How long the runtime may take to answer a registration; its own limit is the same.
const REGISTRATION: Duration = Duration::from_secs(5);

/// What a plugin does. Methods run on the thread that serves the runtime and must not block.
pub trait Handler: Send + Sync + 'static {
    /// Why the plugin refuses something; the runtime shows it to whoever asked.
    type Refusal: Display;

    /// Takes notice of a runtime, with the text of the plugin's configuration file if the
    /// runtime has one for it. Returns the events wanted; those that the runtime does not know
    /// are left out for it.
    ///
    /// Called at every registration. A refusal ends the connection.
    fn configure(&self, runtime: &ConfigureRequest) -> Result<Events, Self::Refusal>;

    /// Takes notice of what runs already; `more` of it follows in another call.
    fn synchronize(&self, pods: Vec<PodSandbox>, containers: Vec<Container>, more: bool);

    /// Adjusts a container that is being created, or leaves it alone, or refuses it.
    fn create_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> Result<Option<ContainerAdjustment>, Self::Refusal>;

    /// Takes notice of any other event.
    fn event(&self, event: Event, pod: PodSandbox, container: Option<Container>);
}

/// Why a connection to a runtime has ended, or has never been one.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The service could not be started.
    #[error("cannot serve the plugin: {0}")]
    Serve(#[source] ttrpc::Error),
    /// The runtime did not take the registration.
    #[error("the runtime did not register plugin {index}-{name}: {source}")]
    Register {
        /// Name of the plugin.
        name: String,
        /// Index of the plugin.
        index: String,
        /// The runtime's answer.
        source: ttrpc::Error,
    },
    /// The runtime hung up before the plugin was in service.
    #[error("the runtime closed the connection before the plugin was in service; its log says why")]
    Rejected,
    /// The connection broke.
    #[error(transparent)]
    Trunk(#[from] MuxError),
}

/// A plugin and what it registers as.
#[derive(Debug)]
pub struct Stub<H> {
    identity: Identity,
    handler: Arc<H>,
}

impl<H: Handler> Stub<H> {
    /// A plugin that is not registered anywhere yet.
    pub fn new(identity: Identity, handler: H) -> Self {
        Self {
            identity,
            handler: Arc::new(handler),
        }
    }

    /// Registers over this connection and serves until the runtime closes it.
    ///
    /// Dropping the future closes the connection.
    pub async fn serve(&self, trunk: UnixStream) -> Result<(), SessionError> {
        self.session(trunk, &AtomicBool::new(false).into()).await
    }

    /// Connects to the socket again and again, and serves, until told to stop.
    pub async fn run(&self, socket: &Path, stop: &CancellationToken) {
        let mut backoff = Backoff::default();
        loop {
            let in_service = Arc::new(AtomicBool::new(false));
            let session = async { self.session(connect(socket).await?, &in_service).await };
            let Some(ended) = stop.run_until_cancelled(session).await else {
                return;
            };
            if in_service.load(Ordering::Relaxed) {
                backoff = Backoff::default();
            }
            let absent = matches!(ended, Err(SessionError::Connect(_)));
            let first = backoff.is_first();
            let pause = backoff.next(absent);
            match ended {
                Ok(()) => info!("the runtime closed the connection; connecting again"),
                // A runtime that stays away is told about once.
                Err(e) if first || !absent => warn!(retry_in = ?pause, "{e}"),
                Err(_) => {}
            }
            let pause = tokio::time::sleep(pause);
            if stop.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    }

    async fn session(
        &self,
        stream: UnixStream,
        in_service: &Arc<AtomicBool>,
    ) -> Result<(), SessionError> {
        let mut mux = Mux::new();
        let (served, called) = (mux.open(PLUGIN_SERVICE), mux.open(RUNTIME_SERVICE));
        let mut trunk = mux.start(stream);

        let service = Service::new(self.handler.clone(), in_service.clone());
        // The one connection, and never another.
        let listener = tokio_stream::once(io::Result::Ok(served)).chain(tokio_stream::pending());
        let mut server = Server::new()
            .add_listener(Listener::new(listener))
            .register_service(create_plugin(Arc::new(service)));
        server.start().await.map_err(SessionError::Serve)?;

        let runtime = RuntimeClient::new(Client::new(Socket::new(called)));
        let request = RegisterPluginRequest {
            plugin_name: self.identity.name().into(),
            plugin_idx: self.identity.index().into(),
            ..Default::default()
        };
        let registration = ttrpc::context::with_duration(REGISTRATION);
        runtime
            .register_plugin(registration, &request)
            .await
            .map_err(|source| SessionError::Register {
                name: request.plugin_name,
                index: request.plugin_idx,
                source,
            })?;

        trunk.closed().await?;
        if in_service.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err(SessionError::Rejected)
        }
    }
}
