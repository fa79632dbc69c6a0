//! What an operation has to undo, written down before it is done.
//!
//! ```text
//! <journal_dir>/<namespace>-<id>.<shim's pid>.<n>     mode 0600, one JSON object a line
//!   {"version":1,"operation":"checkpoint","id":…,"freezer":…,"remove":[…],…}     Intent
//!   {"step":"gpu-lock","helper":{"pid":…,"start":…},"locked":[…]}                Note
//!   {"step":"freeze"} … {"step":"dump","programs":[…]} …
//! ```
//!
//! Whoever does the operation holds an `flock` on its record, and removes the record at a good
//! end or when everything is undone. The lock goes with its holder, however that dies; so a record
//! whose lock can be had is an operation that nobody looks after any more. Whoever finds one
//! brings the world back ([`undo`]):
//!
//! - the guardian, a process of its own that waits for the lock ([`guardian`]): at once,
//! - `delete`, which containerd runs when it has lost a shim,
//! - a shim that starts, and the next operation on the container,
//! - `repair`, which `kybernate doctor --repair` runs.

pub mod guardian;
pub mod made;
mod record;
mod strays;
mod undo;

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use kybernate_cuda::process::Process;

use crate::reaper::Reaper;

pub(crate) use self::undo::{helper, put_settings_back};
pub use self::{
    record::{FIRST_STEP, Filled, Intent, Note, Operation, Paused, Record, VERSION},
    strays::{MARK, Strays, mark},
    undo::{By, undo},
};

/// Extension of a record that is not whole yet.
const NEW: &str = "new";
/// How long the next operation on a container waits for another to be undone.
const WAIT: Duration = Duration::from_secs(30);
/// How long `delete` leaves it to the guardian. containerd waits 5 s for `delete`.
const YIELD: Duration = Duration::from_millis(200);
const POLL: Duration = Duration::from_millis(20);
/// Longest record.
const LONGEST: u64 = 16 << 20;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// The record of an operation that is under way. Dropping it leaves the operation to its heirs.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    record: Mutex<Record>,
}

impl Journal {
    /// Writes an intent down. Durable on return. Blocks.
    pub fn begin(directory: &Path, intent: Intent) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let (owner, pid) = (owner(&intent.namespace, &intent.id), intent.shim.pid);
        let name = format!("{owner}.{pid}.{count}");
        let path = directory.join(&name);
        let new = directory.join(format!("{name}.{NEW}"));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        let journal = Self {
            path,
            file,
            record: Mutex::new(Record::new(intent)),
        };
        let written = journal
            .file
            .lock()
            .and_then(|()| journal.write(&journal.lock().intent))
            .and_then(|()| fs::rename(&new, &journal.path))
            .and_then(|()| File::open(directory)?.sync_all());
        match written {
            Ok(()) => Ok(journal),
            Err(error) => {
                let _ = fs::remove_file(new);
                let _ = fs::remove_file(&journal.path);
                Err(error)
            }
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Says that a step begins.
    pub fn step(&self, step: &str) -> io::Result<()> {
        self.note(Note {
            step: step.into(),
            ..Note::default()
        })
    }

    /// Says that programs run for the step.
    pub fn programs(&self, pids: impl IntoIterator<Item = u32>) -> io::Result<()> {
        self.note(Note {
            step: self.current(),
            programs: pids.into_iter().filter_map(Process::now).collect(),
            ..Note::default()
        })
    }

    /// Says that a helper is about to lock the GPU state of processes.
    pub fn locks(&self, helper: u32, pids: &[u32]) -> io::Result<()> {
        self.note(Note {
            step: self.current(),
            helper: Process::now(helper),
            locked: pids.iter().copied().filter_map(Process::now).collect(),
            ..Note::default()
        })
    }

    /// Says that the result is whole and stays, whatever comes.
    pub fn complete(&self) -> io::Result<()> {
        self.note(Note {
            step: self.current(),
            complete: true,
            ..Note::default()
        })
    }

    fn note(&self, note: Note) -> io::Result<()> {
        let written = self.write(&note);
        self.lock().add(note);
        written
    }

    fn write(&self, line: &impl serde::Serialize) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        (&self.file).write_all(&text)?;
        self.file.sync_data()
    }

    /// The step that was begun last.
    #[must_use]
    pub fn current(&self) -> String {
        self.lock().step.clone()
    }

