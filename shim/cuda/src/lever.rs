//! Kernel settings that are changed for a while and put back, also when whoever changed them dies.
//!
//! ```text
//! <directory>/lock                  flock: one reader and writer at a time
//!            /<path as a name>.json {"path":…,"before":…,"holders":[{"pid":…,"start":…}, …]}
//! ```
//!
//! The first holder notes what was there before, the last one writes it back. Holders that have
//! died without doing so don't count: whoever comes next puts their settings back.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::process::Process;

/// How long memory may take to fit below a limit that comes back.
const ROOM: Duration = Duration::from_secs(5);
/// Pause between two looks.
const POLL: Duration = Duration::from_millis(20);
/// Longest file name that records get.
const LONGEST: usize = 200;

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    path: PathBuf,
    before: String,
    holders: Vec<Process>,
}

fn own() -> io::Result<Process> {
    Process::now(std::process::id()).ok_or_else(|| io::Error::other("/proc is not mounted"))
}

/// The settings that this process holds.
#[derive(Debug)]
pub struct Levers {
    directory: PathBuf,
    held: Vec<PathBuf>,
}

impl Levers {
    /// Records lie in `directory`, which is made when it is needed. Settings of the dead are put
    /// back.
    pub fn new(directory: &Path) -> Self {
        let levers = Self {
            directory: directory.into(),
            held: Vec::new(),
        };
        if directory.exists() {
            levers.mend();
        }
        levers
    }

    /// Writes `value` into a setting until [`Levers::release`]. One that has the value already is
    /// left alone, unless somebody else holds it.
    pub fn hold(&mut self, path: &Path, value: &str) -> io::Result<()> {
        let _lock = self.lock()?;
        let file = self.record_of(path);
        let record = read(&file)?;
        let now = current(&fs::read_to_string(path)?);
        if record.is_none() && now == value {
            return Ok(());
        }
        let mut record = record.unwrap_or_else(|| Record {
            path: path.into(),
            before: now,
            holders: Vec::new(),
        });
        record.holders.retain(|holder| holder.lives());
        record.holders.push(own()?);
        write(&file, &record)?;
        self.held.push(path.into());
        put(path, value)
    }

    /// Puts everything back that nobody else holds.
    pub fn release(&mut self) -> io::Result<()> {
        let held = std::mem::take(&mut self.held);
        if held.is_empty() {
            return Ok(());
        }
        let _lock = self.lock()?;
        let own = own()?;
        let mut result = Ok(());
        // One limit may be bound by another that was raised before it.
        for path in held.into_iter().rev() {
            let released = self.let_go(&self.record_of(&path), Some(own));
            result = result.and(released);
        }
        result
    }

    /// Puts back what the dead have left.
    fn mend(&self) {
        let Ok(_lock) = self.lock() else { return };
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return;
        };
        let records = entries.flatten().map(|entry| entry.path());
        let mut records: Vec<_> = records
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "json")
            })
            .collect();
        // One limit may be bound by another that comes later here.
        records.retain(|path| self.let_go(path, None).is_err());
        for path in records {
            if let Err(error) = self.let_go(&path, None) {
                eprintln!("cannot put back the setting of {}: {error}", path.display());
            }
        }
    }

    fn let_go(&self, file: &Path, own: Option<Process>) -> io::Result<()> {
        let Some(mut record) = read(file)? else {
            return Ok(());
        };
        if let Some(index) = own.and_then(|own| record.holders.iter().position(|h| *h == own)) {
            record.holders.remove(index);
        }
        record.holders.retain(|holder| holder.lives());
        if !record.holders.is_empty() {
            return write(file, &record);
        }
        wait_for_room(&record);
        match put(&record.path, &record.before) {
            // A cgroup that is gone has no settings.
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::remove_file(file),
        }
    }

    fn lock(&self) -> io::Result<Flock<File>> {
        fs::DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&self.directory)?;
        let file = File::create(self.directory.join("lock"))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
    }

    fn record_of(&self, path: &Path) -> PathBuf {
        let name: String = path
            .to_string_lossy()
            .chars()
            .map(|c| if c == '/' { '-' } else { c })
            .collect();
        // The end of a cgroup's path is what tells it from others.
        let mut from = name.len().saturating_sub(LONGEST);
        while !name.is_char_boundary(from) {
            from += 1;
        }
        self.directory.join(format!("{}.json", &name[from..]))
    }
}

