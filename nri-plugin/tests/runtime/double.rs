//! A runtime double: the runtime's half of NRI, driven step by step by a test.
//!
//! It shares the mux and the messages with the plugin. What a real runtime's reader demands of
//! frames is checked in the mux's own tests, and with real runtimes in the lab.

use std::{io, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use kybernate_nri::nri::{
    api::{
        self, ConfigureRequest, ConfigureResponse, Container, ContainerRequest,
        CreateContainerResponse, Empty, PluginClient, PodSandbox, RegisterPluginRequest,
        SynchronizeRequest, create_runtime,
    },
    mux::{Mux, PLUGIN_SERVICE, RUNTIME_SERVICE, Trunk},
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
};
use tokio_stream::StreamExt as _;
use ttrpc::{
    asynchronous::{
        Client, Server, TtrpcContext,
        transport::{Listener, Socket},
    },
    context::{Context, with_duration},
};

/// NRI's default limit of a request.
pub fn limit() -> Context {
    with_duration(Duration::from_secs(2))
}

/// Listens where plugins look for a runtime.
pub struct Runtime(UnixListener);

impl Runtime {
    pub fn listen(socket: &Path) -> Self {
        let _ = std::fs::remove_file(socket);
        Self(UnixListener::bind(socket).unwrap())
    }

    /// The next plugin that connects, after it has registered.
    pub async fn plugin(&self) -> Session {
        let connected = tokio::time::timeout(Duration::from_secs(10), self.0.accept());
        let (stream, _) = connected.await.expect("no plugin has connected").unwrap();
        Session::register(stream).await
    }

    /// The next connection, with nothing done about it.
    pub async fn connection(&self) -> UnixStream {
        self.0.accept().await.unwrap().0
    }
}

/// One registered plugin.
pub struct Session {
    pub plugin: PluginClient,
    pub raw: Client,
    pub registered: RegisterPluginRequest,
    pub trunk: Trunk,
    _server: Server,
}

struct Registrations(mpsc::UnboundedSender<RegisterPluginRequest>);

#[async_trait]
impl api::Runtime for Registrations {
    async fn register_plugin(
        &self,
        _: &TtrpcContext,
        request: RegisterPluginRequest,
    ) -> ttrpc::Result<Empty> {
        self.0.send(request).unwrap();
        Ok(Empty::new())
    }
}

impl Session {
    pub async fn register(stream: UnixStream) -> Self {
        let mut mux = Mux::new();
        let (called, served) = (mux.open(PLUGIN_SERVICE), mux.open(RUNTIME_SERVICE));
        let trunk = mux.start(stream);
        let (registrations, mut registered) = mpsc::unbounded_channel();
        let listener = tokio_stream::once(io::Result::Ok(served)).chain(tokio_stream::pending());
        let mut server = Server::new()
            .add_listener(Listener::new(listener))
            .register_service(create_runtime(Arc::new(Registrations(registrations))));
        server.start().await.unwrap();
        let raw = Client::new(Socket::new(called));
        let registration = tokio::time::timeout(Duration::from_secs(5), registered.recv());
        let registered = registration
            .await
            .expect("the plugin did not register")
            .unwrap();
        Self {
            plugin: PluginClient::new(raw.clone()),
            raw,
            registered,
            trunk,
            _server: server,
        }
    }

    pub async fn configure(&self, version: &str, config: &str) -> ttrpc::Result<ConfigureResponse> {
        let request = ConfigureRequest {
            runtime_name: "containerd".into(),
            runtime_version: version.into(),
            config: config.into(),
            ..Default::default()
        };
        self.plugin.configure(limit(), &request).await
    }

    pub async fn synchronize(
        &self,
        pods: Vec<PodSandbox>,
        containers: Vec<Container>,
        more: bool,
    ) -> bool {
        let request = SynchronizeRequest {
            pods,
            containers,
            more,
            ..Default::default()
        };
        self.plugin
            .synchronize(limit(), &request)
            .await
            .unwrap()
            .more
    }

    /// Through configuration and synchronization, as a runtime does it.
    pub async fn take_in(&self) {
        self.configure("2.1.9", "").await.unwrap();
        assert!(!self.synchronize(Vec::new(), Vec::new(), false).await);
    }

    pub async fn create(
        &self,
        pod: &PodSandbox,
        container: &Container,
    ) -> ttrpc::Result<CreateContainerResponse> {
        let request = ContainerRequest {
            pod: Some(pod.clone()).into(),
            container: Some(container.clone()).into(),
            ..Default::default()
        };
        self.plugin.create_container(limit(), &request).await
    }
}

pub fn pod(handler: &str, annotations: &[(&str, &str)]) -> PodSandbox {
    PodSandbox {
        id: "p1".into(),
        name: "web".into(),
        namespace: "default".into(),
        runtime_handler: handler.into(),
        annotations: annotations
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect(),
        ..Default::default()
    }
}

pub fn container(name: &str) -> Container {
    Container {
        id: "c1".into(),
        pod_sandbox_id: "p1".into(),
        name: name.into(),
        ..Default::default()
    }
}
