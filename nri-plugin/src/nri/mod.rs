//! The Node Resource Interface, the plugin's side of it.
//!
//! ```text
//! plugin                                   runtime
//!   │ connect to the socket, or take over the descriptor it was launched with
//!   │ ── conn 2: RegisterPlugin ──────────────> │
//!   │ <───────────── conn 1: Configure ──────── │   answered with the events wanted
//!   │ <───────────── conn 1: Synchronize ────── │   what runs already, in one part or more
//!   │ <───────────── conn 1: CreateContainer ── │   answered with adjustments, or an error
//!   │ <───────────── conn 1: other events ───── │   their own methods, or StateChange
//! ```
//!
//! Both connections are carried by one trunk; [`mux`] draws its frames, [`stub`] runs a plugin.

pub mod connect;
pub mod events;
pub mod mux;
pub mod stub;

/// Messages, the service that a plugin serves and the client of the runtime's service.
///
/// Generated from `proto/nri.proto`.
#[allow(
    warnings,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks
)]
pub mod api {
    mod nri {
        include!(concat!(env!("OUT_DIR"), "/nri.rs"));
    }
    mod nri_ttrpc {
        include!(concat!(env!("OUT_DIR"), "/nri_ttrpc.rs"));
    }
    pub use nri::*;
    pub use nri_ttrpc::*;
}