    /// Everything is as it should be: there is nothing to undo any more. The guardian ends, too,
    /// also if this lives on. May be called again.
    pub fn end(&self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "cannot remove a record");
            }
            _ => drop(self.file.unlock()),
        }
    }

    /// Undoes the operation after a failure. What can't be undone is left to the heirs; else the
    /// caller ends the record. Blocks.
    pub fn undo(&self, by: By) -> Result<(), String> {
        let record = self.lock().clone();
        undo(&record, by)
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Begins an operation on a container: undoes what an earlier one has left, writes the intent down,
/// and sets a guardian over it. The error says what was tried and what was found.
pub async fn open(directory: &Path, intent: Intent, reaper: &Reaper) -> Result<Journal, String> {
    let place = directory.to_owned();
    let begun = tokio::task::spawn_blocking(move || {
        settle(&place, &intent.namespace, &intent.id)?;
        Journal::begin(&place, intent)
            .map_err(|error| format!("cannot write a record in {}: {error}", place.display()))
    });
    let journal = begun.await.map_err(|bug| bug.to_string())??;
    match guardian::start(journal.path(), reaper) {
        Ok(()) => Ok(journal),
        Err(error) => {
            journal.end();
            Err(format!("cannot start a guardian: {error}"))
        }
    }
}

/// A record that was found, and whose lock is held.
struct Found {
    path: PathBuf,
    record: Record,
    _lock: File,
}

impl Found {
    fn undo(&self, by: By) -> Result<(), String> {
        let intent = &self.record.intent;
        let (id, step) = (&intent.id, &self.record.step);
        let operation = intent.operation.as_str();
        tracing::warn!(
            id,
            operation,
            step,
            "bringing back what a dead shim has left"
        );
        undo(&self.record, by)?;
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(format!("cannot remove {}: {error}", self.path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// What became of the lock of a record.
enum Look {
    /// The operation has ended.
    Gone,
    /// Somebody looks after it.
    Held,
    /// Nobody did.
    Found(Box<Found>),
}

/// Takes over a record if nobody holds it.
fn look(path: &Path) -> io::Result<Look> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Look::Gone),
        Err(error) => return Err(error),
    };
    match file.try_lock() {
        Ok(()) => read(path, file).map(|found| found.map_or(Look::Gone, Look::Found)),
        Err(TryLockError::WouldBlock) => Ok(Look::Held),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Reads a record whose lock is held. `None` when it was removed before the lock was had.
fn read(path: &Path, mut file: File) -> io::Result<Option<Box<Found>>> {
    if file.metadata()?.nlink() == 0 {
        return Ok(None);
    }
    let mut text = String::new();
    (&mut file).take(LONGEST).read_to_string(&mut text)?;
    let record = Record::parse(&text)?;
    if record.intent.version != VERSION {
        let text = format!("version {} of a record", record.intent.version);
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    Ok(Some(Box::new(Found {
        path: path.into(),
        record,
        _lock: file,
    })))
}

/// How a record's name begins; ids may have dots in them.
fn owner(namespace: &str, id: &str) -> String {
    format!("{namespace}-{id}")
}

/// Records that are whole, with the beginnings of their names.
fn records(directory: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut records: Vec<_> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let mut parts = name.rsplitn(3, '.');
            let whole = parts.next()? != NEW;
            let owner = parts.nth(1)?.to_owned();
            whole.then(|| (owner, entry.path()))
        })
        .collect();
    records.sort();
    records
}

fn records_of(directory: &Path, namespace: &str, id: &str) -> impl Iterator<Item = PathBuf> {
    let owner = owner(namespace, id);
    let records = records(directory).into_iter();
    records.filter_map(move |(of, path)| (of == owner).then_some(path))
}

/// Undoes what dead shims have left, all of it. Returns a line for each record. Blocks.
#[must_use]
pub fn repair(directory: &Path) -> Vec<Result<String, String>> {
    let mut done = Vec::new();
    for (_, path) in records(directory) {
        let name = path.display();
        match look(&path) {
            Ok(Look::Gone | Look::Held) => {}
            Err(error) => done.push(Err(format!("cannot read {name}: {error}"))),
            Ok(Look::Found(found)) => {
                let Intent { id, operation, .. } = &found.record.intent;
                let what = format!("{} of container {id}", operation.as_str());
                let step = &found.record.step;
                done.push(match found.undo(By::Heir) {
                    Ok(()) => Ok(format!("{what}, left at step {step}: undone")),
                    Err(left) => Err(format!("{what}, left at step {step}: {left}")),
                });
            }
        }
    }
    done
}

/// Makes sure that nothing is left of earlier operations on a container, before the next one of
/// this shim. Blocks.
pub fn settle(directory: &Path, namespace: &str, id: &str) -> Result<(), String> {
    let until = Instant::now() + WAIT;
    for path in records_of(directory, namespace, id) {
        loop {
            match look(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))? {
                Look::Gone => break,
                Look::Found(found) => {
                    found.undo(By::Heir)?;
                    break;
                }
                // One of this shim's own is a container that containerd has yet to resume.
                Look::Held if is_own(&path) => break,
                Look::Held if Instant::now() < until => thread::sleep(POLL),
                Look::Held => {
                    return Err(format!(
                        "an earlier operation on container {id} is still being undone, see {}",
                        path.display()
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Frees a container for its end: called by `delete`. Blocks for a short time.
pub fn release(directory: &Path, namespace: &str, id: &str) -> Result<(), String> {
    let mut left = Vec::new();
    for path in records_of(directory, namespace, id) {
        let until = Instant::now() + YIELD;
        let undone = loop {
            match look(&path) {
                Ok(Look::Gone) => break Ok(()),
                Ok(Look::Found(found)) => break found.undo(By::Cleaner),
                Ok(Look::Held) if Instant::now() < until => thread::sleep(POLL),
                // The guardian waits for CRIU or for a GPU; neither matters any more.
                Ok(Look::Held) => {
                    let text = fs::read_to_string(&path).unwrap_or_default();
                    break match Record::parse(&text) {
                        Ok(record) if !record.intent.shim.lives() => undo(&record, By::Cleaner),
                        _ => Ok(()),
                    };
                }
                Err(error) => break Err(format!("cannot read {}: {error}", path.display())),
            }
        };
        left.extend(undone.err());
    }
    if left.is_empty() {
        Ok(())
    } else {
        Err(left.join("; "))
    }
}

fn is_own(path: &Path) -> bool {
    let text = fs::read_to_string(path).unwrap_or_default();
    Record::parse(&text).is_ok_and(|record| {
        record.intent.shim.pid == std::process::id() && record.intent.shim.lives()
    })
}

#[cfg(test)]
mod tests;
