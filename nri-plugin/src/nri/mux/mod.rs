//! Several connections over one byte stream, the trunk.
//!
//! ```text
//!   0        4        8                 8 + n
//!   ├────────┼────────┼───────────────────┤
//!   │ id     │ n      │ payload           │   id and n: unsigned, 32 bits, big-endian
//!   └────────┴────────┴───────────────────┘
//!   id 1: the plugin's service   id 2: the runtime's service   id 0: reserved
//! ```
//!
//! Nothing opens or closes a connection; both ends know which there are. Frames of a connection
//! that nobody has opened are dropped.
//!
//! **Sending.** One write is one frame: nothing is merged, split or held back. The runtime's
//! reader (nri, `pkg/net/multiplex/mux.go`, `conn.Read`) fails with `ENOMEM` when a frame is
//! larger than the buffer it was called with, and ttrpc for Go reads a message's header through
//! a buffer of 4096 bytes. So the frame with which a message starts must have at most 4096
//! bytes, and the rest of the message may come in one frame of any size up to [`MAX_PAYLOAD`].
//! ttrpc for Rust writes just so: header and start of the payload up to 4096 bytes, then all of
//! the rest. Smaller frames would be no way out, as the runtime queues 256 and then hangs up.
//!
//! **Receiving.** A connection is a stream of bytes. The runtime sends frames of any size and
//! may spread one message over several. At most [`QUEUE`] pieces of [`PIECE`] bytes wait for a
//! reader; the trunk is not read further meanwhile.

mod frame;

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, ReadBuf},
    sync::mpsc,
    task::JoinSet,
};
use tokio_util::sync::PollSender;

pub use frame::MAX_PAYLOAD;

/// Pieces and frames that wait per direction and connection at most.
pub const QUEUE: usize = 16;
/// Most bytes handed to a connection's reader in one piece.
pub const PIECE: usize = 32 << 10;

/// Connection of the service that the plugin serves.
pub const PLUGIN_SERVICE: u32 = 1;
/// Connection of the service that the runtime serves.
pub const RUNTIME_SERVICE: u32 = 2;

/// Why a trunk can't be used any longer.
#[derive(Debug, thiserror::Error)]
pub enum MuxError {
    /// Reading failed.
    #[error("cannot read from the trunk: {0}")]
    Read(#[source] io::Error),
    /// Writing failed.
    #[error("cannot write to the trunk: {0}")]
    Write(#[source] io::Error),
    /// The other end left within a frame.
    #[error(
        "the other end closed the trunk within a frame for connection {id}, {missing} bytes before its end"
    )]
    Truncated {
        /// The connection that the frame was for.
        id: u32,
        /// Bytes of the payload that did not come.
        missing: usize,
    },
    /// A task of the trunk has panicked.
    #[error("the trunk's task ended abnormally: {0}")]
    Task(#[source] tokio::task::JoinError),
}

/// Connections to be carried by a trunk.
///
/// All of them are opened before the trunk is, so that no frame can come too early.
#[derive(Debug)]
pub struct Mux {
    inbound: HashMap<u32, mpsc::Sender<Vec<u8>>>,
    outbound: mpsc::Sender<Vec<u8>>,
    frames: mpsc::Receiver<Vec<u8>>,
}

impl Default for Mux {
    fn default() -> Self {
        Self::new()
    }
}

impl Mux {
    /// No connections yet.
    #[must_use]
    pub fn new() -> Self {
        let (outbound, frames) = mpsc::channel(QUEUE);
        Self {
            inbound: HashMap::new(),
            outbound,
            frames,
        }
    }

    /// Opens the connection with this id; opening it again replaces the first.
    pub fn open(&mut self, id: u32) -> Conn {
        let (pieces, inbound) = mpsc::channel(QUEUE);
        self.inbound.insert(id, pieces);
        Conn {
            id,
            inbound,
            piece: Vec::new(),
            taken: 0,
            outbound: PollSender::new(self.outbound.clone()),
        }
    }

