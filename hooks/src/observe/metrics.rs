//! The numbers. docs/hooks.md lists them.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use kybernate_config::request::CheckpointResult;
use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use tonic::Code;

use crate::retention::Removed;

/// Seconds of calls that pass: most take a millisecond, a pull of an image minutes.
const CALL_BUCKETS: [f64; 12] = [
    0.000_25, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1.0, 10.0, 60.0, 600.0,
];
/// Seconds of checkpoints, their phases and pauses.
const CHECKPOINT_BUCKETS: [f64; 13] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0,
];
/// Size of an archive as a part of its content.
const RATIO_BUCKETS: [f64; 8] = [0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0];
/// Method of calls that containerd does not know or that can't be named.
const OTHER: &str = "other";
/// Methods that have numbers of their own. The CRI has some forty.
const METHODS_MAX: usize = 128;

type Label = (&'static str, Cow<'static, str>);
type Histograms = Family<[Label; 1], Histogram, fn() -> Histogram>;

/// All numbers of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    calls: Family<[Label; 2], Counter>,
    seconds: Histograms,
    methods: AtomicUsize,
    in_flight: Gauge<i64, AtomicI64>,
    connections: Gauge<i64, AtomicI64>,
    away: Counter<u64, AtomicU64>,
    checkpoints: Family<[Label; 1], Counter>,
    checkpoint_seconds: Histograms,
    phase_seconds: Histograms,
    pause: Histogram,
    ratio: Histogram,
    archive_bytes: Counter<u64, AtomicU64>,
    content_bytes: Counter<u64, AtomicU64>,
    removed: Counter<u64, AtomicU64>,
    removed_bytes: Counter<u64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("kybernate_cri");
        let calls = Family::default();
        registry.register("calls", "Calls by method and how they ended", calls.clone());
        let seconds = Histograms::new_with_constructor(|| Histogram::new(CALL_BUCKETS));
        registry.register_with_unit(
            "call_duration",
            "Calls by method, from head to end",
            Unit::Seconds,
            seconds.clone(),
        );
        let in_flight = Gauge::default();
        registry.register("calls_in_flight", "Calls that go on", in_flight.clone());
        let connections = Gauge::default();
        registry.register("connections", "Connections of clients", connections.clone());
        let away = Counter::default();
        registry.register(
            "containerd_away",
            "Calls that were answered UNAVAILABLE here",
            away.clone(),
        );
        let checkpoints = Family::default();
        registry.register(
            "checkpoints",
            "Checkpoints of class containers by result",
            checkpoints.clone(),
        );
        let checkpoint_seconds =
            Histograms::new_with_constructor(|| Histogram::new(CHECKPOINT_BUCKETS));
        registry.register_with_unit(
            "checkpoint_duration",
            "Checkpoints by result, from the call to the published archive",
            Unit::Seconds,
            checkpoint_seconds.clone(),
        );
        let phase_seconds = Histograms::new_with_constructor(|| Histogram::new(CHECKPOINT_BUCKETS));
        registry.register_with_unit(
            "checkpoint_phase",
            "Phases of checkpoints that were taken",
            Unit::Seconds,
            phase_seconds.clone(),
        );
        let pause = Histogram::new(CHECKPOINT_BUCKETS);
        registry.register_with_unit(
            "checkpoint_pause",
            "How long containers were frozen",
            Unit::Seconds,
            pause.clone(),
        );
        let ratio = Histogram::new(RATIO_BUCKETS);
        registry.register(
            "checkpoint_ratio",
            "Size of archives as a part of their content",
            ratio.clone(),
        );
        let [archive_bytes, content_bytes, removed_bytes] = [
            ("checkpoint_archive", "Bytes of archives written"),
            ("checkpoint_content", "Bytes in them before compression"),
            ("retention_removed", "Bytes of archives removed"),
        ]
        .map(|(name, help)| {
            let counter = Counter::default();
            registry.register_with_unit(name, help, Unit::Bytes, counter.clone());
            counter
        });
        let removed = Counter::default();
        registry.register(
            "retention_removed_archives",
            "Archives removed",
            removed.clone(),
        );
        Self {
            registry,
            calls,
            seconds,
            methods: AtomicUsize::new(0),
            in_flight,
            connections,
            away,
            checkpoints,
            checkpoint_seconds,
            phase_seconds,
            pause,
            ratio,
            archive_bytes,
            content_bytes,
            removed,
            removed_bytes,
        }
    }
}

