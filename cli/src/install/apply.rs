//! A change of several files that is made whole or not at all, whatever ends it.
//!
//! ```text
//! journal: staging    contents go beside their files, under other names; backups to backup/
//! journal: swapping   renames, one by one: programs first, what refers to them last
//! journal: activating services restart, and must come back
//! journal: committed  from here on the new state is the one to keep
//! receipt.json written, journal removed
//! ```
//!
//! An error, or a next run after a crash, undoes everything up to `activating` from the journal
//! and finishes what was `committed`. Every rename leaves a node that works: a file that refers to
//! another is written after it and removed before it.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use kybernate_config::profile::{Node, Root};

use super::{
    file::{self, Content, Facts, missing_directories, remove_if_there},
    journal::{Journal, Phase, Step, boot_id, io_error},
    receipt::{Kind, Receipt, STATE_DIR},
};

pub use super::{journal::ApplyError, plan::Change};

/// What temporary names end with.
const STAGED: &str = ".kybernate-new";

/// What happens next; tests end the process here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The journal says that files are being prepared.
    Begun,
    /// A file lies beside its place.
    Staged(usize),
    /// A file was replaced.
    Swapped(usize),
    /// Services are going to be restarted.
    Activating,
    /// The journal says that the change is to be kept.
    Committed,
    /// The receipt is written.
    Recorded,
}

/// What an interrupted change has left to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing was interrupted.
    None,
    /// Files were put back. `kinds` may be in use by services, which have to be restarted.
    RolledBack {
        /// What may be in use.
        kinds: Vec<Kind>,
        /// The node's paths and commands.
        node: Option<Box<Node>>,
    },
    /// A change that was complete was recorded.
    Finished,
}

/// The state directory of a node, locked.
#[derive(Debug)]
pub struct Ledger {
    root: Root,
    state: PathBuf,
    _lock: File,
}

impl Ledger {
    /// Locks the state directory, making it if need be.
    pub fn open(root: &Root) -> Result<Self, ApplyError> {
        let state = root
            .target(STATE_DIR)
            .map_err(io_error("find", Path::new(STATE_DIR)))?;
        // Which directories are new is known by the names that are missing, and kept by a mark.
        fs::create_dir_all(state.join("backup")).map_err(io_error("make", &state))?;
        let path = state.join("lock");
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io_error("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ApplyError::Busy(path)),
            Err(TryLockError::Error(e)) => return Err(io_error("lock", &path)(e)),
        }
        Ok(Self {
            root: root.clone(),
            state,
            _lock: lock,
        })
    }

    /// Directories up to the state directory that are not there yet, the outermost first.
    pub fn missing(root: &Root) -> Vec<PathBuf> {
        missing_directories(root, [Path::new(STATE_DIR)])
    }

    /// What is installed.
    pub fn receipt(&self) -> Result<Option<Receipt>, ApplyError> {
        Receipt::read(&self.state).map_err(io_error("read", &self.state.join("receipt.json")))
    }

    /// The content that a file had before.
    pub fn backup(&self, facts: &Facts) -> Result<Content, ApplyError> {
        let path = self.state.join("backup").join(&facts.sha256);
        let bytes = fs::read(&path).map_err(io_error("read", &path))?;
        if file::digest(&bytes) != facts.sha256 {
            return Err(io_error("read", &path)(io::Error::other(
                "the backup is damaged",
            )));
        }
        Ok(Content {
            bytes,
            facts: facts.clone(),
        })
    }

    /// Undoes or finishes what an interrupted run has left.
    pub fn recover(&self) -> Result<Recovery, ApplyError> {
        let path = self.state.join("journal.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Recovery::None),
            Err(e) => return Err(io_error("read", &path)(e)),
        };
        let journal: Journal = serde_json::from_str(&text)
            .map_err(|e| io_error("read", &path)(io::Error::other(e)))?;
        if journal.phase == Phase::Committed {
            self.record(&journal)?;
            return Ok(Recovery::Finished);
        }
        let used = journal.phase == Phase::Activating || journal.boot_id != boot_id();
        let kinds = if used {
            journal.changes.iter().map(|step| step.kind).collect()
        } else {
            Vec::new()
        };
        if let Some(stuck) = self.undo(&journal, "a run was interrupted".into()) {
            return Err(stuck);
        }
        let receipt = journal
            .receipt
            .map_or_else(|| self.receipt(), |r| Ok(Some(r)))?;
        let node = receipt.map(|receipt| Box::new(receipt.node));
        Ok(Recovery::RolledBack { kinds, node })
    }

