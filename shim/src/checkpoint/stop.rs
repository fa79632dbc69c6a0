//! Why and how a checkpoint stops before its end, and the progress it reports until then.
//!
//! A caller can go away in three ways: its deadline passes, its lock on `request.json`
//! disappears, or containerd drops the call. And the container can be killed. Each makes the
//! checkpoint roll back.

use std::{
    fs::File,
    io::Write,
    path::Path,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use kybernate_config::request::{PROGRESS_FILE, Progress};
use kybernate_oci::archive::Control;
use tokio_util::sync::CancellationToken;

use super::request::Request;

const POLL: Duration = Duration::from_millis(100);

/// Why a checkpoint was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StopReason {
    /// The request's deadline.
    #[error("its deadline passed")]
    Deadline,
    /// The client's lock.
    #[error("the client that asked for it went away")]
    ClientGone,
    /// A SIGKILL for its first process.
    #[error("it was killed")]
    Killed,
    /// The call.
    #[error("the call that asked for it ended (deadline or disconnect)")]
    CallEnded,
}

/// Stops a checkpoint from anywhere; remembers the first reason.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    token: CancellationToken,
    reason: Arc<OnceLock<StopReason>>,
}

impl Stop {
    /// Stops.
    pub fn stop(&self, reason: StopReason) {
        let _ = self.reason.set(reason);
        self.token.cancel();
    }

    /// Completes when stopped.
    pub async fn stopped(&self) -> StopReason {
        self.token.cancelled().await;
        self.reason().unwrap_or(StopReason::CallEnded)
    }

    /// Completes `grace` after it was stopped.
    pub async fn overdue(&self, grace: Duration) -> StopReason {
        let reason = self.stopped().await;
        tokio::time::sleep(grace).await;
        reason
    }

    /// The reason, once stopped.
    #[must_use]
    pub fn reason(&self) -> Option<StopReason> {
        self.reason.get().copied()
    }

    /// Stops with [`StopReason::Deadline`] after `limit`, whatever the caller says.
    pub fn after(&self, limit: Duration) -> Watch {
        let stop = self.clone();
        Watch::new(async move {
            tokio::time::sleep(limit).await;
            stop.stop(StopReason::Deadline);
        })
    }

    /// Stops with `reason` when `token` is cancelled.
    pub fn follow(&self, token: CancellationToken, reason: StopReason) -> Watch {
        let stop = self.clone();
        Watch::new(async move {
            token.cancelled().await;
            stop.stop(reason);
        })
    }
}

/// A background task that ends when this is dropped, and the thread beside it soon after.
#[derive(Debug)]
pub struct Watch {
    task: tokio::task::JoinHandle<()>,
    over: Arc<AtomicBool>,
}

impl Watch {
    fn new(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self {
            task: tokio::spawn(task),
            over: Arc::default(),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
        self.over.store(true, Ordering::Relaxed);
    }
}

/// The name of the phase that runs now, shared with the progress log.
#[derive(Debug, Clone)]
pub struct Phase(Arc<Mutex<&'static str>>);

impl Default for Phase {
    fn default() -> Self {
        Self(Arc::new(Mutex::new("freeze")))
    }
}

impl Phase {
    /// Enters a phase.
    pub fn set(&self, name: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = name;
    }

    fn get(&self) -> &'static str {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches over one request: stops it when its client is gone or late, which also unblocks
/// the archive, and writes `progress.jsonl`. A thread touches the client's directory: its disk may
/// hang.
pub fn watch(request: Arc<Request>, stop: Stop, control: Control, phase: Phase) -> Watch {
    let started = Instant::now();
    let watch = Watch::new({
        let (stop, control, deadline) = (stop.clone(), control.clone(), request.deadline);
        async move {
            let late = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = stop.stopped() => {}
                () = late => stop.stop(StopReason::Deadline),
            }
            control.cancel();
        }
    });
    let over = Arc::clone(&watch.over);
    tokio::task::spawn_blocking(move || {
        let mut log = ProgressLog::create(&request.directory);
        loop {
            std::thread::sleep(POLL);
            if over.load(Ordering::Relaxed) || stop.reason().is_some() {
                return;
            }
            log.write(&Progress {
                phase: phase.get().into(),
                read_bytes: control.read_bytes(),
                written_bytes: control.written_bytes(),
                elapsed_ms: millis(started.elapsed()),
            });
            if request.client_is_gone() {
                stop.stop(StopReason::ClientGone);
            }
        }
    });
    watch
}

/// `progress.jsonl`. It informs; a checkpoint does not fail for it.
struct ProgressLog(Option<File>);

impl ProgressLog {
    fn create(directory: &Path) -> Self {
        let file = File::create_new(directory.join(PROGRESS_FILE));
        Self(
            file.inspect_err(|error| tracing::warn!(%error, "no progress log"))
                .ok(),
        )
    }

    fn write(&mut self, progress: &Progress) {
        if let (Some(file), Ok(mut line)) = (&mut self.0, serde_json::to_vec(progress)) {
            line.push(b'\n');
            if file.write_all(&line).is_err() {
                self.0 = None;
            }
        }
    }
}

/// Milliseconds, for formats that carry them as a number.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