/// A limit on memory must not come back before what it limits fits again: the kernel would kill.
/// The driver gives back its copy of device memory a moment after a restore.
fn wait_for_room(record: &Record) {
    let usage = match record.path.file_name().and_then(|name| name.to_str()) {
        Some("memory.max") => "memory.current",
        Some("memory.limit_in_bytes") => "memory.usage_in_bytes",
        _ => return,
    };
    let Ok(limit) = record.before.parse::<u64>() else {
        return;
    };
    let usage = record.path.with_file_name(usage);
    let until = Instant::now() + ROOM;
    while fs::read_to_string(&usage)
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
        .is_some_and(|used| used > limit)
        && Instant::now() < until
    {
        thread::sleep(POLL);
    }
}

/// The value of a setting: the one in brackets where the file lists all that there are.
fn current(text: &str) -> String {
    let chosen = text
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .map(|(chosen, _)| chosen);
    chosen.unwrap_or(text).trim().to_owned()
}

/// Writes a setting that is there; a file is never made.
fn put(path: &Path, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
    file.write_all(value.as_bytes())
}

fn read(file: &Path) -> io::Result<Option<Record>> {
    match fs::read(file) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(Into::into),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn write(file: &Path, record: &Record) -> io::Result<()> {
    // Whole or not at all: it is read after a crash.
    let new = file.with_extension("new");
    fs::write(&new, serde_json::to_vec(record)?)?;
    fs::rename(&new, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place {
        _dir: tempfile::TempDir,
        setting: PathBuf,
        records: PathBuf,
    }

    fn place(content: &str) -> Place {
        let dir = tempfile::tempdir().unwrap();
        let setting = dir.path().join("enabled");
        fs::write(&setting, content).unwrap();
        let records = dir.path().join("levers");
        Place {
            setting,
            records,
            _dir: dir,
        }
    }

    fn content(place: &Place) -> String {
        fs::read_to_string(&place.setting).unwrap()
    }

    #[test]
    fn a_setting_is_put_back_by_its_last_holder() {
        let place = place("always [madvise] never\n");
        let mut first = Levers::new(&place.records);
        let mut second = Levers::new(&place.records);
        first.hold(&place.setting, "always").unwrap();
        second.hold(&place.setting, "always").unwrap();
        first.release().unwrap();
        assert_eq!(content(&place), "always");
        second.release().unwrap();
        assert_eq!(content(&place), "madvise");
        second.release().unwrap();
        assert_eq!(fs::read_dir(&place.records).unwrap().count(), 1, "the lock");
    }

    #[test]
    fn the_settings_of_the_dead_are_put_back() {
        let place = place("max\n");
        let mut levers = Levers::new(&place.records);
        levers.hold(&place.setting, "17").unwrap();
        let file = levers.record_of(&place.setting);
        let mut record = read(&file).unwrap().unwrap();
        record.holders[0].start += 1;
        write(&file, &record).unwrap();
        drop(Levers::new(&place.records));
        assert_eq!(content(&place), "max");
        assert!(!file.exists());
    }

    #[test]
    fn a_setting_that_is_right_is_not_touched() {
        let place = place("[always] madvise never\n");
        let mut levers = Levers::new(&place.records);
        levers.hold(&place.setting, "always").unwrap();
        levers.release().unwrap();
        assert_eq!(content(&place), "[always] madvise never\n");
    }

    #[test]
    fn a_setting_that_is_gone_needs_nothing() {
        let place = place("1\n");
        let mut levers = Levers::new(&place.records);
        levers.hold(&place.setting, "2").unwrap();
        fs::remove_file(&place.setting).unwrap();
        levers.release().unwrap();
        assert!(!place.setting.exists());
    }
}
