//! The process between kubelet and containerd, and the clients of containerd and the CRI that
//! ask for checkpoints.
//!
//! ```text
//! daemon ── proxy ── intercept ── client ── connect ── containerd, cri
//!   └ observe           └ retention
//! ```
#![forbid(unsafe_code)]

pub mod client;
pub mod connect;
pub mod containerd;
pub mod cri;
pub mod daemon;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod intercept;
pub mod observe;
pub mod proxy;
pub mod retention;

#[allow(
    missing_docs,
    clippy::all,
    clippy::cast_lossless,
    unused_qualifications
)]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/proto.rs"));
}
