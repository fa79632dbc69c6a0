//! What all who work in a soak share.

use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use kybernate_hooks::cri::v1::VersionRequest;
use kybernate_integration::{Case, eventually};
use tokio::sync::{RwLock, Semaphore};

use crate::{random::Random, tally::Tally};

/// Operations at the same time: more would only wait for processors.
const AT_ONCE: usize = 6;
/// How often something is tried again that containerd's restarts have cut off.
pub const TRIES: usize = 20;

/// What is said of a containerd that goes, is away, or has just come.
const CUT_OFF: [&str; 13] = [
    "transport error",
    "unavailable",
    "went away",
    "onnection re",
    "closed",
    "EOF",
    "cancel",
    "not initialized",
    "not found",
    // Its log has no reader.
    "not within",
    "stands still",
    // It has not seen the exit.
    "killed, and 255",
    // A shim had no processor when it came and asked.
    LOST_TRACK,
];
/// What the CRI says of a container whose shim did not answer containerd's start within 2 s. kubelet
/// ends it and starts another.
pub const LOST_TRACK: &str = "CONTAINER_UNKNOWN";

/// A promise that does not hold. No restart of anything excuses it.
#[derive(Debug)]
pub struct Broken(pub String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "broken: {}", self.0)
    }
}

impl std::error::Error for Broken {}

/// Fails with [`Broken`] unless something holds.
macro_rules! promised {
    ($holds:expr, $($said:tt)+) => {
        if !$holds {
            return Err($crate::world::Broken(format!($($said)+)).into());
        }
    };
}
pub(crate) use promised;

#[derive(Debug)]
pub struct World {
    pub cx: Case,
    pub seed: u64,
    /// When everybody comes to an end.
    pub end: Instant,
    pub tally: Tally,
    /// Held for reading by whoever works, for writing by whoever wants to look.
    pub gate: RwLock<()>,
    pub busy: Semaphore,
    /// Held for reading while containerd makes a snapshot. Killed then, it may have the directory of
    /// one that its database does not know, and can't make the next ("file exists").
    pub making: RwLock<()>,
    /// Beginnings and ends of containerd's restarts: odd while it is away.
    restarts: AtomicU64,
    failure: Mutex<Option<String>>,
}

impl World {
    pub fn new(cx: Case, seed: u64, lasts: Duration) -> Self {
        Self {
            cx,
            seed,
            end: Instant::now() + lasts,
            tally: Tally::default(),
            gate: RwLock::new(()),
            busy: Semaphore::new(AT_ONCE),
            making: RwLock::new(()),
            restarts: AtomicU64::new(0),
            failure: Mutex::default(),
        }
    }

    pub fn is_over(&self) -> bool {
        Instant::now() >= self.end || self.failure().is_some()
    }

    pub fn fail(&self, error: &anyhow::Error) {
        eprintln!("soak: {error:#}");
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert_with(|| format!("{error:#}"));
    }

    pub fn failure(&self) -> Option<String> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.clone()
    }

    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::SeqCst)
    }

    /// Whether containerd was away at some time since there were so many [`Self::restarts`].
    pub fn was_away(&self, since: u64) -> bool {
        since % 2 == 1 || self.restarts() != since
    }

    /// Waits until containerd is there; returns [`Self::restarts`].
    pub async fn containerd(&self) -> Result<u64> {
        eventually("containerd", Duration::from_secs(120), || async {
            let restarts = self.restarts();
            if restarts % 2 == 1 {
                return Ok(None);
            }
            let mut cri = self.cx.lab.cri();
            cri.version(VersionRequest::default()).await?;
            Ok((self.restarts() == restarts).then_some(restarts))
        })
        .await
    }

    /// Whether containerd's restarts explain an error: one of them was meanwhile, and it sounds
    /// like that.
    pub fn excuses(&self, since: u64, error: &anyhow::Error) -> bool {
        let said = format!("{error:#}");
        self.was_away(since)
            && error.downcast_ref::<Broken>().is_none()
            && CUT_OFF.iter().any(|part| said.contains(part))
    }

    /// Kills containerd now and then, and starts it again.
    pub async fn restart_containerd(&self) -> Result<()> {
        let mut random = Random::new(self.seed, u64::MAX);
        while !self.is_over() {
            let wait = random.millis(12_000, 30_000);
            let away = random.millis(1, 2500);
            tokio::time::sleep(wait.min(self.end.saturating_duration_since(Instant::now()))).await;
            if self.is_over() {
                break;
            }
            {
                let _making = self.making.write().await;
                self.restarts.fetch_add(1, Ordering::SeqCst);
                self.cx.lab.kill_containerd().await?;
            }
            tokio::time::sleep(away).await;
            self.cx.lab.start_containerd().await?;
            self.restarts.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
}
