//! The pass-through: HTTP/2 from kubelet, HTTP/2 to containerd, and one method that stays here.
//!
//! ```text
//! kubelet ══ connection ══> Downstream ──┬── Upstream ══ connection of its own ══> containerd
//!            request 1 ────────────────> │ ────────────────> request 1, body as it comes
//!            headers, DATA, trailers <── │ <──────────────── headers, DATA, trailers
//!            RST_STREAM ───────────────> │ ────────────────> RST_STREAM
//!            CheckpointContainer ──────> └── intercept
//! ```
//!
//! Nothing of what passes is decoded or kept, so that methods of later releases pass as well.
//! Every connection of a client has one of its own to containerd: clients can't hold each other
//! up, and what a client does to its connection happens to its own alone. That connection is made
//! by the first request and anew by the first one after its end.

mod body;
mod downstream;
pub mod grpc;
mod upstream;

pub use self::{
    body::{Outgoing, Reply},
    downstream::{Caller, Proxy},
    upstream::{Away, Failure, Upstream},
};

/// HTTP/2 flow control of one stream, in bytes: how much of an answer is on its way while its
/// reader is slow. Both sides are on this machine, so that little is enough to keep it going.
const STREAM_WINDOW: u32 = 256 << 10;
/// HTTP/2 flow control of one connection: what streams that nobody reads may take of it before
/// others stand still as well.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Room for headers and trailers; error texts travel there.
const HEADERS_MAX: u32 = 1 << 20;
/// Calls at a time on one connection of a client. More wait at the client.
const STREAMS_MAX: u32 = 4096;
/// Calls that a client may take back before they are looked at. A kubelet that gives up many at
/// once must not lose its connection over it.
const RESETS_MAX: usize = 4096;
