//! What a collector of OpenTelemetry gets to see of a checkpoint.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use kybernate_hooks::observe::traces::Traces;
use tokio::net::TcpListener;

use crate::ends::{Between, read, soon};

const CHECKPOINT: &str = "/runtime.v1.RuntimeService/CheckpointContainer";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// Path and body of each export.
type Exports = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A collector that keeps what is exported.
async fn collector(seen: Exports) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                let path = request.uri().path().to_owned();
                let (body, _) = read(&mut request.into_body()).await.unwrap();
                seen.lock().unwrap().push((path, body));
                let head = Response::builder().header("content-type", "application/grpc");
                let head = head.body(()).unwrap();
                let mut stream = respond.send_response(head, false).unwrap();
                stream
                    .send_data(Bytes::from_static(&[0; 5]), false)
                    .unwrap();
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                stream.send_trailers(trailers).unwrap();
            });
        }
    });
    format!("http://{address}")
}

#[tokio::test]
async fn a_checkpoint_is_a_span_of_its_callers_trace() {
    let seen = Exports::default();
    let traces = Traces::to(collector(seen.clone()).await).unwrap();
    let between = Between::start_with(|intercept| intercept.traced(Some(traces.tracer())));
    // There is no containerd, so it fails.
    let request = Request::post(format!("http://localhost{CHECKPOINT}"))
        .header("content-type", "application/grpc")
        .header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01"))
        .body(())
        .unwrap();
    let mut sender = between.connect().await.ready().await.unwrap();
    let (response, mut body) = sender.send_request(request, false).unwrap();
    let message = b"\0\0\0\0\x0d\x0a\x04c0de\x12\x05/a/b\x2e";
    body.send_data(Bytes::from_static(message), true).unwrap();
    let response = soon(response).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "14");
    soon(traces.end()).await.unwrap();

    let seen = seen.lock().unwrap();
    let (path, export) = &seen[0];
    assert_eq!(
        path,
        "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
    );
    let trace: Vec<u8> = (0..TRACE.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&TRACE[at..at + 2], 16).unwrap())
        .collect();
    for part in [
        trace.as_slice(),
        b"kybernate-cri-hooks",
        b"CheckpointContainer",
        b"c0de",
        b"no containerd at",
    ] {
        let found = export.windows(part.len()).any(|window| window == part);
        assert!(found, "{part:?} was not exported");
    }
}

#[tokio::test]
async fn a_place_that_can_be_no_collector_is_named() {
    let error = Traces::to("no place".into()).unwrap_err().to_string();
    assert!(error.contains("OTEL_EXPORTER_OTLP_ENDPOINT"), "{error}");
}
