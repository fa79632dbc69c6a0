//! Prepares the containers of chosen pods for checkpoint and restore, through the runtime's
//! Node Resource Interface (NRI).
//!
//! ```text
//! containerd ── trunk (one unix socket) ── nri::mux ── nri::stub ── plugin
//!                                          frames      protocol     what to change, and why
//! ```
//!
//! [`nri`] speaks the protocol and knows nothing of checkpoints. [`plugin`] decides and does no
//! I/O. [`standby`] goes on where a plugin has ended that the runtime has launched.
#![forbid(unsafe_code)]

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod nri;
pub mod plugin;
pub mod standby;

/// Cancels the token at SIGTERM or SIGINT.
///
/// # Panics
/// Outside a tokio runtime.
pub fn cancel_on_signal(stop: &CancellationToken) -> io::Result<()> {
    let (mut term, mut int) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let stop = stop.clone();
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
        stop.cancel();
    });
    Ok(())
}
