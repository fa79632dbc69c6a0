//! CRIU at the other end of the socket.
//!
//! CRIU corks the socket, so its last command, a few bytes, would arrive only when the kernel's
//! timer of 200 ms has passed, with every process still frozen. CRIU's log says when that
//! command was sent ([`Farewell`]): the answer goes out then, CRIU closes the socket, and that
//! flushes the command. Nothing is taken on trust: the dump counts only if the command arrives.

use std::{
    fs::File,
    io::{self, IoSliceMut, Read, Write},
    net::TcpStream,
    path::PathBuf,
    time::Duration,
};

use super::PageServerError;

/// How long to wait for bytes before looking whether CRIU has said its last.
pub(super) const IDLE: Duration = Duration::from_millis(2);
/// What CRIU logs before its last command (criu/page-xfer.c, disconnect_from_page_server).
const FAREWELL: &[u8] = b"Disconnect from the page server";
/// The answer to the last command: all is well.
const ALL_RECEIVED: [u8; 4] = 0_i32.to_le_bytes();

/// The socket, with an eye on CRIU's log while nothing arrives.
pub(super) struct Peer {
    stream: TcpStream,
    farewell: Option<Farewell>,
    answered: bool,
}

impl Peer {
    /// The end of `stream`; `log` is where CRIU writes its log, for an early farewell.
    pub(super) fn new(stream: TcpStream, log: Option<PathBuf>) -> Self {
        Self {
            stream,
            farewell: log.map(Farewell::new),
            answered: false,
        }
    }

    /// Sends answers at once, and looks up from the socket while nothing arrives.
    pub(super) fn prepare(&self) -> Result<(), PageServerError> {
        self.stream
            .set_nodelay(true)
            .and_then(|()| self.stream.set_read_timeout(Some(IDLE)))
            .map_err(PageServerError::Socket)
    }

    /// Answers the last command, unless that was done when CRIU's log said so.
    pub(super) fn farewell(&mut self) -> Result<(), PageServerError> {
        if !self.answered {
            self.answer(&ALL_RECEIVED)?;
            self.answered = true;
        }
        Ok(())
    }

    pub(super) fn read(&mut self, parts: &mut [IoSliceMut<'_>]) -> Result<usize, PageServerError> {
        loop {
            match self.stream.read_vectored(parts) {
                Ok(0) => return Err(PageServerError::Incomplete),
                Ok(n) => return Ok(n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if !self.answered && self.farewell.as_mut().is_some_and(Farewell::is_said) {
                        self.farewell()?;
                    }
                }
                Err(e) => return Err(PageServerError::Socket(e)),
            }
        }
    }

    pub(super) fn read_exact(&mut self, mut bytes: &mut [u8]) -> Result<(), PageServerError> {
        while !bytes.is_empty() {
            let n = self.read(&mut [IoSliceMut::new(bytes)])?;
            bytes = &mut bytes[n..];
        }
        Ok(())
    }

    pub(super) fn answer(&mut self, bytes: &[u8]) -> Result<(), PageServerError> {
        self.stream
            .write_all(bytes)
            .map_err(PageServerError::Socket)
    }
}

/// Looks for [`FAREWELL`] in CRIU's log as it grows.
struct Farewell {
    path: PathBuf,
    file: Option<File>,
    /// The end of what was read so far, where the text may have begun.
    tail: Vec<u8>,
}

impl Farewell {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            tail: Vec::new(),
        }
    }

    fn is_said(&mut self) -> bool {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let Some(file) = &mut self.file else {
            return false;
        };
        // A log that can't be read costs the early answer, nothing else.
        let _ = file.read_to_end(&mut self.tail);
        let said = self
            .tail
            .windows(FAREWELL.len())
            .any(|window| window == FAREWELL);
        let keep = self.tail.len().min(FAREWELL.len());
        self.tail.drain(..self.tail.len() - keep);
        said
    }
}
