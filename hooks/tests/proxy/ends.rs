//! A client and a server on bare HTTP/2, with the proxy between them.

use std::{future::Future, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use h2::{RecvStream, SendStream, client, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use kybernate_config::Settings;
use kybernate_hooks::{intercept::Intercept, observe::Metrics, proxy::Proxy};
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

/// A method that no release has.
pub const FUTURE: &str = "/runtime.v1.RuntimeService/CheckpointPod";
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(10);

/// The proxy, serving in the background.
pub struct Between {
    pub dir: TempDir,
    pub metrics: Arc<Metrics>,
    pub drain: CancellationToken,
    pub cut: CancellationToken,
}

impl Between {
    pub fn start() -> Self {
        Self::start_with(|intercept| intercept)
    }

    pub fn start_with(trace: impl FnOnce(Intercept) -> Intercept) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let containerd: Arc<Path> = dir.path().join("containerd").into();
        let mut settings = Settings::default();
        settings.containerd.socket = containerd.to_path_buf();
        let metrics = Arc::new(Metrics::default());
        let (drain, cut) = (CancellationToken::new(), CancellationToken::new());
        let intercept = Intercept::new(settings.into(), metrics.clone(), CancellationToken::new());
        let intercept = trace(intercept);
        let proxy = Arc::new(Proxy::new(
            containerd,
            intercept,
            metrics.clone(),
            drain.clone(),
            cut.clone(),
        ));
        let listener = UnixListener::bind(dir.path().join("cri")).unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(proxy.clone().serve(stream));
            }
        });
        Self {
            dir,
            metrics,
            drain,
            cut,
        }
    }

    /// The double of containerd: each request goes to `answer`. It ends with the handle.
    pub fn containerd<F, Fut>(&self, answer: F) -> tokio::task::JoinHandle<()>
    where
        F: Fn(Request<RecvStream>, SendResponse<Bytes>) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let path = self.dir.path().join("containerd");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(path).unwrap();
        tokio::spawn(async move {
            // Everything in here ends when the task does.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let answer = answer.clone();
                connections.spawn(async move {
                    let mut calls = tokio::task::JoinSet::new();
                    let Ok(mut connection) = h2::server::handshake(stream).await else {
                        return;
                    };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        calls.spawn(answer(request, respond));
                    }
                });
            }
        })
    }

    pub async fn connect(&self) -> client::SendRequest<Bytes> {
        let stream = UnixStream::connect(self.dir.path().join("cri"))
            .await
            .unwrap();
        let (sender, connection) = client::Builder::new()
            .initial_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .handshake(stream)
            .await
            .unwrap();
        tokio::spawn(connection);
        sender
    }
}

/// A gRPC request without its body.
pub fn request(path: &str) -> Request<()> {
    Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "2M")
        .header("traceparent", "00-abc-def-01")
        .header("binary-bin", "AAEC")
        .body(())
        .unwrap()
}

/// Sends a whole request and waits for the head of its answer.
pub async fn ask(
    sender: &client::SendRequest<Bytes>,
    path: &str,
    body: &[u8],
) -> Result<Response<RecvStream>, h2::Error> {
    let mut sender = sender.clone().ready().await?;
    let (response, mut stream) = sender.send_request(request(path), false)?;
    stream.send_data(Bytes::copy_from_slice(body), true)?;
    soon(response).await
}

pub async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work).await.expect("in time")
}

/// Reads a body to its end.
pub async fn read(body: &mut RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = soon(body.data()).await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        all.extend_from_slice(&data);
    }
    Ok((all, soon(body.trailers()).await?))
}

pub fn ok() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers.insert("extra-bin", HeaderValue::from_static("AAEC"));
    trailers
}

/// An answer's head.
pub fn head(respond: &mut SendResponse<Bytes>) -> SendStream<Bytes> {
    let head = Response::builder()
        .header("content-type", "application/grpc")
        .header("x-of-containerd", "1")
        .body(())
        .unwrap();
    respond.send_response(head, false).unwrap()
}

/// Sends what flow control allows, until all is sent.
pub async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes) {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
        let Some(Ok(room)) = room else { return };
        let part = data.split_to(room.min(data.len()));
        if stream.send_data(part, false).is_err() {
            return;
        }
    }
}

/// Answers with the body of the request, as it comes.
pub async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let mut body = request.into_body();
    let mut stream = head(&mut respond);
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        send(&mut stream, data).await;
    }
    let _ = stream.send_trailers(ok());
}
