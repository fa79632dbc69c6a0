//! A checkpoint as spans.
//!
//! ```text
//! the caller's span, if the request names one (traceparent)
//!  └ CheckpointContainer     request, caller, container, location, digest or error
//!     ├ freeze               the shim's phases, as far as they came
//!     ├ dump …
//! ```

use std::time::SystemTime;

use http::HeaderMap;
use opentelemetry::{
    Context, KeyValue,
    trace::{Span as _, SpanKind, Status as SpanStatus, TraceContextExt as _, Tracer as _},
};
use opentelemetry_sdk::trace::SdkTracer;
use tonic::Status;

use super::take::{Order, Phase};
use crate::{client::Checkpoint, observe::traces};

/// Where the spans of a call go.
#[derive(Debug, Clone)]
pub(super) struct Trace {
    tracer: std::sync::Arc<SdkTracer>,
    parent: Context,
    begun: SystemTime,
}

impl Trace {
    /// Of a call that comes now.
    pub(super) fn of(tracer: std::sync::Arc<SdkTracer>, headers: &HeaderMap) -> Self {
        Self {
            tracer,
            parent: traces::parent(headers),
            begun: SystemTime::now(),
        }
    }

    /// Tells how it went.
    pub(super) fn end(&self, order: &Order, phases: &[Phase], went: Result<&Checkpoint, &Status>) {
        let builder = self
            .tracer
            .span_builder("CheckpointContainer")
            .with_kind(SpanKind::Server)
            .with_start_time(self.begun)
            .with_attributes([
                KeyValue::new("kybernate.request", order.id.clone()),
                KeyValue::new("kybernate.caller", order.caller.clone()),
                KeyValue::new("container.id", order.asked.container_id.clone()),
                KeyValue::new("kybernate.location", order.asked.location.clone()),
            ]);
        let mut whole = self.tracer.build_with_context(builder, &self.parent);
        match went {
            Ok(taken) => {
                let result = &taken.result;
                let digest = format!("sha256:{}", result.manifest_sha256);
                whole.set_attribute(KeyValue::new("kybernate.digest", digest));
                for (name, value) in [
                    ("kybernate.archive_bytes", result.archive_bytes),
                    ("kybernate.content_bytes", result.content_bytes),
                    ("kybernate.pause_ms", result.pause_ms),
                ] {
                    let value = i64::try_from(value).unwrap_or(i64::MAX);
                    whole.set_attribute(KeyValue::new(name, value));
                }
                whole.set_status(SpanStatus::Ok);
            }
            Err(status) => {
                let code = i64::from(i32::from(status.code()));
                whole.set_attribute(KeyValue::new("rpc.grpc.status_code", code));
                whole.set_status(SpanStatus::error(status.message().to_owned()));
            }
        }
        let inside = Context::new().with_remote_span_context(whole.span_context().clone());
        for phase in phases {
            let builder = self
                .tracer
                .span_builder(phase.name.clone())
                .with_start_time(phase.begun);
            let mut part = self.tracer.build_with_context(builder, &inside);
            part.end_with_timestamp(phase.begun + phase.took);
        }
        whole.end();
    }
}
