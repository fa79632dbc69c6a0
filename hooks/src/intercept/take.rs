//! A checkpoint from the request to the line in the log, on a thread of its own.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use kybernate_config::{Settings, names::KUBERNETES_NAMESPACE, request::Progress};
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;

use super::{Outcome, audit, deadline::Deadline, error::CallError, subject::handler_of};
use crate::{
    client::{self, Checkpoint, CheckpointError, CheckpointOrder, Subject, Target, Update},
    connect::Connection,
    cri::v1::CheckpointContainerRequest,
    observe::Metrics,
    retention::{self, Owner, Promise},
};

/// One call, and what it needs.
#[derive(Debug)]
pub(super) struct Order {
    /// Names the call in the log.
    pub(super) id: String,
    /// Who asks.
    pub(super) caller: String,
    /// When it has to be done.
    pub(super) deadline: Deadline,
    /// What is asked for.
    pub(super) asked: CheckpointContainerRequest,
    /// The administrator's settings.
    pub(super) settings: Arc<Settings>,
    /// Where it is counted.
    pub(super) metrics: Arc<Metrics>,
    /// Where its spans go.
    #[cfg(feature = "otel")]
    pub(super) trace: Option<super::trace::Trace>,
}

/// Does it. `cancel` makes the shim roll back, which is waited for.
pub(super) fn on_this_thread(order: &Order, cancel: &CancellationToken) -> Outcome {
    let span = tracing::info_span!("checkpoint", request = %order.id);
    let _inside = span.enter();
    let begun = Instant::now();
    let mut phases = Phases::default();
    let taken = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| CallError::Runtime { source })
        .and_then(|runtime| runtime.block_on(take(order, cancel, &mut phases)));
    match taken {
        Ok(None) => Outcome::Foreign,
        Ok(Some(checkpoint)) => {
            let phases = phases.took(Duration::from_millis(checkpoint.result.total_ms));
            for phase in &phases {
                order.metrics.phase(&phase.name, phase.took);
            }
            #[cfg(feature = "otel")]
            if let Some(trace) = &order.trace {
                trace.end(order, &phases, Ok(&checkpoint));
            }
            order.metrics.taken(&checkpoint.result);
            audit::taken(order, &checkpoint);
            prune(order, &checkpoint.output);
            Outcome::Taken
        }
        Err(error) => {
            let status = error.status(&order.deadline);
            order.metrics.failed(&error.cause(), begun.elapsed());
            #[cfg(feature = "otel")]
            if let Some(trace) = &order.trace {
                let until = phases.since().elapsed().unwrap_or_default();
                trace.end(order, &phases.took(until), Err(&status));
            }
            audit::failed(order, &status, begun.elapsed());
            Outcome::Failed(status)
        }
    }
}

async fn take(
    order: &Order,
    cancel: &CancellationToken,
    phases: &mut Phases,
) -> Result<Option<Checkpoint>, CallError> {
    let asked = &order.asked;
    let connection = Connection::open(&order.settings.containerd.socket)
        .await
        .map_err(CheckpointError::from)?;
    let prepared = tokio::select! {
        prepared = prepare(order, &connection) => prepared?,
        () = cancel.cancelled() => {
            return Err(CheckpointError::Interrupted {
                id: asked.container_id.clone(),
                said: None,
            }
            .into());
        }
        () = tokio::time::sleep(order.deadline.left()) => return Err(late(order).into()),
    };
    let Some((target, mut room)) = prepared else {
        return Ok(None);
    };
    let what = CheckpointOrder {
        output: PathBuf::from(&asked.location),
        // As containerd does. kubelet's names have the second in them: whoever asks twice in one
        // second gets the later archive.
        replace: true,
        exit: false,
        level: None,
        buffer: None,
        encrypt_to: Vec::new(),
        timeout: order.deadline.left(),
        space_check: true,
        requester: Some(format!("CRI: {} (request {})", order.caller, order.id)),
    };
    let mut update = |update| match update {
        Update::Started { id, memory_bytes } => {
            phases.since = Some(SystemTime::now());
            tracing::info!(
                id,
                memory_bytes,
                location = asked.location,
                "checkpoint begins"
            );
        }
        Update::Warning(text) => tracing::warn!("{text}"),
        Update::Progress(seen) => {
            if let Some(room) = &mut room {
                room.written(seen.written_bytes);
            }
            phases.see(&seen);
        }
        Update::RollingBack => tracing::info!("rolling back"),
    };
    let taken = client::checkpoint(
        &connection,
        KUBERNETES_NAMESPACE,
        &target,
        &what,
        &mut update,
        cancel.cancelled(),
    )
    .await?;
    Ok(Some(taken))
}

