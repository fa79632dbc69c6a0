//! A connection of a client, served until it ends or the process does.

use std::{fmt, path::Path, sync::Arc, time::Duration};

use http::{Request, Response, Uri, uri::PathAndQuery};
use hyper::{body::Incoming, server::conn::http2::Builder, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::UnixStream, sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    CONNECTION_WINDOW, Failure, HEADERS_MAX, Outgoing, RESETS_MAX, Reply, STREAM_WINDOW,
    STREAMS_MAX, Upstream, grpc,
};
use crate::{intercept::Intercept, observe::Metrics};

/// Authority of requests that name none.
const AUTHORITY: &str = "localhost";
/// How long a client that has just connected may take for its first call before it is told to go.
/// Not every client makes a call again that met a GOAWAY.
const FRESH: Duration = Duration::from_secs(1);

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Its pid in this process's PID namespace, 0 if it has none there.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its program's name; empty when it can't be seen.
    pub program: String,
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = match self.program.as_str() {
            "" => "unknown",
            known => known,
        };
        write!(f, "{program}[{}] uid {}", self.pid, self.uid)
    }
}

impl Caller {
    /// Asks the kernel.
    #[must_use]
    pub fn of(stream: &UnixStream) -> Self {
        let Ok(peer) = stream.peer_cred() else {
            return Self {
                pid: 0,
                uid: u32::MAX,
                program: String::new(),
            };
        };
        let pid = peer.pid().unwrap_or(0);
        let program = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        Self {
            pid,
            uid: peer.uid(),
            program: program.unwrap_or_default().trim().to_owned(),
        }
    }
}

/// What all connections share.
#[derive(Debug)]
pub struct Proxy {
    containerd: Arc<Path>,
    intercept: Intercept,
    metrics: Arc<Metrics>,
    drain: CancellationToken,
    cut: CancellationToken,
}

impl Proxy {
    /// A proxy for the socket `containerd`. When `drain` is cancelled, connections take no more
    /// calls; when `cut` is, answers that go on and on are ended.
    #[must_use]
    pub fn new(
        containerd: Arc<Path>,
        intercept: Intercept,
        metrics: Arc<Metrics>,
        drain: CancellationToken,
        cut: CancellationToken,
    ) -> Self {
        Self {
            containerd,
            intercept,
            metrics,
            drain,
            cut,
        }
    }

    /// Serves one connection to its end.
    pub async fn serve(self: Arc<Self>, stream: UnixStream) {
        let connection = Arc::new(Downstream {
            caller: Caller::of(&stream),
            upstream: Upstream::new(self.containerd.clone()),
            asked: Notify::new(),
            proxy: self.clone(),
        });
        tracing::debug!(caller = %connection.caller, "connected");
        let _open = self.metrics.connection();
        let service = service_fn({
            let connection = connection.clone();
            move |request| connection.clone().call(request)
        });
        let serving = Builder::new(TokioExecutor::new())
            .auto_date_header(false)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(HEADERS_MAX)
            .max_concurrent_streams(STREAMS_MAX)
            .max_pending_accept_reset_streams(RESETS_MAX)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(serving);
        let ended = tokio::select! {
            ended = &mut serving => ended,
            () = self.drain.cancelled() => tokio::select! {
                ended = &mut serving => ended,
                _ = timeout(FRESH, connection.asked.notified()) => {
                    serving.as_mut().graceful_shutdown();
                    serving.await
                }
            }
        };
        // A client that goes without saying so is nothing to worry about.
        match ended {
            Ok(()) => tracing::debug!(caller = %connection.caller, "disconnected"),
            Err(error) => tracing::debug!(caller = %connection.caller, "disconnected: {error}"),
        }
    }
}

/// One connection of a client.
#[derive(Debug)]
struct Downstream {
    caller: Caller,
    upstream: Upstream,
    /// Has a permit once there was a call.
    asked: Notify,
    proxy: Arc<Proxy>,
}

impl Downstream {
    async fn call(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Reply>, hyper::Error> {
        self.asked.notify_one();
        let path = request.uri().path();
        let mut call = self.proxy.metrics.call(path);
        if path == grpc::CHECKPOINT_CONTAINER {
            // On the heap, so that calls that pass do not carry its size.
            let serving = self
                .proxy
                .intercept
                .checkpoint_container(&self.caller, request);
            let kept = Box::pin(serving).await;
            let request = match kept {
                Ok(response) => {
                    let code = grpc::code(response.headers());
                    call.ends_with(code.unwrap_or(tonic::Code::Ok));
                    return Ok(response);
                }
                Err(request) => request,
            };
            return Box::pin(self.forward(request, call)).await;
        }
        self.forward(request.map(Outgoing::Passing), call).await
    }

    async fn forward(
        &self,
        mut request: Request<Outgoing>,
        mut call: crate::observe::Call,
    ) -> Result<Response<Reply>, hyper::Error> {
        complete(&mut request);
        match self.upstream.send(request).await {
            Ok(response) => {
                if let Some(code) = grpc::code(response.headers()) {
                    call.ends_with(code);
                }
                let cut = self.proxy.cut.clone().cancelled_owned();
                Ok(response.map(|body| Reply::passing(body, call, cut)))
            }
            Err(Failure::Reset(error)) => Err(error),
            Err(Failure::Away(away)) => {
                call.ends_with(tonic::Code::Unavailable);
                self.proxy.metrics.away();
                tracing::debug!(caller = %self.caller, "{away}");
                Ok(grpc::error(&Status::unavailable(away.to_string())))
            }
        }
    }
}

/// Gives a request what HTTP/2 wants of a client and not of a server: scheme and authority.
fn complete<B>(request: &mut Request<B>) {
    let uri = request.uri();
    if uri.scheme().is_some() && uri.authority().is_some() {
        return;
    }
    let path = uri.path_and_query().cloned();
    let completed = Uri::builder()
        .scheme("http")
        .authority(AUTHORITY)
        .path_and_query(path.unwrap_or(PathAndQuery::from_static("/")))
        .build();
    if let Ok(completed) = completed {
        *request.uri_mut() = completed;
    }
}
