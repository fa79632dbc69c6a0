//! Hanging up on CRIU, from whatever thread.

use std::{
    io,
    net::{Shutdown, TcpStream},
    sync::{Arc, Mutex, PoisonError},
};

/// Cancels a [`PageServer`](super::PageServer) from another thread.
#[derive(Debug, Clone, Default)]
pub struct Line(Arc<Mutex<LineState>>);

#[derive(Debug, Default)]
struct LineState {
    cancelled: bool,
    stream: Option<TcpStream>,
}

impl Line {
    /// Closes the connection, now or as soon as there is one.
    pub fn cancel(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .cancelled = true;
        self.hang_up();
    }

    pub(super) fn hang_up(&self) {
        let stream = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .stream
            .take();
        if let Some(stream) = stream {
            // An error means that the peer is gone already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .cancelled
    }

    pub(super) fn hold(&self, stream: &TcpStream) -> io::Result<()> {
        let clone = stream.try_clone()?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).stream = Some(clone);
        Ok(())
    }
}