    /// Makes `changes`, and leaves `receipt` where anything stays installed.
    ///
    /// `activate` restarts services; its error undoes everything, after which it is called again
    /// with `true`. `made` are directories that did not exist before this run.
    pub fn apply(
        &self,
        changes: &[Change],
        mut receipt: Option<Receipt>,
        mut made: Vec<PathBuf>,
        activate: &mut dyn FnMut(bool) -> Result<(), String>,
        observe: &mut dyn FnMut(Event),
    ) -> Result<(), ApplyError> {
        let targets = changes.iter().filter(|change| change.after.is_some());
        let parents = targets.filter_map(|change| change.path.parent());
        for directory in missing_directories(&self.root, parents) {
            if !made.contains(&directory) {
                made.push(directory);
            }
        }
        if let Some(receipt) = &mut receipt {
            for directory in &made {
                if !receipt.directories.contains(directory) {
                    receipt.directories.push(directory.clone());
                }
            }
        }
        let mut journal = Journal {
            phase: Phase::Staging,
            boot_id: boot_id(),
            changes: changes
                .iter()
                .map(|change| Step {
                    path: change.path.clone(),
                    kind: change.kind,
                    before: change.before.as_ref().map(|content| content.facts.clone()),
                    after: change.after.as_ref().map(|content| content.facts.clone()),
                })
                .collect(),
            directories: made,
            receipt,
        };
        let outcome = self
            .stage(changes, &mut journal, observe)
            .and_then(|()| self.swap(&mut journal, observe))
            .and_then(|()| self.advance(&mut journal, Phase::Activating));
        if let Err(error) = outcome {
            let why = error.to_string();
            let stuck = self.undo(&journal, why.clone());
            return Err(stuck.unwrap_or(ApplyError::Undone { why }));
        }
        observe(Event::Activating);
        let outcome = activate(false).and_then(|()| {
            self.advance(&mut journal, Phase::Committed)
                .map_err(|error| error.to_string())
        });
        if let Err(why) = outcome {
            journal.phase = Phase::Activating;
            let undone = self.undo(&journal, why.clone());
            return Err(match (undone, activate(true)) {
                (Some(stuck), _) => stuck,
                (None, Ok(())) => ApplyError::Activation { why },
                (None, Err(again)) => ApplyError::Activation {
                    why: format!("{why}; with the old files, too: {again}"),
                },
            });
        }
        observe(Event::Committed);
        self.record(&journal)?;
        observe(Event::Recorded);
        Ok(())
    }

