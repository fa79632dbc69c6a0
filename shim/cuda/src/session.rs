//! One operation of the shim: what it asks for, and how all of it is undone when the shim dies.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    driver::{Driver, DriverError},
    lever::Levers,
    library::{LibraryError, Search},
    nvml::Nvml,
    process::{self, Process},
    protocol::{Facts, Failure, FailureKind, Op, Reply, State},
};

/// How long a CRIU whose shim has died may take to undo its dump, before it is killed.
const TRACER: Duration = Duration::from_secs(4);
/// How long undoing may take in all.
const UNDO: Duration = Duration::from_secs(300);
/// Pause between two looks.
const POLL: Duration = Duration::from_millis(20);

/// An operation.
#[derive(Debug)]
pub struct Session {
    search: Search,
    driver: OnceLock<Driver>,
    levers: Mutex<Levers>,
    /// Processes that were locked here, by pid.
    touched: Mutex<BTreeMap<u32, Process>>,
    guard: Mutex<Option<(PathBuf, String)>>,
}

impl Session {
    /// An operation that has done nothing yet. Settings that dead ones have left in `records` are
    /// put back.
    pub fn new(search: Search, records: &Path) -> Self {
        Self {
            search,
            driver: OnceLock::new(),
            levers: Mutex::new(Levers::new(records)),
            touched: Mutex::default(),
            guard: Mutex::default(),
        }
    }

    /// Notes what will have to be undone. A step may be taken of whose end nobody hears any more.
    pub fn note(&self, op: &Op) {
        if let Op::Lock { pid, .. } = op
            && let Some(process) = Process::now(*pid)
        {
            lock(&self.touched).insert(*pid, process);
        }
    }

    /// Does what is asked. Blocks for as long as the driver does.
    pub fn run(&self, op: &Op) -> Result<Reply, Failure> {
        let done = |()| Reply::default();
        match op {
            Op::Facts => Ok(Reply {
                facts: Some(self.facts()?),
                ..Reply::default()
            }),
            Op::State { pid } => Ok(Reply {
                state: Some(self.driver()?.state(*pid)?),
                ..Reply::default()
            }),
            Op::Lock { pid, timeout_ms } => Ok(self.driver()?.lock(*pid, *timeout_ms).map(done)?),
            Op::Checkpoint { pid } => Ok(self.driver()?.checkpoint(*pid).map(done)?),
            Op::Restore { pid, device_map } => {
                Ok(self.driver()?.restore(*pid, device_map).map(done)?)
            }
            Op::Unlock { pid } => {
                self.driver()?.unlock(*pid)?;
                lock(&self.touched).remove(pid);
                Ok(Reply::default())
            }
            Op::Hold { path, value } => lock(&self.levers)
                .hold(Path::new(path), value)
                .map(done)
                .map_err(|error| host("set", path, &error)),
            Op::Guard { path, value } => {
                *lock(&self.guard) = Some((path.into(), value.clone()));
                Ok(Reply::default())
            }
            Op::Release => {
                lock(&self.touched).clear();
                *lock(&self.guard) = None;
                lock(&self.levers)
                    .release()
                    .map(done)
                    .map_err(|error| host("put back", "a kernel setting", &error))
            }
        }
    }

    fn driver(&self) -> Result<&Driver, LibraryError> {
        if let Some(driver) = self.driver.get() {
            return Ok(driver);
        }
        let driver = Driver::load(&self.search)?;
        Ok(self.driver.get_or_init(|| driver))
    }

    fn facts(&self) -> Result<Facts, LibraryError> {
        let driver = self.driver()?;
        let nvml = Nvml::load(&self.search);
        Ok(Facts {
            driver: nvml.as_ref().and_then(Nvml::driver).unwrap_or_default(),
            cuda: driver.cuda_version(),
            library: driver.path().to_owned(),
            devices: nvml.as_ref().map(Nvml::devices).unwrap_or_default(),
        })
    }

