//! The process `kybernate-cri-hooks`: from its start to the last call.
//!
//! ```text
//! start ── socket ── metrics ── READY=1 ── accept …
//! SIGTERM, or another process at our path:
//!   drain   GOAWAY on every connection; clients make new ones, to systemd's queue or to the
//!           process that has come. Calls in flight go on.
//!   +1 s    answers that have begun and then say nothing, as streams of events do, are ended:
//!           UNAVAILABLE
//!   limit   what is left goes with the process; checkpoints are rolled back first
//! ```

mod notify;
mod socket;

use std::{error::Error, io, sync::Arc, time::Duration};

use kybernate_config::Settings;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::MissedTickBehavior,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::socket::bind;
pub use self::{
    notify::Notify,
    socket::{Listening, SocketError},
};
#[cfg(feature = "otel")]
use crate::observe::traces::Traces;
use crate::{
    intercept::Intercept,
    observe::{Endpoint, Metrics},
    proxy::Proxy,
};

/// How often is looked whether another process has taken our place.
const LOOK: Duration = Duration::from_millis(200);
/// How long after the beginning of a drain endless streams are ended.
const CUT: Duration = Duration::from_secs(1);
/// How long checkpoints have for rolling back.
const ROLL_BACK: Duration = Duration::from_secs(15);
/// How long to wait when the kernel has no descriptor left.
const BREATHE: Duration = Duration::from_millis(50);

/// For a timer that nobody needs.
const RARELY: Duration = Duration::from_secs(86_400);

/// Why calls are no longer taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// A signal.
    Told,
    /// Another process is at our path and takes them.
    Replaced,
}

/// Runs until it is told to stop, or replaced.
///
/// # Errors
/// It can't start.
pub async fn run(settings: Settings) -> Result<(), Box<dyn Error>> {
    #[cfg(feature = "otel")]
    let traces = Traces::from_env()?;
    let served = serve(settings, |intercept| {
        #[cfg(feature = "otel")]
        let intercept = intercept.traced(traces.as_ref().map(Traces::tracer));
        intercept
    });
    let served = served.await;
    #[cfg(feature = "otel")]
    if let Some(traces) = traces
        && let Err(error) = traces.end().await
    {
        tracing::warn!("the last traces are lost: {error}");
    }
    served
}

async fn serve(
    settings: Settings,
    trace: impl FnOnce(Intercept) -> Intercept,
) -> Result<(), Box<dyn Error>> {
    let settings = Arc::new(settings);
    let metrics = Arc::new(Metrics::default());
    let (drain, cut, roll_back) = (
        CancellationToken::new(),
        CancellationToken::new(),
        CancellationToken::new(),
    );
    let intercept = trace(Intercept::new(
        settings.clone(),
        metrics.clone(),
        roll_back.clone(),
    ));
    let checkpoints = intercept.running();
    let containerd: Arc<std::path::Path> = settings.containerd.socket.as_path().into();
    if !settings.hooks.metrics.is_empty() {
        let endpoint = Endpoint {
            metrics: metrics.clone(),
            drain: drain.clone(),
            containerd: containerd.clone(),
        };
        endpoint.serve(&settings.hooks.metrics).await?;
    }
    let proxy = Proxy::new(containerd, intercept, metrics, drain.clone(), cut.clone());
    let listening = Listening::open(&settings.hooks.socket)?;
    let notify = Notify::from_env()?;
    notify.ready();
    tracing::info!(
        containerd = %settings.containerd.socket.display(),
        handlers = ?settings.hooks.handlers,
        "in service"
    );

    let connections = TaskTracker::new();
    let stop = accept(&listening, Arc::new(proxy), &connections, &notify).await?;
    notify.stopping();
    listening.remove();
    drop(listening);
    drain.cancel();
    connections.close();
    checkpoints.close();
    tracing::info!(connections = connections.len(), "no more calls: {stop:?}");

    // Whoever is replaced may take as long as the longest checkpoint: nobody waits for its end.
    let limit = match stop {
        Stop::Told => settings.hooks.drain_s,
        Stop::Replaced => settings.checkpoint.timeout_s.max(settings.hooks.drain_s),
    };
    let ended = async {
        tokio::join!(connections.wait(), checkpoints.wait());
    };
    tokio::pin!(ended);
    if tokio::time::timeout(CUT, &mut ended).await.is_ok() {
        return Ok(());
    }
    cut.cancel();
    let rest = Duration::from_secs(limit).saturating_sub(CUT);
    if tokio::time::timeout(rest, &mut ended).await.is_ok() {
        return Ok(());
    }
    tracing::warn!(
        connections = connections.len(),
        checkpoints = checkpoints.len(),
        "calls are given up after {limit} s"
    );
    roll_back.cancel();
    let _ = tokio::time::timeout(ROLL_BACK, checkpoints.wait()).await;
    Ok(())
}

/// Takes connections until a reason to stop comes.
async fn accept(
    listening: &Listening,
    proxy: Arc<Proxy>,
    connections: &TaskTracker,
    notify: &Notify,
) -> io::Result<Stop> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut look = tokio::time::interval(LOOK);
    let mut alive = tokio::time::interval(notify.watchdog().unwrap_or(RARELY));
    for timer in [&mut look, &mut alive] {
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let mut replaced = false;
    loop {
        let accepted = tokio::select! {
            // What is queued comes before any reason to stop.
            biased;
            accepted = listening.listener.accept() => accepted,
            _ = terminate.recv() => return Ok(Stop::Told),
            _ = interrupt.recv() => return Ok(Stop::Told),
            _ = look.tick() => {
                // The queue was empty, and this time after nobody could find it any more.
                if replaced {
                    return Ok(Stop::Replaced);
                }
                replaced = listening.is_replaced();
                continue;
            }
            _ = alive.tick() => {
                notify.alive();
                continue;
            }
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(proxy.clone().serve(stream));
            }
            Err(error) => {
                tracing::warn!("a client could not be let in: {error}");
                tokio::time::sleep(BREATHE).await;
            }
        }
    }
}