    /// Starts to carry the connections.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(self, trunk: impl AsyncRead + AsyncWrite + Send + 'static) -> Trunk {
        let (reader, writer) = tokio::io::split(trunk);
        let mut tasks = JoinSet::new();
        tasks.spawn(receive(reader, self.inbound));
        tasks.spawn(send(writer, self.frames));
        Trunk { tasks }
    }
}

/// A trunk at work. Dropping it ends its connections and closes the stream.
#[derive(Debug)]
pub struct Trunk {
    tasks: JoinSet<Result<(), MuxError>>,
}

impl Trunk {
    /// Waits for the trunk's end: without error when the other end closed it between frames, or
    /// when all connections are gone here.
    pub async fn closed(&mut self) -> Result<(), MuxError> {
        let ended = self.tasks.join_next().await;
        self.tasks.abort_all();
        match ended {
            Some(Ok(result)) => result,
            Some(Err(e)) if e.is_panic() => Err(MuxError::Task(e)),
            Some(Err(_)) | None => Ok(()),
        }
    }
}

/// Hands the payloads of incoming frames to their connections.
async fn receive(
    trunk: impl AsyncRead + Unpin,
    mut conns: HashMap<u32, mpsc::Sender<Vec<u8>>>,
) -> Result<(), MuxError> {
    let mut trunk = BufReader::with_capacity(PIECE, trunk);
    loop {
        let mut header = [0; frame::HEADER];
        match trunk.read(&mut header[..1]).await.map_err(MuxError::Read)? {
            0 => return Ok(()),
            _ => trunk
                .read_exact(&mut header[1..])
                .await
                .map_err(MuxError::Read)?,
        };
        let (id, mut left) = frame::decode(header);
        while left > 0 {
            let mut piece = Vec::with_capacity(left.min(PIECE));
            let read = (&mut trunk)
                .take(left.min(PIECE) as u64)
                .read_buf(&mut piece)
                .await
                .map_err(MuxError::Read)?;
            if read == 0 {
                return Err(MuxError::Truncated { id, missing: left });
            }
            left -= read;
            if let Some(conn) = conns.get(&id)
                && conn.send(piece).await.is_err()
            {
                conns.remove(&id);
            }
        }
    }
}

/// Writes whole frames, in the order in which they were queued.
async fn send(
    mut trunk: impl AsyncWrite + Unpin,
    mut frames: mpsc::Receiver<Vec<u8>>,
) -> Result<(), MuxError> {
    while let Some(frame) = frames.recv().await {
        trunk.write_all(&frame).await.map_err(MuxError::Write)?;
        trunk.flush().await.map_err(MuxError::Write)?;
    }
    Ok(())
}

/// One connection: a stream of bytes to read, and of which every write becomes one frame.
#[derive(Debug)]
pub struct Conn {
    id: u32,
    inbound: mpsc::Receiver<Vec<u8>>,
    piece: Vec<u8>,
    taken: usize,
    outbound: PollSender<Vec<u8>>,
}

impl AsyncRead for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.taken == self.piece.len() {
            match ready!(self.inbound.poll_recv(cx)) {
                Some(piece) => {
                    self.piece = piece;
                    self.taken = 0;
                }
                None => return Poll::Ready(Ok(())),
            }
        }
        let rest = &self.piece[self.taken..];
        let count = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..count]);
        self.taken += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if buf.len() > MAX_PAYLOAD {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{} bytes in one write; a frame takes {MAX_PAYLOAD} at most",
                    buf.len()
                ),
            )));
        }
        let closed = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.outbound.poll_reserve(cx)).map_err(closed)?;
        let frame = frame::encode(self.id, buf);
        self.outbound.send_item(frame).map_err(closed)?;
        Poll::Ready(Ok(buf.len()))
    }

    /// What was written is queued as whole frames, and the trunk writes them without waiting.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Nothing tells the other end about it; frames can't be written here any more.
    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outbound.close();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
