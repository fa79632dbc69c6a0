//! The client of `kybernate-cuda serve`: one helper per operation.
//!
//! When the helper's input closes before `release`, it undoes everything by itself. So dropping a
//! [`Helper`] is safe, and so is the death of this shim.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kybernate_config::settings::GpuSettings;
use kybernate_cuda::protocol::{Facts, Failure, Op, Outcome, Reply, Request, Response, State};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::unix::pipe,
    sync::{Mutex as AsyncMutex, oneshot},
    time::timeout,
};

use super::GpuError;
use crate::{journal, reaper::Reaper};

/// How long the helper may take for what does not move memory.
const QUICK: Duration = Duration::from_secs(30);
/// Its log in the bundle.
const LOG: &str = "cuda.log";
/// Most of the log that goes into an error.
const SAID: usize = 2000;

type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Outcome>>>>>;

/// A running helper.
#[derive(Debug)]
pub struct Helper {
    pid: u32,
    input: AsyncMutex<pipe::Sender>,
    waiting: Waiting,
    next: AtomicU64,
    log: PathBuf,
}

impl Helper {
    /// Starts one. Its log lies in `bundle`.
    pub fn start(settings: &GpuSettings, reaper: &Reaper, bundle: &Path) -> Result<Self, GpuError> {
        let program = journal::helper(settings);
        let log = bundle.join(LOG);
        let failed = |source| GpuError::Helper {
            program: program.clone(),
            source,
        };
        let mut command = Command::new(&program);
        command.arg("serve").arg("--records").arg(&settings.records);
        if !settings.libcuda.as_os_str().is_empty() {
            command.arg("--libcuda").arg(&settings.libcuda);
        }
        for root in &settings.driver_roots {
            command.arg("--driver-root").arg(root);
        }
        for name in crate::daemon::PRIVATE_ENVIRONMENT {
            command.env_remove(name);
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(create(&log).map_err(failed)?);
        let (child, claim) = reaper.spawn(&mut command).map_err(failed)?;
        let missing = || io::Error::other("it has no pipes");
        let input = child.stdin.ok_or_else(missing).map_err(failed)?;
        let output = child.stdout.ok_or_else(missing).map_err(failed)?;
        let input = pipe::Sender::from_owned_fd(OwnedFd::from(input)).map_err(failed)?;
        let output = pipe::Receiver::from_owned_fd(OwnedFd::from(output)).map_err(failed)?;
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        tokio::spawn(hear(output, Arc::clone(&waiting)));
        let claim_pid = claim.pid;
        tokio::spawn(claim.exit());
        Ok(Self {
            pid: claim_pid,
            input: AsyncMutex::new(input),
            waiting,
            next: AtomicU64::new(1),
            log,
        })
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The driver and its GPUs.
    pub async fn facts(&self) -> Result<Facts, GpuError> {
        let reply = self.ask("look at the GPUs", 0, Op::Facts, QUICK).await?;
        Ok(reply.facts.unwrap_or_default())
    }

    /// The state of a process.
    pub async fn state(&self, pid: u32, limit: Duration) -> Result<State, GpuError> {
        let step = "tell the state of";
        let reply = self.ask(step, pid, Op::State { pid }, limit).await?;
        Ok(reply.state.unwrap_or(State::None))
    }

    /// A step that neither moves memory nor asks a process.
    pub async fn set(&self, step: &'static str, op: Op) -> Result<(), GpuError> {
        self.ask(step, 0, op, QUICK).await.map(drop)
    }

    /// Asks for a step and waits for its end.
    pub async fn ask(
        &self,
        step: &'static str,
        pid: u32,
        op: Op,
        limit: Duration,
    ) -> Result<Reply, GpuError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        let ended = || self.ended(step);
        match &mut *lock(&self.waiting) {
            Some(waiting) => waiting.insert(id, sender),
            None => return Err(ended()),
        };
        let mut line = serde_json::to_vec(&Request { id, op }).expect("plain data becomes JSON");
        line.push(b'\n');
        let written = self.input.lock().await.write_all(&line).await;
        written.map_err(|_| ended())?;
        match timeout(limit, answer).await {
            Ok(Ok(Outcome::Ok(reply))) => Ok(*reply),
            Ok(Ok(Outcome::Error(failure))) => Err(self.failure(step, pid, failure)),
            Ok(Err(_)) => Err(ended()),
            Err(_) => Err(GpuError::Slow {
                step,
                pid,
                seconds: limit.as_secs(),
            }),
        }
    }

    fn failure(&self, step: &'static str, pid: u32, failure: Failure) -> GpuError {
        GpuError::of(step, pid, failure)
    }

    fn ended(&self, step: &'static str) -> GpuError {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let text = text.trim();
        let mut from = text.len().saturating_sub(SAID);
        while !text.is_char_boundary(from) {
            from += 1;
        }
        let said = match &text[from..] {
            "" => String::new(),
            text => format!(": {}", text.replace('\n', "; ")),
        };
        GpuError::Ended { step, said }
    }
}

/// Hands answers to those who wait, until the helper ends.
async fn hear(output: pipe::Receiver, waiting: Waiting) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(Response { id, outcome }) = serde_json::from_str(&line) else {
            tracing::error!(line, "kybernate-cuda says what is no answer");
            continue;
        };
        let asker = lock(&waiting).as_mut().and_then(|all| all.remove(&id));
        if let Some(asker) = asker {
            let _ = asker.send(outcome);
        }
    }
    // Whoever waits learns that nothing comes any more.
    lock(&waiting).take();
}

fn create(log: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(log)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