    /// Brings everything back as it was, since whoever asked for it is gone: lets CRIU end, thaws,
    /// waits for the steps that are `under_way`, restores and unlocks what was locked here, and
    /// puts kernel settings back.
    pub fn undo(self: &Arc<Self>, under_way: &[JoinHandle<()>]) {
        let until = Instant::now() + UNDO;
        let touched: Vec<Process> = lock(&self.touched).values().copied().collect();
        self.thaw(&touched);
        wait_for(under_way, until);
        let work: Vec<_> = touched
            .into_iter()
            .map(|process| {
                let session = Arc::clone(self);
                thread::spawn(move || {
                    if let Err(text) = session.revive(process) {
                        eprintln!("{text}");
                    }
                })
            })
            .collect();
        wait_for(&work, until);
        if let Err(error) = lock(&self.levers).release() {
            eprintln!("cannot put kernel settings back: {error}");
        }
    }

    fn thaw(&self, touched: &[Process]) {
        let Some((path, value)) = lock(&self.guard).take() else {
            return;
        };
        for process in touched.iter().filter(|process| process.lives()) {
            wait_for_tracer(process.pid);
        }
        match fs::write(&path, value) {
            // The cgroup went with its container.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                eprintln!("cannot thaw with {}: {error}", path.display());
            }
            _ => {}
        }
    }

    /// Makes CUDA calls of a process run again, wherever it is on its way. A process that is gone
    /// needs nothing.
    pub fn revive(&self, process: Process) -> Result<(), String> {
        let pid = process.pid;
        let revived = || -> Result<State, DriverError> {
            let driver = self.driver()?;
            let mut refused = None;
            while process.lives() {
                let step = match driver.state(pid)? {
                    State::Checkpointed => driver.restore(pid, &[]),
                    State::Locked => driver.unlock(pid),
                    ended => return Ok(ended),
                };
                // Somebody else may have taken the step meanwhile; the state tells.
                match (step, refused.take()) {
                    (Err(error), None) => refused = Some(error),
                    (Err(error), Some(_)) => return Err(error),
                    (Ok(()), _) => {}
                }
            }
            Ok(State::None)
        };
        match revived() {
            Ok(State::Failed) => Err(format!(
                "process {pid} can't be brought back: its GPU state failed"
            )),
            Err(error) if process.lives() => {
                Err(format!("process {pid} keeps waiting for its GPU: {error}"))
            }
            _ => Ok(()),
        }
    }
}

fn wait_for(threads: &[JoinHandle<()>], until: Instant) {
    while threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < until {
        thread::sleep(POLL);
    }
}

/// Waits until nobody traces a process. A CRIU that does not end is killed: the kernel then lets
/// its processes go.
fn wait_for_tracer(pid: u32) {
    let until = Instant::now() + TRACER;
    while let Some(tracer) = process::tracer(pid) {
        if Instant::now() >= until {
            let name = fs::read_to_string(format!("/proc/{tracer}/comm")).unwrap_or_default();
            if name.trim() == "criu" {
                eprintln!("killing CRIU (pid {tracer}), which does not end");
                let tracer = Pid::from_raw(i32::try_from(tracer).expect("a pid"));
                let _ = kill(tracer, Signal::SIGKILL);
                thread::sleep(POLL);
            }
            return;
        }
        thread::sleep(POLL);
    }
}

impl From<LibraryError> for Failure {
    fn from(error: LibraryError) -> Self {
        Self {
            kind: FailureKind::Library,
            code: None,
            text: error.to_string(),
        }
    }
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        let kind = match &error {
            DriverError::Library(_) => FailureKind::Library,
            DriverError::Refused { .. } => FailureKind::Driver,
            DriverError::Uuid(_) => FailureKind::Request,
        };
        Self {
            kind,
            code: error.code(),
            text: error.to_string(),
        }
    }
}

fn host(action: &str, path: &str, error: &io::Error) -> Failure {
    Failure {
        kind: FailureKind::Host,
        code: None,
        text: format!("cannot {action} {path}: {error}"),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
