//! A connection to containerd, made when it is needed and made anew when it is gone.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::UnixStream, sync::Mutex, time::Instant};

use super::{CONNECTION_WINDOW, HEADERS_MAX, Outgoing, STREAM_WINDOW};

/// How long containerd's queue of connections may stay full.
const PATIENCE: Duration = Duration::from_secs(5);
/// How soon a full queue is tried again.
const PAUSE: Duration = Duration::from_millis(5);

/// Why containerd could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum Away {
    /// Its socket does not accept.
    #[error("containerd does not accept at {socket}: {source}; is it being restarted?")]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It accepts, but does not speak HTTP/2.
    #[error("{socket} does not speak HTTP/2: {source}; is it containerd's socket?")]
    Handshake {
        /// The socket.
        socket: PathBuf,
        /// What is wrong.
        source: hyper::Error,
    },
    /// The connection has ended before the answer came.
    #[error("containerd went away before it answered: {}", cause(source))]
    Lost {
        /// How.
        source: hyper::Error,
    },
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// containerd has reset this one stream; so does the proxy.
    #[error(transparent)]
    Reset(hyper::Error),
    /// The call has to be tried again later.
    #[error(transparent)]
    Away(#[from] Away),
}

/// The way to containerd of one client connection.
#[derive(Debug)]
pub struct Upstream {
    socket: Arc<Path>,
    sender: Mutex<Option<SendRequest<Outgoing>>>,
}

impl Upstream {
    /// Will connect to `socket`.
    #[must_use]
    pub fn new(socket: Arc<Path>) -> Self {
        Self {
            socket,
            sender: Mutex::new(None),
        }
    }

    /// Sends a request and waits for the head of its answer. Dropping the future resets the
    /// stream.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn send(&self, request: Request<Outgoing>) -> Result<Response<Incoming>, Failure> {
        let mut sender = self.sender().await?;
        let mut failed = match sender.try_send_request(request).await {
            Ok(response) => return Ok(response),
            Err(failed) => failed,
        };
        let Some(unsent) = failed.take_message() else {
            return Err(classify(failed.into_error()));
        };
        // The connection has ended between being looked at and being used; nothing was sent.
        let mut sender = self.sender().await?;
        sender.send_request(unsent).await.map_err(classify)
    }

    async fn sender(&self) -> Result<SendRequest<Outgoing>, Away> {
        let mut kept = self.sender.lock().await;
        if let Some(sender) = kept.as_mut()
            && !sender.is_closed()
        {
            return Ok(sender.clone());
        }
        let sender = self.connect().await?;
        *kept = Some(sender.clone());
        Ok(sender)
    }

    async fn connect(&self) -> Result<SendRequest<Outgoing>, Away> {
        let stream = dial(&self.socket).await.map_err(|source| Away::Connect {
            socket: self.socket.to_path_buf(),
            source,
        })?;
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(HEADERS_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| Away::Handshake {
                socket: self.socket.to_path_buf(),
                source,
            })?;
        // It ends when its last request has and no sender is left, or when containerd goes.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("the connection to containerd has ended: {error}");
            }
        });
        Ok(sender)
    }
}

fn classify(source: hyper::Error) -> Failure {
    if is_reset(&source) {
        Failure::Reset(source)
    } else {
        Away::Lost { source }.into()
    }
}

/// Connects, and waits while the listener's queue is full: the kernel answers EAGAIN then.
async fn dial(socket: &Path) -> io::Result<UnixStream> {
    let end = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(socket).await {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {
                tokio::time::sleep(PAUSE).await;
            }
            done => return done,
        }
    }
}

/// Whether the other side has reset one stream, and not gone as a whole.
pub(super) fn is_reset(error: &hyper::Error) -> bool {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(error) = inner.downcast_ref::<h2::Error>() {
            return error.is_reset() && error.is_remote();
        }
        source = inner.source();
    }
    false
}

/// The innermost text: hyper's own says only that something was wrong.
fn cause(error: &hyper::Error) -> String {
    let mut inner: &dyn Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}
