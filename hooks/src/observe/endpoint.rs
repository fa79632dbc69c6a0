//! Metrics and health over HTTP/1, on a socket of their own.
//!
//! ```text
//! GET /metrics   OpenMetrics text
//! GET /healthz   200 while calls are taken, 503 when the process is about to end
//! GET /readyz    200 when containerd accepts connections as well, else 503 with the reason
//! ```

use std::path::{Path, PathBuf};
use std::{convert::Infallible, fs::Permissions, io, os::unix::fs::PermissionsExt, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener, UnixStream},
};
use tokio_util::sync::CancellationToken;

use super::Metrics;

/// How a socket in the file system is told from an address.
const UNIX: &str = "unix:";
/// What Prometheus understands.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The place can't be served.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot serve metrics at {place:?}: {source}; set hooks.metrics to unix:/path, to address:port, or to nothing"
)]
pub struct EndpointError {
    place: String,
    source: io::Error,
}

/// What answers.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// What it tells.
    pub metrics: Arc<Metrics>,
    /// Cancelled when no more calls are taken.
    pub drain: CancellationToken,
    /// containerd's socket.
    pub containerd: Arc<Path>,
}

#[derive(Debug)]
enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Endpoint {
    /// Serves at `place` until the process ends.
    ///
    /// # Errors
    /// The place can't be listened at.
    pub async fn serve(self, place: &str) -> Result<(), EndpointError> {
        let listener = listen(place).await.map_err(|source| EndpointError {
            place: place.to_owned(),
            source,
        })?;
        tokio::spawn(async move {
            loop {
                let accepted = match &listener {
                    Listener::Unix(unix) => unix.accept().await.map(|(s, _)| self.clone().on(s)),
                    Listener::Tcp(tcp) => tcp.accept().await.map(|(s, _)| self.clone().on(s)),
                };
                if let Err(error) = accepted {
                    tracing::warn!("metrics: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        });
        Ok(())
    }

    fn on(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = service_fn(move |request| {
            let endpoint = self.clone();
            async move { Ok::<_, Infallible>(endpoint.answer(&request).await) }
        });
        // Its reader's business when it breaks. A header that does not come ends after 30 s.
        tokio::spawn(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service),
        );
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "GET it".into());
        }
        match request.uri().path() {
            "/metrics" => {
                let mut response = plain(StatusCode::OK, self.metrics.text());
                let kind = HeaderValue::from_static(OPEN_METRICS);
                response.headers_mut().insert(CONTENT_TYPE, kind);
                response
            }
            "/healthz" => self.health(),
            "/readyz" => match UnixStream::connect(&self.containerd).await {
                Ok(_) => self.health(),
                Err(error) => {
                    let text = format!("containerd at {}: {error}\n", self.containerd.display());
                    plain(StatusCode::SERVICE_UNAVAILABLE, text)
                }
            },
            _ => plain(
                StatusCode::NOT_FOUND,
                "/metrics, /healthz and /readyz are here\n".into(),
            ),
        }
    }

    fn health(&self) -> Response<Full<Bytes>> {
        if self.drain.is_cancelled() {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "about to end\n".into());
        }
        plain(StatusCode::OK, "ok\n".into())
    }
}

async fn listen(place: &str) -> io::Result<Listener> {
    let Some(path) = place.strip_prefix(UNIX).map(PathBuf::from) else {
        return Ok(Listener::Tcp(TcpListener::bind(place).await?));
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // A process that is about to end may still have it; this one is asked from now on.
    let listener = crate::daemon::bind(&path, Permissions::from_mode(0o660))?;
    listener.set_nonblocking(true)?;
    Ok(Listener::Unix(UnixListener::from_std(listener)?))
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}