impl Metrics {
    /// Everything in the OpenMetrics text format.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut text, &self.registry);
        text
    }

    /// A client has connected; it is gone when the value is.
    #[must_use]
    pub fn connection(self: &Arc<Self>) -> Connected {
        self.connections.inc();
        Connected(self.clone())
    }

    /// A call has begun; it ends with the value.
    #[must_use]
    pub fn call(self: &Arc<Self>, path: &str) -> Call {
        self.in_flight.inc();
        Call {
            metrics: self.clone(),
            method: method(path),
            begun: Instant::now(),
            code: None,
        }
    }

    /// containerd could not be asked.
    pub fn away(&self) {
        self.away.inc();
    }

    /// A checkpoint was taken.
    pub fn taken(&self, result: &CheckpointResult) {
        self.ended("ok", Duration::from_millis(result.total_ms));
        self.pause.observe(result.pause_ms as f64 / 1000.0);
        if result.content_bytes > 0 {
            let ratio = result.archive_bytes as f64 / result.content_bytes as f64;
            self.ratio.observe(ratio);
        }
        self.archive_bytes.inc_by(result.archive_bytes);
        self.content_bytes.inc_by(result.content_bytes);
    }

    /// A checkpoint was not taken; `cause` is the name of its gRPC code.
    pub fn failed(&self, cause: &str, after: Duration) {
        self.ended(cause, after);
    }

    /// A phase of a checkpoint that was taken.
    pub fn phase(&self, name: &str, took: Duration) {
        let label = [("phase", name.to_owned().into())];
        let phase = self.phase_seconds.get_or_create(&label);
        phase.observe(took.as_secs_f64());
    }

    /// Old archives were removed.
    pub fn removed(&self, removed: &Removed) {
        self.removed.inc_by(removed.count);
        self.removed_bytes.inc_by(removed.bytes);
    }

    /// The label of a method; those that come when there are many already share one.
    fn label(&self, method: Cow<'static, str>) -> Label {
        let label = ("method", method);
        let known = self.seconds.get(std::array::from_ref(&label)).is_some();
        if known || self.methods.fetch_add(1, Ordering::Relaxed) < METHODS_MAX {
            return label;
        }
        ("method", OTHER.into())
    }

    fn ended(&self, result: &str, after: Duration) {
        let label = [("result", result.to_owned().into())];
        self.checkpoints.get_or_create(&label).inc();
        let seconds = self.checkpoint_seconds.get_or_create(&label);
        seconds.observe(after.as_secs_f64());
    }
}

/// A connection of a client.
#[derive(Debug)]
pub struct Connected(Arc<Metrics>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}

/// A call that goes on.
#[derive(Debug)]
pub struct Call {
    metrics: Arc<Metrics>,
    method: Cow<'static, str>,
    begun: Instant,
    code: Option<Code>,
}

impl Call {
    /// How it ends. Without this it counts as cancelled, by whichever side.
    pub fn ends_with(&mut self, code: Code) {
        self.code = Some(code);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let code = self.code.unwrap_or(Code::Cancelled);
        // Names that nobody knows are the client's invention, and it may invent many.
        if code == Code::Unimplemented {
            self.method = OTHER.into();
        }
        let metrics = &self.metrics;
        let method = metrics.label(std::mem::take(&mut self.method));
        metrics.in_flight.dec();
        let seconds = metrics.seconds.get_or_create(std::array::from_ref(&method));
        seconds.observe(self.begun.elapsed().as_secs_f64());
        drop(seconds);
        let code = ("code", name(code).into());
        metrics.calls.get_or_create(&[method, code]).inc();
    }
}

