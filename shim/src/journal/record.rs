//! The format of a record, and reading it.
//!
//! The last line of a record whose writer died may be torn; it is left out then.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use kybernate_config::settings::GpuSettings;
use kybernate_cuda::process::Process;
use serde::{Deserialize, Serialize};

use crate::checkpoint::Freezer;

/// Version of the format. Records of another are not understood and stay.
pub const VERSION: u32 = 1;

/// The step of a record that says no more than its intent.
pub const FIRST_STEP: &str = "begin";

/// What is going to be done to a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// [`VERSION`].
    pub version: u32,
    /// `checkpoint` or `restore`.
    pub operation: Operation,
    /// containerd namespace.
    pub namespace: String,
    /// The container.
    pub id: String,
    /// Whoever does it.
    pub shim: Process,
    /// What freezes the container; a restored one has none yet.
    pub freezer: Option<Freezer>,
    /// Whether it is frozen already.
    pub paused: Paused,
    /// How to reach the driver, and where changed kernel settings (huge pages, memory limits) are
    /// recorded with their former values.
    pub gpu: GpuSettings,
    /// Files and directories that exist for the operation alone.
    pub remove: Vec<PathBuf>,
    /// Files of its result, which stay once it is complete.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub results: Vec<PathBuf>,
    /// A directory of somebody else's in which files of its result grow.
    pub fills: Option<Filled>,
    /// Cgroups that exist for the operation alone until it has ended well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cgroups: Vec<PathBuf>,
    /// runc's directory of a container that runc may not know of in the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runc: Option<PathBuf>,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// The processes live on.
    Checkpoint,
    /// The processes are not the container's before its end.
    Restore,
}

impl Operation {
    /// For messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Checkpoint => "checkpoint",
            Self::Restore => "restore",
        }
    }
}

/// Whether a container is frozen before its checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Paused {
    /// It runs.
    No,
    /// For the checkpoint, by containerd, which resumes it.
    ForCheckpoint,
    /// By somebody who wants it so.
    Before,
}

/// A directory that had other files before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filled {
    /// Which.
    pub directory: PathBuf,
    /// What was in it.
    pub before: Vec<OsString>,
}

impl Filled {
    /// Notes what is in a directory now.
    pub fn note(directory: &Path) -> io::Result<Self> {
        let entries = fs::read_dir(directory)?;
        Ok(Self {
            directory: directory.into(),
            before: entries
                .map(|entry| entry.map(|e| e.file_name()))
                .collect::<io::Result<_>>()?,
        })
    }

    /// Removes the files that came since. A directory that is gone has none.
    pub fn empty(&self) -> io::Result<()> {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return Ok(());
        };
        let came = entries
            .flatten()
            .filter(|entry| !self.before.contains(&entry.file_name()));
        let mut result = Ok(());
        for entry in came {
            match fs::remove_file(entry.path()) {
                // Another heir is at it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => result = result.and(removed),
            }
        }
        result
    }
}

/// A line after the first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Note {
    /// The step that begins.
    pub step: String,
    /// Programs that it has started: runc, CRIU.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub programs: Vec<Process>,
    /// The helper that undoes GPU state by itself while it lives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub helper: Option<Process>,
    /// Processes of the container that are about to be locked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub locked: Vec<Process>,
    /// The result is whole: only the container itself may have to be brought back.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub complete: bool,
}

/// A record as far as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its first line.
    pub intent: Intent,
    /// The last step.
    pub step: String,
    /// All programs.
    pub programs: Vec<Process>,
    /// All helpers.
    pub helpers: Vec<Process>,
    /// All processes that were locked.
    pub locked: Vec<Process>,
    /// Whether the result is whole.
    pub complete: bool,
}

impl Record {
    /// A record that says no more than its intent.
    #[must_use]
    pub fn new(intent: Intent) -> Self {
        Self {
            intent,
            step: FIRST_STEP.into(),
            programs: Vec::new(),
            helpers: Vec::new(),
            locked: Vec::new(),
            complete: false,
        }
    }

    /// Takes one more line in.
    pub fn add(&mut self, note: Note) {
        self.step = note.step;
        self.programs.extend(note.programs);
        self.helpers.extend(note.helper);
        let new: BTreeSet<u32> = note.locked.iter().map(|process| process.pid).collect();
        self.locked.retain(|process| !new.contains(&process.pid));
        self.locked.extend(note.locked);
        self.complete |= note.complete;
    }

    /// Reads the text of a record.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        let mut lines = text.lines();
        let mut record = Self::new(serde_json::from_str(lines.next().unwrap_or_default())?);
        for note in lines.map_while(|line| serde_json::from_str(line).ok()) {
            record.add(note);
        }
        Ok(record)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn intent() -> Intent {
        Intent {
            version: VERSION,
            operation: Operation::Checkpoint,
            namespace: "k8s.io".into(),
            id: "abc".into(),
            shim: Process { pid: 7, start: 42 },
            freezer: None,
            paused: Paused::No,
            gpu: GpuSettings::default(),
            remove: Vec::new(),
            results: Vec::new(),
            fills: None,
            cgroups: Vec::new(),
            runc: None,
        }
    }

    fn line(value: &impl Serialize) -> String {
        serde_json::to_string(value).unwrap() + "\n"
    }

    #[test]
    fn a_record_says_what_its_lines_say_and_a_torn_one_says_nothing() {
        let process = |pid| Process { pid, start: 1 };
        let lock = Note {
            step: "gpu-lock".into(),
            helper: Some(process(8)),
            locked: vec![process(20)],
            ..Note::default()
        };
        let dump = Note {
            step: "dump".into(),
            programs: vec![process(9)],
            ..Note::default()
        };
        let text = line(&intent()) + &line(&lock) + &line(&dump);
        let record = Record::parse(&text).unwrap();
        assert_eq!(record.intent, intent());
        assert_eq!(record.step, "dump");
        assert_eq!(record.programs, [process(9)]);
        assert_eq!(
            (record.helpers, record.locked),
            (vec![process(8)], vec![process(20)])
        );
        let torn = &text[..text.len() - 3];
        assert_eq!(Record::parse(torn).unwrap().step, "gpu-lock");
        assert!(Record::parse("").is_err() && Record::parse("{}").is_err());
    }

    #[test]
    fn only_what_came_since_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("mine"), "").unwrap();
        let filled = Filled::note(dir.path()).unwrap();
        fs::write(dir.path().join("core-1.img"), "").unwrap();
        filled.empty().unwrap();
        let left = Filled::note(dir.path()).unwrap().before;
        assert_eq!(left, ["mine"]);
    }

    #[test]
    fn two_heirs_may_empty_a_directory_at_the_same_time() {
        let dir = tempfile::tempdir().unwrap();
        let filled = Filled::note(dir.path()).unwrap();
        for round in 0..50 {
            for file in 0..40 {
                fs::write(dir.path().join(format!("{round}-{file}")), "").unwrap();
            }
            let empty = || filled.empty();
            let heirs: Vec<_> = std::thread::scope(|scope| {
                let both = [scope.spawn(empty), scope.spawn(empty)];
                both.into_iter().map(|heir| heir.join().unwrap()).collect()
            });
            assert!(heirs.iter().all(Result::is_ok), "{heirs:?}");
        }
    }
}
