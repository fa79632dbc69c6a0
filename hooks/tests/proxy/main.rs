//! The pass-through between a client and a double of containerd, both on bare HTTP/2, so that
//! every frame can be looked at.

mod ends;
mod faults;
mod flow;
mod passing;
#[cfg(feature = "otel")]
mod traces;