/// `Service/Method` of a CRI call.
fn method(path: &str) -> Cow<'static, str> {
    let named = path.strip_prefix("/runtime.v1.").filter(|rest| {
        rest.len() <= 64
            && rest
                .split_once('/')
                .is_some_and(|(service, method)| word(service) && word(method))
    });
    named.map_or(OTHER.into(), |rest| rest.to_owned().into())
}

fn word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_of_the_cri_have_names_and_no_others() {
        assert_eq!(
            method("/runtime.v1.RuntimeService/Version"),
            "RuntimeService/Version"
        );
        for path in [
            "/",
            "/runtime.v1./Version",
            "/runtime.v1.A/",
            "/runtime.v1.A/b/c",
            "/runtime.v1.A/b\"c",
            "/grpc.health.v1.Health/Check",
        ] {
            assert_eq!(method(path), OTHER, "{path}");
        }
        assert_eq!(method(&format!("/runtime.v1.A/{}", "b".repeat(70))), OTHER);
    }

    #[test]
    fn a_call_counts_once_however_it_ends() {
        let metrics = Arc::new(Metrics::default());
        let mut call = metrics.call("/runtime.v1.RuntimeService/Version");
        assert!(metrics.text().contains("kybernate_cri_calls_in_flight 1"));
        call.ends_with(Code::Ok);
        drop(call);
        drop(metrics.call("/runtime.v1.RuntimeService/Version"));
        let mut unknown = metrics.call("/runtime.v1.RuntimeService/Invented");
        unknown.ends_with(Code::Unimplemented);
        drop(unknown);
        let text = metrics.text();
        for line in [
            r#"kybernate_cri_calls_total{method="RuntimeService/Version",code="OK"} 1"#,
            r#"kybernate_cri_calls_total{method="RuntimeService/Version",code="CANCELLED"} 1"#,
            r#"kybernate_cri_calls_total{method="other",code="UNIMPLEMENTED"} 1"#,
            "kybernate_cri_calls_in_flight 0",
            r#"kybernate_cri_call_duration_seconds_count{method="RuntimeService/Version"} 2"#,
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
        assert!(!text.contains("Invented"));
    }

    #[test]
    fn names_without_number_share_one() {
        let metrics = Arc::new(Metrics::default());
        for n in 0..METHODS_MAX + 10 {
            drop(metrics.call(&format!("/runtime.v1.RuntimeService/M{n}")));
        }
        let text = metrics.text();
        let lines = |part: &str| text.lines().filter(|line| line.contains(part)).count();
        assert_eq!(lines("kybernate_cri_calls_total"), METHODS_MAX + 1);
        let shared = r#"kybernate_cri_calls_total{method="other",code="CANCELLED"} 10"#;
        assert!(text.contains(shared), "{text}");
        drop(metrics.call("/runtime.v1.RuntimeService/M0"));
        let known = r#"kybernate_cri_calls_total{method="RuntimeService/M0",code="CANCELLED"} 2"#;
        assert!(metrics.text().contains(known));
    }

    #[test]
    fn a_checkpoint_leaves_its_numbers() {
        let metrics = Metrics::default();
        metrics.taken(&CheckpointResult {
            archive_bytes: 40,
            content_bytes: 100,
            manifest_sha256: String::new(),
            pause_ms: 120,
            total_ms: 300,
        });
        metrics.failed("DeadlineExceeded", Duration::from_secs(1));
        metrics.phase("dump", Duration::from_millis(100));
        let text = metrics.text();
        for line in [
            r#"kybernate_cri_checkpoints_total{result="ok"} 1"#,
            r#"kybernate_cri_checkpoints_total{result="DeadlineExceeded"} 1"#,
            "kybernate_cri_checkpoint_archive_bytes_total 40",
            "kybernate_cri_checkpoint_pause_seconds_sum 0.12",
            r#"kybernate_cri_checkpoint_ratio_bucket{le="0.5"} 1"#,
            r#"kybernate_cri_checkpoint_phase_seconds_count{phase="dump"} 1"#,
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
    }
}
