//! The shim as CRIU's page server: memory goes from the dumped processes through one local
//! socket straight into the frames of the archive, and is never an image on disk.
//!
//! One connection is accepted, from a process that this checkpoint's runc started. Cancelling
//! closes it; CRIU then fails in its ordinary way, which removes its parasite from every
//! process and leaves them running. Killing CRIU would not.
//!
//! [`session`] speaks the protocol, [`socket`] reads it from CRIU, [`line`] cancels.

#[cfg(any(test, fuzzing))]
pub(super) mod fuzzing;
mod line;
mod session;
mod socket;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    time::{Duration, Instant},
};

pub use self::line::Line;
use self::{session::Session, socket::Peer};
use super::{peer, wire::WireError};

/// How long CRIU may take from its start to its connection. It freezes and collects the
/// process tree after connecting, so this covers process start alone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
const ACCEPT_POLL: Duration = Duration::from_millis(1);

/// Where the content of `pages-N.img` goes.
pub trait Pages {
    /// Room for the next bytes; never empty.
    fn space(&mut self) -> io::Result<&mut [u8]>;
    /// Says that `n` bytes of [`Self::space`] are filled.
    fn filled(&mut self, n: usize);
    /// Ends the image.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// Opens [`Pages`], one after the other.
pub trait PageImages {
    /// Starts an image of that name.
    fn pages(&mut self, name: &str) -> io::Result<Box<dyn Pages + '_>>;
}

/// Why no complete dump arrived.
#[derive(Debug, thiserror::Error)]
pub enum PageServerError {
    /// No port to listen on.
    #[error("cannot listen on 127.0.0.1 for CRIU's pages: {0}")]
    Listen(#[source] io::Error),
    /// CRIU never came.
    #[error("CRIU did not connect to the page server within {} s", CONNECT_TIMEOUT.as_secs())]
    NoConnection,
    /// The checkpoint was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// CRIU closed the connection before the end.
    #[error("CRIU closed the page connection before the dump was complete")]
    Incomplete,
    /// Bytes that are no command.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The socket failed.
    #[error("reading CRIU's pages: {0}")]
    Socket(#[source] io::Error),
    /// The other side failed: the archive, or the directory.
    #[error("storing CRIU's pages: {0}")]
    Store(#[source] io::Error),
}

/// What arrived.
#[derive(Debug, Default)]
pub struct Received {
    /// `pagemap-*.img` files: name and content.
    pub pagemaps: Vec<(String, Vec<u8>)>,
    /// Bytes of pages.
    pub bytes: u64,
}

/// Hangs up when dropped, after a panic too: the line's own handle would keep the connection open,
/// and CRIU sending into it.
struct HangsUp(Line);

impl Drop for HangsUp {
    fn drop(&mut self) {
        self.0.hang_up();
    }
}

/// A listening page server.
#[derive(Debug)]
pub struct PageServer {
    listener: TcpListener,
    address: SocketAddr,
    line: Line,
}

impl PageServer {
    /// Listens on a free port of the loopback interface.
    pub fn bind() -> Result<Self, PageServerError> {
        let bind = || {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, address) = bind().map_err(PageServerError::Listen)?;
        Ok(Self {
            listener,
            address,
            line: Line::default(),
        })
    }

    /// Where CRIU connects.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A handle that cancels [`Self::serve`].
    #[must_use]
    pub fn line(&self) -> Line {
        self.line.clone()
    }

    /// Receives one dump from a descendant of the process `ancestor`. Blocks; call it on a
    /// thread of its own. `log` is where CRIU writes its log, for an early farewell; a dump that
    /// ends its processes must go without, so that CRIU kills nothing before all is received.
    pub fn serve(
        self,
        ancestor: u32,
        log: Option<PathBuf>,
        images: &mut dyn PageImages,
    ) -> Result<Received, PageServerError> {
        let stream = self.accept(ancestor)?;
        drop(self.listener);
        let line = self.line;
        let _hangs_up = HangsUp(line.clone());
        let result = Session::new(Peer::new(stream, log), images).and_then(Session::run);
        match result {
            Err(_) if line.is_cancelled() => Err(PageServerError::Cancelled),
            other => other,
        }
    }

    fn accept(&self, ancestor: u32) -> Result<TcpStream, PageServerError> {
        let start = Instant::now();
        loop {
            if self.line.is_cancelled() {
                return Err(PageServerError::Cancelled);
            }
            match self.listener.accept() {
                Ok((stream, from)) => {
                    if peer::belongs_to(from, self.address, ancestor) {
                        stream
                            .set_nonblocking(false)
                            .map_err(PageServerError::Socket)?;
                        self.line.hold(&stream).map_err(PageServerError::Socket)?;
                        return Ok(stream);
                    }
                    tracing::warn!(%from, "a stranger connected to the page server; closed");
                }
                // Somebody came and went again before anybody looked.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if start.elapsed() > CONNECT_TIMEOUT {
                        return Err(PageServerError::NoConnection);
                    }
                    std::thread::sleep(ACCEPT_POLL);
                }
                Err(e) => return Err(PageServerError::Socket(e)),
            }
        }
    }
}
