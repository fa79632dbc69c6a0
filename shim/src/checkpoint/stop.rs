//! Why and how a checkpoint stops before its end, and the progress it reports until then.
//!
//! A caller can go away in three ways: its deadline passes, its lock on `request.json`
//! disappears, or containerd drops the call. And the container can be killed. Each makes the
//! checkpoint roll back.

use std::{
    fs::File,
    io::Write,
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError},
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

/// A background task that ends when this is dropped.
#[derive(Debug)]
pub struct Watch {
    task: tokio::task::JoinHandle<()>,
    /// What a thread beside it writes, which ends soon after; on a disk that hangs, never.
    log: ProgressLog,
}

impl Watch {
    fn new(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self {
            task: tokio::spawn(task),
            log: ProgressLog::default(),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
        self.log.close();
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
    let log = watch.log.clone();
    // The files close with the checkpoint, so that its directory can be removed and unmounted.
    let request = Arc::downgrade(&request);
    tokio::task::spawn_blocking(move || {
        while let Some(request) = request.upgrade().filter(|_| !log.is_closed()) {
            log.write(
                &request.directory,
                &Progress {
                    phase: phase.get().into(),
                    read_bytes: control.read_bytes(),
                    written_bytes: control.written_bytes(),
                    elapsed_ms: millis(started.elapsed()),
                },
            );
            if request.client_is_gone() {
                stop.stop(StopReason::ClientGone);
            }
            drop(request);
            std::thread::sleep(POLL);
        }
    });
    watch
}

/// `progress.jsonl`. It informs; a checkpoint does not fail for it.
#[derive(Debug, Clone, Default)]
struct ProgressLog(Arc<Mutex<Log>>);

#[derive(Debug, Default)]
enum Log {
    /// Nothing was written yet.
    #[default]
    New,
    Open(File),
    /// It can't be written.
    Broken,
    /// The checkpoint has ended.
    Closed,
}

impl ProgressLog {
    fn write(&self, directory: &Path, progress: &Progress) {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*log, Log::New) {
            *log = match File::create_new(directory.join(PROGRESS_FILE)) {
                Ok(file) => Log::Open(file),
                Err(error) => {
                    tracing::warn!(%error, "no progress log");
                    return *log = Log::Broken;
                }
            };
        }
        if let (Log::Open(file), Ok(mut line)) = (&mut *log, serde_json::to_vec(progress)) {
            line.push(b'\n');
            if file.write_all(&line).is_err() {
                *log = Log::Broken;
            }
        }
    }

    fn is_closed(&self) -> bool {
        let log = self.0.try_lock();
        log.is_ok_and(|log| matches!(*log, Log::Closed))
    }

    /// Closes it, unless its disk keeps whoever writes.
    fn close(&self) {
        if let Ok(mut log) = self.0.try_lock() {
            *log = Log::Closed;
        }
    }
}

/// Milliseconds, for formats that carry them as a number.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
