//! What can be seen of the process from outside: metrics, health, traces.

mod endpoint;
mod metrics;
#[cfg(feature = "otel")]
pub mod traces;

pub use self::{
    endpoint::{Endpoint, EndpointError},
    metrics::{Call, Connected, Metrics},
};
