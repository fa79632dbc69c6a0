//! Clients of containerd and the CRI that ask for checkpoints.
#![forbid(unsafe_code)]

pub mod client;
pub mod connect;
pub mod containerd;
pub mod cri;

#[allow(
    missing_docs,
    clippy::all,
    clippy::cast_lossless,
    unused_qualifications
)]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/proto.rs"));
}