/// Finds out whose call it is, and sees that there is room, if any is to be kept; `None` when it is
/// not ours.
async fn prepare(
    order: &Order,
    connection: &Connection,
) -> Result<Option<(Target, Option<Promise>)>, CallError> {
    let Some((handler, id)) = handler_of(connection, &order.asked.container_id).await? else {
        return Ok(None);
    };
    if !order.settings.hooks.handlers.contains(&handler) {
        tracing::debug!(id, handler, "passed to containerd");
        return Ok(None);
    }
    let location = Path::new(&order.asked.location);
    let Some(parent) = location.parent().filter(|_| location.is_absolute()) else {
        return Err(CallError::Location {
            location: location.to_owned(),
        });
    };
    let target = Target::Id(id);
    if retention::keeps_space(&order.settings.retention, parent) {
        let subject = client::resolve(connection, KUBERNETES_NAMESPACE, &target).await?;
        let memory = client::memory(connection, &subject).await?;
        let (removed, room) =
            retention::make_room(&order.settings.retention, &owner(&subject), memory)?;
        order.metrics.removed(&removed);
        return Ok(Some((target, Some(room))));
    }
    Ok(Some((target, None)))
}

/// Removes what is too much, now that a newer archive is there.
fn prune(order: &Order, output: &Path) {
    match retention::prune(&order.settings.retention, output) {
        Ok(removed) => order.metrics.removed(&removed),
        Err(error) => tracing::warn!("old archives stay: {error}"),
    }
}

fn owner(subject: &Subject) -> Owner {
    subject.pod.as_ref().map_or_else(
        || Owner::alone(&subject.id),
        |pod| {
            let name = pod.status.metadata.as_ref().map_or("", |m| &m.name);
            Owner::of_pod(&pod.pod.namespace, &pod.pod.name, name)
        },
    )
}

fn late(order: &Order) -> CheckpointError {
    CheckpointError::Deadline {
        id: order.asked.container_id.clone(),
        timeout_s: order.deadline.given.as_secs(),
        said: None,
    }
}

/// A part of a checkpoint.
#[derive(Debug, Clone)]
pub(super) struct Phase {
    /// The shim's name for it.
    pub(super) name: String,
    /// When it began.
    #[cfg_attr(not(feature = "otel"), allow(dead_code))]
    pub(super) begun: SystemTime,
    /// How long it took.
    pub(super) took: Duration,
}

/// When which phase began, from the shim's reports.
#[derive(Debug, Default)]
struct Phases {
    /// When the shim was asked. Its reports count from there.
    since: Option<SystemTime>,
    begun: Vec<(String, Duration)>,
}

impl Phases {
    fn see(&mut self, progress: &Progress) {
        if self
            .begun
            .last()
            .is_none_or(|(name, _)| *name != progress.phase)
        {
            let since = Duration::from_millis(progress.elapsed_ms);
            self.begun.push((progress.phase.clone(), since));
        }
    }

    fn since(&self) -> SystemTime {
        self.since.unwrap_or_else(SystemTime::now)
    }

    /// How long each took, when all ended after `total`.
    fn took(self, total: Duration) -> Vec<Phase> {
        let since = self.since();
        let ends: Vec<_> = self.begun.iter().skip(1).map(|(_, begun)| *begun).collect();
        let ends = ends.into_iter().chain([total]);
        self.begun
            .into_iter()
            .zip(ends)
            .map(|((name, begun), end)| Phase {
                name,
                begun: since + begun,
                took: end.saturating_sub(begun),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_ends_where_the_next_begins() {
        let mut phases = Phases::default();
        for (phase, elapsed_ms) in [("freeze", 2), ("dump", 10), ("dump", 90), ("sync", 110)] {
            phases.see(&Progress {
                phase: phase.into(),
                read_bytes: 0,
                written_bytes: 0,
                elapsed_ms,
            });
        }
        let took: Vec<_> = phases
            .took(Duration::from_millis(150))
            .into_iter()
            .map(|phase| (phase.name, phase.took.as_millis()))
            .collect();
        let wanted = [("freeze", 8), ("dump", 100), ("sync", 40)];
        assert_eq!(took, wanted.map(|(name, ms)| (name.to_owned(), ms)));
    }
}
