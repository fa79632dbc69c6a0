//! The trigger socket: a container asks for its own checkpoint, and hears of every one.
//!
//! A container with the annotation `kybernate.io/trigger: "true"` has a socket at
//! `/run/kybernate/trigger.sock`, if the node's settings allow it. Lines of JSON:
//!
//! ```text
//! container                              shim
//! {"op":"checkpoint"}                 -> take a checkpoint
//!                                     <- {"ok":true,"checkpoint":"2026-01-02T03:04:05.678Z"}
//!                                        or {"ok":false,"error":"…","retry_after_s":42}
//!
//! {"op":"watch"}                      -> tell me
//!                                     <- {"ok":true}, and the last resume and end, if any
//!     a checkpoint comes, whoever has asked for it:
//!                                     <- {"event":"quiesce","checkpoint":"…","timeout_ms":10000}
//! {"op":"ready"}                      -> it may come. What does not get ready in time is
//!                                        checkpointed all the same, and the manifest says so
//!     the shim closes the socket and every connection: CRIU can't dump one whose other end is
//!     outside. The container stands still, is dumped, runs on here or is restored elsewhere.
//!     It connects anew, trying until there is a socket again, and watches:
//!                                     <- {"event":"resume","checkpoint":"…","restored":false}
//!                                     <- {"event":"end","checkpoint":"…","ok":true,"archive":"…"}
//! ```
//!
//! Where an archive goes, how often one may be asked for and how many stay is the
//! administrator's choice. A container that was paused before its checkpoint can't get ready,
//! and is not asked.

mod archive;
mod connection;
mod protocol;

/// A line is a request of the protocol, or none.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_line(line: &[u8]) {
    if let Ok(request) = protocol::parse(line) {
        let plain = format!("{request:?}").to_lowercase();
        let name = plain.trim_end_matches(" {}").trim_end_matches("{}").trim();
        assert_eq!(
            protocol::parse(format!("{{\"op\":\"{name}\"}}").as_bytes()).ok(),
            Some(request)
        );
    }
}

use std::{
    collections::HashMap,
    fs, io,
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant, SystemTime},
};