    fn stage(
        &self,
        changes: &[Change],
        journal: &mut Journal,
        observe: &mut dyn FnMut(Event),
    ) -> Result<(), ApplyError> {
        for content in changes
            .iter()
            .flat_map(|change| change.before.iter().chain(&change.original))
        {
            let path = self.state.join("backup").join(&content.facts.sha256);
            if !path.exists() {
                file::replace(&path, &content.bytes).map_err(io_error("save", &path))?;
            }
        }
        self.advance(journal, Phase::Staging)?;
        observe(Event::Begun);
        for directory in &journal.directories {
            let path = self.place(directory)?;
            match fs::create_dir(&path) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(io_error("make", directory)(e));
                }
                _ => {}
            }
        }
        for (index, change) in changes.iter().enumerate() {
            if let Some(content) = &change.after {
                let path = self.place(&change.path)?;
                content
                    .write(&staged(&path), Some(&path))
                    .map_err(io_error("write", &change.path))?;
                observe(Event::Staged(index));
            }
        }
        Ok(())
    }

    fn swap(
        &self,
        journal: &mut Journal,
        observe: &mut dyn FnMut(Event),
    ) -> Result<(), ApplyError> {
        self.advance(journal, Phase::Swapping)?;
        for (index, step) in journal.changes.iter().enumerate() {
            let path = self.place(&step.path)?;
            let swapped = match step.after {
                Some(_) => fs::rename(staged(&path), &path),
                None => fs::remove_file(&path),
            };
            swapped
                .and_then(|()| file::sync_parent(&path))
                .map_err(io_error("replace", &step.path))?;
            observe(Event::Swapped(index));
        }
        Ok(())
    }

    /// Rolls back after an error; nothing where that worked.
    fn undo(&self, journal: &Journal, why: String) -> Option<ApplyError> {
        let rollback = self.roll_back(journal).err()?.to_string();
        Some(ApplyError::Stuck {
            why,
            rollback,
            state: self.state.clone(),
        })
    }

    fn roll_back(&self, journal: &Journal) -> Result<(), ApplyError> {
        for step in journal.changes.iter().rev() {
            let path = self.place(&step.path)?;
            remove_if_there(&staged(&path)).map_err(io_error("remove", &step.path))?;
            let now = Content::read(&path).map_err(io_error("read", &step.path))?;
            let now = now.map(|content| content.facts);
            let is = |facts: &Option<Facts>| match (&now, facts) {
                (None, None) => true,
                (Some(now), Some(facts)) => now.same(facts),
                _ => false,
            };
            // What somebody else has written meanwhile is theirs.
            if is(&step.before) || !is(&step.after) {
                continue;
            }
            match &step.before {
                None => remove_if_there(&path),
                Some(facts) => {
                    let temporary = staged(&path);
                    self.backup(facts)?
                        .write(&temporary, Some(&path))
                        .and_then(|()| fs::rename(&temporary, &path))
                }
            }
            .map_err(io_error("put back", &step.path))?;
            file::sync_parent(&path).map_err(io_error("put back", &step.path))?;
        }
        let kept = self.receipt()?;
        self.clear(kept.as_ref(), &journal.directories)
    }

    /// Finishes a change that is kept, whatever happens here.
    fn record(&self, journal: &Journal) -> Result<(), ApplyError> {
        let done = match journal.receipt {
            Some(_) => "installed",
            None => "uninstalled",
        };
        self.finish(journal)
            .map_err(|error| ApplyError::Unrecorded {
                done,
                why: error.to_string(),
            })
    }

    /// Writes the receipt of a change that was made.
    fn finish(&self, journal: &Journal) -> Result<(), ApplyError> {
        let path = self.state.join("receipt.json");
        let before = self.receipt()?;
        match &journal.receipt {
            Some(receipt) => {
                let text = serde_json::to_vec_pretty(receipt)
                    .map_err(|e| io_error("write", &path)(io::Error::other(e)))?;
                file::replace(&path, &text).map_err(io_error("write", &path))?;
            }
            None => remove_if_there(&path).map_err(io_error("remove", &path))?,
        }
        let obsolete = match &journal.receipt {
            Some(_) => Vec::new(),
            None => {
                let mut all = journal.directories.clone();
                all.extend(before.into_iter().flat_map(|receipt| receipt.directories));
                all
            }
        };
        self.clear(journal.receipt.as_ref(), &obsolete)
    }

    /// Removes the journal, backups that nothing needs, and directories that are empty.
    pub fn clear(&self, receipt: Option<&Receipt>, made: &[PathBuf]) -> Result<(), ApplyError> {
        remove_if_there(&self.state.join("journal.json"))
            .map_err(io_error("remove", &self.state.join("journal.json")))?;
        let needed: Vec<&str> = receipt
            .into_iter()
            .flat_map(|receipt| &receipt.files)
            .filter_map(|file| Some(file.before.as_ref()?.sha256.as_str()))
            .collect();
        for entry in fs::read_dir(self.state.join("backup"))
            .into_iter()
            .flatten()
            .flatten()
        {
            if !needed.contains(&entry.file_name().to_string_lossy().as_ref()) {
                let _ = fs::remove_file(entry.path());
            }
        }
        if receipt.is_none() {
            let _ = fs::remove_file(self.state.join("lock"));
            let _ = fs::remove_dir(self.state.join("backup"));
            let _ = fs::remove_dir(&self.state);
        }
        let mut made: Vec<&PathBuf> = made
            .iter()
            .filter(|path| receipt.is_none_or(|receipt| !receipt.directories.contains(path)))
            .collect();
        made.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
        for directory in made {
            // One that is not empty holds what others have put there.
            if let Ok(path) = self.root.target(directory) {
                let _ = fs::remove_dir(path);
            }
        }
        Ok(())
    }

    fn advance(&self, journal: &mut Journal, phase: Phase) -> Result<(), ApplyError> {
        journal.phase = phase;
        let path = self.state.join("journal.json");
        let text = serde_json::to_vec_pretty(journal)
            .map_err(|e| io_error("write", &path)(io::Error::other(e)))?;
        file::replace(&path, &text).map_err(io_error("write", &path))
    }

    fn place(&self, path: &Path) -> Result<PathBuf, ApplyError> {
        self.root.target(path).map_err(io_error("find", path))
    }
}

fn staged(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(STAGED);
    name.into()
}
