//! The lab's containerd: starting, killing, and the clients of its services.

use std::{fs, path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail};
use hyper_util::rt::TokioIo;
use kybernate_hooks::{
    containerd::{
        NAMESPACE_HEADER, containers::containers_client::ContainersClient,
        event_service::events_client::EventsClient, images::images_client::ImagesClient,
        tasks::tasks_client::TasksClient,
    },
    cri::v1::{StatusRequest, runtime_service_client::RuntimeServiceClient},
};
use tokio::net::UnixStream;
use tonic::{
    Request, Status,
    metadata::MetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

use super::Lab;
use crate::time::eventually;

/// Adds the header that names containerd's namespace.
#[derive(Debug, Clone, Copy)]
pub struct Namespaced(&'static str);

impl Interceptor for Namespaced {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request
            .metadata_mut()
            .insert(NAMESPACE_HEADER, MetadataValue::from_static(self.0));
        Ok(request)
    }
}

/// Client of the CRI runtime service.
pub type Cri = RuntimeServiceClient<Channel>;
/// Client of containerd's tasks.
pub type Tasks = TasksClient<InterceptedService<Channel, Namespaced>>;
/// Client of containerd's containers.
pub type Containers = ContainersClient<InterceptedService<Channel, Namespaced>>;
/// Client of containerd's images.
pub type Images = ImagesClient<InterceptedService<Channel, Namespaced>>;
/// Client of containerd's events.
pub type Events = EventsClient<InterceptedService<Channel, Namespaced>>;

/// The CRI runtime service at a socket.
pub fn cri_at(socket: PathBuf) -> Cri {
    cri_over(channel_to(socket))
}

fn cri_over(channel: Channel) -> Cri {
    RuntimeServiceClient::new(channel).max_decoding_message_size(64 << 20)
}

fn channel_to(socket: PathBuf) -> Channel {
    Endpoint::from_static("http://lab").connect_with_connector_lazy(service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    }))
}

/// containerd's log in the lab.
pub(super) const LOG: &str = "/var/log/containerd.log";
/// containerd asks every shim at its start, and waits 2 s for one that has no processor.
const READY: Duration = Duration::from_secs(90);
const PID: &str = "/run/lab-containerd.pid";
const SOCKET: &str = "/run/containerd/containerd.sock";
const KUBERNETES: Namespaced = Namespaced(kybernate_config::names::KUBERNETES_NAMESPACE);

impl Lab {
    /// containerd's socket, reachable from here.
    pub fn socket(&self) -> PathBuf {
        self.path(SOCKET)
    }

    /// A new connection to containerd; it reconnects by itself after a restart.
    pub fn channel(&self) -> Channel {
        channel_to(self.socket())
    }

    /// A new connection to what serves the CRI: containerd, or what [`Lab::route_cri`] names.
    pub fn cri_channel(&self) -> Channel {
        let routed = self.cri_socket.lock().unwrap_or_else(|e| e.into_inner());
        channel_to(
            routed
                .as_ref()
                .map_or_else(|| self.socket(), |to| self.path(to)),
        )
    }

    /// Makes everything that uses the CRI go through another socket of the lab, or no more.
    pub fn route_cri(&self, socket: Option<&str>) {
        let mut routed = self.cri_socket.lock().unwrap_or_else(|e| e.into_inner());
        *routed = socket.map(str::to_owned);
    }

    /// The CRI runtime service.
    pub fn cri(&self) -> Cri {
        cri_over(self.cri_channel())
    }

    /// Tasks of the Kubernetes namespace.
    pub fn tasks(&self) -> Tasks {
        TasksClient::with_interceptor(self.channel(), KUBERNETES)
    }

    /// Containers of the Kubernetes namespace.
    pub fn containers(&self) -> Containers {
        ContainersClient::with_interceptor(self.channel(), KUBERNETES)
    }

    /// Images of the Kubernetes namespace.
    pub fn images(&self) -> Images {
        ImagesClient::with_interceptor(self.channel(), KUBERNETES)
    }

    /// Events of the Kubernetes namespace.
    pub fn events(&self) -> Events {
        EventsClient::with_interceptor(self.channel(), KUBERNETES)
    }

    /// Starts containerd and waits until the CRI is ready. Its log is appended to.
    pub async fn start_containerd(&self) -> Result<()> {
        let script = format!("echo $$ >{PID}; exec containerd >>{LOG} 2>&1 </dev/null");
        let mut child = self
            .command("sh")
            .args(["-c", &script])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run nsenter")?;
        let mut cri = self.cri();
        let ready = eventually("containerd ready", READY, || {
            let exited = child.try_wait();
            let mut cri = cri.clone();
            async move {
                if let Some(status) = exited? {
                    return Ok(Some(Err(status)));
                }
                let status = cri.status(StatusRequest::default()).await?.into_inner();
                let conditions = status.status.unwrap_or_default().conditions;
                let ready = conditions.iter().filter(|c| c.status).count() >= 2;
                Ok(ready.then_some(Ok(())))
            }
        })
        .await;
        // nsenter ends with containerd; somebody has to take its exit.
        std::thread::spawn(move || child.wait());
        let _ = &mut cri;
        match ready {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => bail!("containerd ended with {status}:\n{}", self.log_tail(20)),
            Err(e) => Err(e.context(self.log_tail(20))),
        }
    }

    /// Pid of containerd in the lab.
    pub fn containerd_pid(&self) -> Result<u32> {
        let text = fs::read_to_string(self.path(PID)).context("containerd was never started")?;
        text.trim().parse().context("containerd's pid file")
    }

    /// Kills containerd with SIGKILL and waits until it is gone. Shims go on.
    pub async fn kill_containerd(&self) -> Result<()> {
        let pid = self.containerd_pid()?;
        self.kill("KILL", pid)?;
        let process = self.path(format!("/proc/{pid}"));
        eventually("containerd gone", Duration::from_secs(10), || async {
            Ok((!process.exists()).then_some(()))
        })
        .await
    }

    /// containerd's log so far.
    pub fn log(&self) -> String {
        fs::read(self.path(LOG))
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// The last lines of containerd's log.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<_> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}
