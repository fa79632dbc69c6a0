//! Connections to containerd's socket, over which its own API and the CRI are both served.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Request, Status,
    metadata::{AsciiMetadataValue, errors::InvalidMetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use crate::{
    containerd::{
        NAMESPACE_HEADER, containers::containers_client::ContainersClient,
        event_service::events_client::EventsClient, images::images_client::ImagesClient,
        tasks::tasks_client::TasksClient, version::version_client::VersionClient,
    },
    cri::v1::{
        self as cri, image_service_client::ImageServiceClient,
        runtime_service_client::RuntimeServiceClient,
    },
};

/// Largest message that is received, in bytes: what containerd and kubelet allow too.
pub const MESSAGE_MAX: usize = 16 << 20;
/// How long the socket may take to accept.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing is there.
    #[error(
        "no containerd at {socket}: the socket does not exist; start containerd, or name its \
         socket with --socket or KYBERNATE_CONTAINERD_SOCKET"
    )]
    Absent {
        /// The socket.
        socket: PathBuf,
    },
    /// Something is there that does not let us in.
    #[error(
        "cannot connect to containerd at {socket}: {source}; see that containerd runs and that \
         this user may use its socket, or name another with --socket or KYBERNATE_CONTAINERD_SOCKET"
    )]
    Refused {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Connected, but not to a gRPC server.
    #[error("{socket} does not speak gRPC: {source}; name containerd's socket with --socket")]
    Protocol {
        /// The socket.
        socket: PathBuf,
        /// What the transport says.
        source: tonic::transport::Error,
    },
    /// A namespace that no header can carry.
    #[error("{namespace:?} is no containerd namespace: {source}")]
    Namespace {
        /// The namespace.
        namespace: String,
        /// Why not.
        source: InvalidMetadataValue,
    },
}

/// One connection; clones share it.
#[derive(Debug, Clone)]
pub struct Connection {
    socket: PathBuf,
    channel: Channel,
}

/// A channel whose calls carry the containerd namespace.
pub type NamespacedChannel = InterceptedService<Channel, Namespace>;

impl Connection {
    /// Connects to the socket at `socket`.
    ///
    /// # Errors
    /// The socket does not exist, does not accept, or no gRPC server answers.
    pub async fn open(socket: &Path) -> Result<Self, ConnectError> {
        let owned = socket.to_owned();
        // The transport's error says nothing about the socket's.
        UnixStream::connect(socket)
            .await
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => ConnectError::Absent {
                    socket: owned.clone(),
                },
                _ => ConnectError::Refused {
                    socket: owned.clone(),
                    source,
                },
            })?;
        let path = owned.clone();
        let channel = Endpoint::from_static("http://localhost")
            .connect_timeout(PATIENCE)
            .connect_with_connector(tower::service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
            .await
            .map_err(|source| ConnectError::Protocol {
                socket: owned.clone(),
                source,
            })?;
        Ok(Self {
            socket: owned,
            channel,
        })
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// containerd's API in one of its namespaces.
    ///
    /// # Errors
    /// The namespace can't be the value of a header.
    pub fn namespace(&self, namespace: &str) -> Result<Containerd, ConnectError> {
        let header = namespace
            .parse()
            .map_err(|source| ConnectError::Namespace {
                namespace: namespace.to_owned(),
                source,
            })?;
        Ok(Containerd {
            name: namespace.to_owned(),
            channel: InterceptedService::new(self.channel.clone(), Namespace(header)),
        })
    }

    /// containerd's version service, which knows no namespaces.
    #[must_use]
    pub fn version(&self) -> VersionClient<Channel> {
        VersionClient::new(self.channel.clone())
    }

    /// The CRI's runtime service.
    #[must_use]
    pub fn cri(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_MAX)
    }

    /// The containers that the CRI knows by `id`, which may be the beginning of one.
    pub async fn containers(&self, id: &str) -> Result<Vec<cri::Container>, Status> {
        let request = cri::ListContainersRequest {
            filter: Some(cri::ContainerFilter {
                id: id.to_owned(),
                ..Default::default()
            }),
        };
        let answer = self.cri().list_containers(request).await?;
        Ok(answer.into_inner().containers)
    }

    /// The CRI's image service.
    #[must_use]
    pub fn cri_images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_MAX)
    }
}

/// containerd's services in one namespace.
#[derive(Clone)]
pub struct Containerd {
    name: String,
    channel: NamespacedChannel,
}

impl fmt::Debug for Containerd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Containerd")
            .field("namespace", &self.name)
            .finish_non_exhaustive()
    }
}

impl Containerd {
    /// The namespace.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The channel, for services that have no method here.
    #[must_use]
    pub fn channel(&self) -> NamespacedChannel {
        self.channel.clone()
    }

    /// Tasks.
    #[must_use]
    pub fn tasks(&self) -> TasksClient<NamespacedChannel> {
        TasksClient::new(self.channel()).max_decoding_message_size(MESSAGE_MAX)
    }

    /// Records of containers.
    #[must_use]
    pub fn containers(&self) -> ContainersClient<NamespacedChannel> {
        ContainersClient::new(self.channel()).max_decoding_message_size(MESSAGE_MAX)
    }

    /// Images.
    #[must_use]
    pub fn images(&self) -> ImagesClient<NamespacedChannel> {
        ImagesClient::new(self.channel()).max_decoding_message_size(MESSAGE_MAX)
    }

    /// Events.
    #[must_use]
    pub fn events(&self) -> EventsClient<NamespacedChannel> {
        EventsClient::new(self.channel()).max_decoding_message_size(MESSAGE_MAX)
    }
}

/// Adds the namespace to every call.
#[derive(Debug, Clone)]
pub struct Namespace(AsciiMetadataValue);

impl Interceptor for Namespace {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request
            .metadata_mut()
            .insert(NAMESPACE_HEADER, self.0.clone());
        Ok(request)
    }
}
