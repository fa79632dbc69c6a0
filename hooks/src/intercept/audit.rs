//! One line per checkpoint: who asked, what for, and the digest of what came of it.

use std::time::Duration;

use tonic::Status;

use super::take::Order;
use crate::client::Checkpoint;

/// Target of audit lines, to filter the log by.
const TARGET: &str = "kybernate::audit";

/// Says that an archive is there.
pub(super) fn taken(order: &Order, checkpoint: &Checkpoint) {
    let result = &checkpoint.result;
    let (namespace, pod, container) = names(checkpoint);
    tracing::info!(
        target: TARGET,
        request = %order.id,
        caller = %order.caller,
        namespace,
        pod,
        container,
        id = %checkpoint.subject.id,
        location = %checkpoint.output.display(),
        digest = %format_args!("sha256:{}", result.manifest_sha256),
        archive_bytes = result.archive_bytes,
        content_bytes = result.content_bytes,
        pause_ms = result.pause_ms,
        total_ms = result.total_ms,
        "checkpoint taken"
    );
}

/// Says that there is none.
pub(super) fn failed(order: &Order, status: &Status, after: Duration) {
    tracing::warn!(
        target: TARGET,
        request = %order.id,
        caller = %order.caller,
        id = %order.asked.container_id,
        location = %order.asked.location,
        code = ?status.code(),
        after_ms = after.as_millis() as u64,
        "checkpoint failed: {}",
        status.message()
    );
}

fn names(checkpoint: &Checkpoint) -> (&str, &str, &str) {
    checkpoint.subject.pod.as_ref().map_or(("", "", ""), |pod| {
        let name = pod.status.metadata.as_ref().map_or("", |m| &m.name);
        (&pod.pod.namespace, &pod.pod.name, name)
    })
}
