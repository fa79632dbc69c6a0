//! OpenTelemetry traces, with the feature `otel`: sent over OTLP (gRPC) to a collector.
//!
//! Calls that pass leave no span here. The headers by which their traces go on pass as they are.

use std::{env, sync::Arc};

use http::HeaderMap;
use opentelemetry::{
    Context,
    propagation::{Extractor, TextMapPropagator as _},
};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkError,
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider},
};

/// Names the collector, as everywhere in OpenTelemetry: `http://127.0.0.1:4317`.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// What the spans are of, if `OTEL_SERVICE_NAME` says nothing else.
const SERVICE: &str = "kybernate-cri-hooks";

/// There is no way to the collector.
#[derive(Debug, thiserror::Error)]
#[error("cannot send traces to {endpoint:?}: {source}; correct or unset {ENDPOINT}")]
pub struct TracesError {
    endpoint: String,
    source: ExporterBuildError,
}

/// The way to a collector.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// To the collector that the environment names; `None` when it names none.
    ///
    /// # Errors
    /// It names none that can be.
    pub fn from_env() -> Result<Option<Self>, TracesError> {
        let endpoint = env::var(ENDPOINT).unwrap_or_default();
        if endpoint.is_empty() {
            return Ok(None);
        }
        Self::to(endpoint).map(Some)
    }

    /// To the collector at `endpoint`. Must be called within a tokio runtime, which sends.
    ///
    /// # Errors
    /// `endpoint` is no address.
    pub fn to(endpoint: String) -> Result<Self, TracesError> {
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(&endpoint)
            .build()
            .map_err(|source| TracesError { endpoint, source })?;
        let mut resource = Resource::builder();
        if env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name(SERVICE);
        }
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        Ok(Self(provider))
    }

    /// What makes spans.
    #[must_use]
    pub fn tracer(&self) -> Arc<SdkTracer> {
        use opentelemetry::trace::TracerProvider as _;
        Arc::new(self.0.tracer(SERVICE))
    }

    /// Sends what is left.
    ///
    /// # Errors
    /// The collector does not take it.
    pub async fn end(self) -> Result<(), OTelSdkError> {
        // It waits for the runtime that it is called in.
        tokio::task::spawn_blocking(move || self.0.shutdown())
            .await
            .unwrap_or_else(|error| Err(OTelSdkError::InternalFailure(error.to_string())))
    }
}

/// The span that a request is part of.
#[must_use]
pub fn parent(headers: &HeaderMap) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers))
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
