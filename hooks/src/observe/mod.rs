//! What can be seen of the process from outside: metrics, health.

mod endpoint;
mod metrics;

pub use self::{
    endpoint::{Endpoint, EndpointError},
    metrics::{Call, Connected, Metrics},
};