use kybernate_config::{
    Settings,
    names::{CRI_CONTAINER_TYPE, TRIGGER},
};
use serde_json::{Value, json};
use tokio::{
    net::UnixListener,
    sync::{broadcast, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use self::protocol::{Event, Reply};
use crate::{
    checkpoint::{self, CheckpointError},
    container::Container,
    process::ProcessState,
    spec::SpecFacts,
};

/// Where the container finds the directory with the socket.
pub const DESTINATION: &str = "/run/kybernate";
/// The directory in the bundle.
const DIRECTORY: &str = "trigger";
const SOCKET: &str = "trigger.sock";
/// Events that a connection may be behind.
const BEHIND: usize = 8;

/// Mounts the directory for the socket into a spec. Returns whether the place was free.
pub fn mount(bundle: &Path, spec: &mut Value) -> io::Result<bool> {
    let mounts = &mut spec["mounts"];
    if !mounts.is_array() {
        *mounts = json!([]);
    }
    let mounts = mounts.as_array_mut().expect("made an array");
    let is_there = |mount: &Value| {
        let destination = mount["destination"].as_str().unwrap_or_default();
        Path::new(destination) == Path::new(DESTINATION)
    };
    if mounts.iter().any(is_there) {
        return Ok(false);
    }
    let directory = bundle.join(DIRECTORY);
    // Whoever the container's programs run as reaches the socket.
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&directory)?;
    mounts.push(json!({
        "destination": DESTINATION,
        "type": "bind",
        "source": directory,
        "options": ["bind", "ro", "nosuid", "nodev", "noexec", "rprivate"],
    }));
    Ok(true)
}

/// The socket of one container.
#[derive(Debug)]
pub struct Trigger {
    me: Weak<Self>,
    container: Weak<Container>,
    directory: PathBuf,
    /// How long the container has to get ready.
    patience: Duration,
    events: broadcast::Sender<Event>,
    /// How many of those that watch are not ready.
    unready: watch::Sender<usize>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The container goes away; nothing is opened any more.
    over: bool,
    /// The listener's task, and what ends it.
    listening: Option<(CancellationToken, JoinHandle<()>)>,
    /// Those that watch, and whether they are ready.
    watchers: HashMap<u64, bool>,
    connections: u64,
    /// The checkpoint under way.
    round: Option<String>,
    /// Whether the container has asked for one that is not over.
    asked: bool,
    last_asked: Option<Instant>,
    resumed: Option<Event>,
    ended: Option<Event>,
    /// For the manifest of the checkpoint under way.
    notice: Option<String>,
}

impl Trigger {
    /// Opens the socket of a container that wants one. `restored` says that its processes will
    /// come from an archive.
    pub fn start(container: &Arc<Container>, restored: bool) -> io::Result<Option<Arc<Self>>> {
        if !is_wanted(&container.spec) {
            return Ok(None);
        }
        let settings = Settings::load().map_err(io::Error::other)?.trigger;
        let (directory, patience) = (
            container.bundle.join(DIRECTORY),
            Duration::from_secs(settings.quiesce_s),
        );
        let trigger = Self::new(Arc::downgrade(container), directory, patience);
        trigger.state().resumed = restored.then_some(Event::Resume {
            checkpoint: None,
            restored,
        });
        trigger.open()?;
        Ok(Some(trigger))
    }

    fn new(container: Weak<Container>, directory: PathBuf, patience: Duration) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            container,
            directory,
            patience,
            events: broadcast::Sender::new(BEHIND),
            unready: watch::Sender::new(0),
            state: Mutex::default(),
        })
    }

    /// What the manifest of the checkpoint under way is to say.
    #[must_use]
    pub fn notice(&self) -> Option<String> {
        self.state().notice.clone()
    }

    /// Lets the container get ready for a checkpoint, then hangs up on it. `frozen` says that it
    /// can't.
    async fn begin(&self, checkpoint: String, frozen: bool) {
        let (waits, settled) = {
            let mut state = self.state();
            state.round = Some(checkpoint.clone());
            state.notice = None;
            let waits = !frozen && !state.watchers.is_empty();
            if waits {
                state.watchers.values_mut().for_each(|ready| *ready = false);
                self.count(&state);
                let timeout_ms = u64::try_from(self.patience.as_millis()).unwrap_or(u64::MAX);
                // Those that watch have a receiver each.
                let _ = self.events.send(Event::Quiesce {
                    checkpoint,
                    timeout_ms,
                });
            }
            (waits, self.unready.subscribe())
        };
        if waits && !is_settled(settled, self.patience).await {
            let notice = format!(
                "the container asked to be told of checkpoints and did not get ready within {} s",
                self.patience.as_secs()
            );
            tracing::warn!(directory = %self.directory.display(), "{notice}");
            self.state().notice = Some(notice);
        }
        self.close().await;
    }

    /// The container's processes run again.
    pub fn resume(&self) {
        {
            let mut state = self.state();
            if state.over || state.listening.is_some() {
                return;
            }
            state.resumed = Some(Event::Resume {
                checkpoint: state.round.clone(),
                restored: false,
            });
            state.ended = None;
        }
        if let Err(error) = self.open() {
            tracing::error!(directory = %self.directory.display(), %error, "no trigger socket");
        }
    }

    fn end(&self, outcome: Result<Option<String>, String>) {
        self.resume();
        let mut state = self.state();
        let checkpoint = state.round.take().unwrap_or_default();
        let (archive, error) = match outcome {
            Ok(archive) => (archive, None),
            Err(error) => (None, Some(error)),
        };
        let ended = Event::End {
            checkpoint,
            ok: error.is_none(),
            archive,
            error,
        };
        state.ended = Some(ended.clone());
        let _ = self.events.send(ended);
    }

    /// The answer to a container that asks for its checkpoint.
    fn ask(self: &Arc<Self>) -> Reply {
        let Some(container) = self.container.upgrade() else {
            return Reply::refused("the container is going away");
        };
        let settings = match Settings::load() {
            Ok(settings) => settings.trigger,
            Err(error) => {
                tracing::error!(%error, "a container asks for a checkpoint");
                return Reply::refused("the node's settings can't be read");
            }
        };
        if !settings.allow {
            return Reply::refused("the administrator does not allow it");
        }
        if container.state() != ProcessState::Running {
            return Reply::refused("the container does not run");
        }
        let interval = Duration::from_secs(settings.interval_s);
        let place = archive::Place::of(&container, &settings);
        let mut state = self.state();
        if state.asked || state.round.is_some() {
            return Reply::later("a checkpoint is under way", 1);
        }
        let since = [state.last_asked.map(|at| at.elapsed()), place.newest()];
        if let Some(since) = since.into_iter().flatten().min()
            && let Some(left) = interval.checked_sub(since).filter(|left| !left.is_zero())
        {
            let left = left.as_secs() + 1;
            return Reply::later(
                format!("one checkpoint in {} s is allowed", settings.interval_s),
                left,
            );
        }
        let checkpoint = now();
        state.asked = true;
        state.last_asked = Some(Instant::now());
        drop(state);
        tracing::info!(
            id = container.id,
            checkpoint,
            "the container asks for a checkpoint"
        );
        let trigger = Arc::clone(self);
        let name = checkpoint.clone();
        tokio::spawn(async move {
            let _operation = container.operation().write().await;
            let frozen = container.state() == ProcessState::Paused;
            trigger.begin(name.clone(), frozen).await;
            let taken = archive::take(&container, &place, &name).await;
            let outcome = match taken {
                Ok(file) => Ok(Some(file)),
                Err(error) => {
                    tracing::error!(id = container.id, %error, "a checkpoint that was asked for");
                    Err(error.to_string())
                }
            };
            trigger.end(outcome);
            trigger.state().asked = false;
        });
        Reply::begun(checkpoint)
    }

    fn open(&self) -> io::Result<()> {
        let Some(me) = self.me.upgrade() else {
            return Ok(());
        };
        let listener = self.bind()?;
        let stop = CancellationToken::new();
        let task = tokio::spawn(connection::accept(me, listener, stop.clone()));
        self.state().listening = Some((stop, task));
        Ok(())
    }

    /// Binds through a descriptor: the bundle's path is longer than an address may be.
    fn bind(&self) -> io::Result<UnixListener> {
        let directory = fs::File::open(&self.directory)?;
        let path = self.directory.join(SOCKET);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let short = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
        let listener = UnixListener::bind(short)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
        Ok(listener)
    }

    /// Ends the socket for good.
    pub async fn shut(&self) {
        self.state().over = true;
        self.close().await;
    }

    /// Ends the socket and its connections. On return no descriptor of them is open here.
    async fn close(&self) {
        let listening = self.state().listening.take();
        if let Some((stop, task)) = listening {
            stop.cancel();
            if let Err(error) = task.await {
                tracing::error!(%error, "bug in the trigger socket");
            }
        }
        let _ = fs::remove_file(self.directory.join(SOCKET));
    }

    /// Enters a connection that watches; tells what it has missed.
    fn watch(&self, connection: u64) -> (broadcast::Receiver<Event>, Vec<Event>) {
        let mut state = self.state();
        state.watchers.insert(connection, true);
        let missed = [&state.resumed, &state.ended].into_iter().flatten();
        (self.events.subscribe(), missed.cloned().collect())
    }

    fn ready(&self, connection: u64) {
        let mut state = self.state();
        if let Some(ready) = state.watchers.get_mut(&connection) {
            *ready = true;
            self.count(&state);
        }
    }

    fn forget(&self, connection: u64) {
        let mut state = self.state();
        state.watchers.remove(&connection);
        self.count(&state);
    }

    fn count(&self, state: &State) {
        let unready = state.watchers.values().filter(|ready| !**ready).count();
        self.unready.send_replace(unready);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a checkpoint that somebody else asks for, as [`checkpoint::run`], and lets a container
/// that watches get ready. The caller holds the container's operation lock.
pub async fn checkpoint(
    container: Arc<Container>,
    task: checkpoint::Task,
    call: CancellationToken,
) -> Result<(), CheckpointError> {
    let Some(trigger) = container.trigger() else {
        return checkpoint::run(container, task, call).await;
    };
    let frozen = container.state() == ProcessState::Paused;
    trigger.begin(now(), frozen).await;
    let taken = checkpoint::run(Arc::clone(&container), task, call).await;
    trigger.end(taken.as_ref().map(|()| None).map_err(ToString::to_string));
    taken
}

/// A sandbox's annotations are its pod's: it gets nothing for them.
fn is_wanted(spec: &SpecFacts) -> bool {
    let is = |name: &str, value: &str| spec.annotations.get(name).is_some_and(|v| v == value);
    is(TRIGGER, "true") && !is(CRI_CONTAINER_TYPE, "sandbox")
}

async fn is_settled(mut unready: watch::Receiver<usize>, within: Duration) -> bool {
    tokio::time::timeout(within, unready.wait_for(|count| *count == 0))
        .await
        .is_ok()
}

/// Name of a checkpoint that begins now.
fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}
