//! Prepares the containers of chosen pods for checkpoint and restore, through the runtime's
//! Node Resource Interface (NRI).
//!
//! ```text
//! containerd ── trunk (one unix socket) ── nri::mux ── nri::stub ── plugin
//!                                          frames      protocol     what to change, and why
//! ```
//!
//! [`nri`] speaks the protocol and knows nothing of checkpoints. [`plugin`] decides and does no
//! I/O.
#![forbid(unsafe_code)]

pub mod nri;
pub mod plugin;
