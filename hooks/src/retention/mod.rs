//! How many archives stay in kubelet's checkpoint directory. kubelet itself never removes one.
//!
//! ```text
//! before a checkpoint   free space ≥ min_free + what it and those    no: the oldest make way
//!                         that run will take?                        not enough: refused
//! after it              ≤ per_pod, ≤ per_node, ≤ total               else the oldest go
//! never                 the newest good archive of a container, the one just taken
//!                       an archive with a file NAME.keep beside it
//!                       anything that is no archive of ours
//! ```
//!
//! An archive is good when its manifest is whole, or, since few nodes can read those that are
//! encrypted, when their header is. What it belongs to is read from there and not from its name, in
//! which namespaces, pods and containers run into each other.

mod held;
mod policy;
mod promise;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use kybernate_config::{settings::RetentionSettings, size};

pub use self::{held::Owner, promise::Promise};
use self::{
    held::{Held, scan},
    promise::outstanding,
};
use crate::client;

/// Before compression is known, an archive is taken to be this part of the memory in it.
const GUESS: u64 = 4;

/// One at a time: two must not count the same archives.
static TURN: Mutex<()> = Mutex::new(());

/// Why there is no room.
#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    /// Too little space, also without all archives that may go.
    #[error(
        "{} has {} free{}; the checkpoint takes about {} and {} must stay free \
         (retention.min_free), and no archive that may be removed is left", path.display(),
        size::display(*free), of_it(*promised), size::display(*wanted), size::display(*min_free)
    )]
    Room {
        /// The directory.
        path: PathBuf,
        /// Free bytes.
        free: u64,
        /// How many of them checkpoints that run will take.
        promised: u64,
        /// About what the archive takes.
        wanted: u64,
        /// What must stay free.
        min_free: u64,
    },
    /// The directory can't be looked at.
    #[error("cannot look at {path}: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Removed {
    /// How many archives.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Whether space is kept free for archives in this directory.
#[must_use]
pub fn keeps_space(settings: &RetentionSettings, dir: &Path) -> bool {
    settings.min_free.bytes() > 0 && is_ours(settings, dir)
}

/// Sees that an archive of a container with so many bytes of memory will fit and leave what must
/// stay free; removes old archives for it. Until the promise is dropped, others leave it its space.
///
/// # Errors
/// It will not fit. Then nothing was removed.
pub fn make_room(
    settings: &RetentionSettings,
    owner: &Owner,
    memory: u64,
) -> Result<(Removed, Promise), RetentionError> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = &settings.dir;
    let failed = |source| RetentionError::Io {
        path: dir.clone(),
        source,
    };
    // What is written between the two counts twice: that leaves too much free, not too little.
    let promised = outstanding();
    let free = client::free_space(dir).map_err(failed)?;
    let held = scan(dir).map_err(failed)?;
    let wanted = policy::last_size(&held, owner).unwrap_or(memory / GUESS);
    let min_free = settings.min_free.bytes();
    let lacking = wanted
        .saturating_add(min_free)
        .saturating_add(promised)
        .saturating_sub(free);
    let Some(victims) = policy::room(&held, lacking) else {
        return Err(RetentionError::Room {
            path: dir.clone(),
            free,
            promised,
            wanted,
            min_free,
        });
    };
    let promise = Promise::new(wanted);
    Ok((remove(&held, &victims, "to make room"), promise))
}

/// Removes what is more than the settings allow, if they are about the directory of the archive that
/// was just taken, which stays.
///
/// # Errors
/// The directory can't be read.
pub fn prune(settings: &RetentionSettings, taken: &Path) -> Result<Removed, RetentionError> {
    let is_ours = taken.parent().is_some_and(|dir| is_ours(settings, dir));
    if !is_ours || !policy::limits(settings) {
        return Ok(Removed::default());
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut held = scan(&settings.dir).map_err(|source| RetentionError::Io {
        path: settings.dir.clone(),
        source,
    })?;
    policy::keep(&mut held, taken);
    let victims = policy::excess(&held, settings);
    Ok(remove(&held, &victims, "more than [retention] allows"))
}

fn of_it(promised: u64) -> String {
    match promised {
        0 => String::new(),
        _ => format!(
            ", {} of it for checkpoints that run",
            size::display(promised)
        ),
    }
}

fn is_ours(settings: &RetentionSettings, dir: &Path) -> bool {
    match (settings.dir.canonicalize(), dir.canonicalize()) {
        (Ok(ours), Ok(dir)) => ours == dir,
        _ => false,
    }
}

fn remove(held: &[Held], victims: &[usize], why: &str) -> Removed {
    let mut removed = Removed::default();
    for victim in victims.iter().map(|index| &held[*index]) {
        match fs::remove_file(&victim.path) {
            Ok(()) => {
                removed.count += 1;
                removed.bytes += victim.bytes;
                tracing::info!(
                    path = %victim.path.display(),
                    bytes = victim.bytes,
                    "removed an archive, {why}"
                );
            }
            Err(error) => {
                tracing::warn!(path = %victim.path.display(), "an archive stays: {error}");
            }
        }
    }
    removed
}

#[cfg(test)]
mod tests {
    use kybernate_oci::{
        archive::{WriteOptions, Writer},
        manifest::{Container, Manifest},
    };

    use super::*;

    /// An archive of the one container, taken in this second of a minute.
    fn archive(dir: &Path, second: u32) -> PathBuf {
        let path = dir.join(format!("{second}.tar"));
        let options = WriteOptions {
            workers: 1,
            ..WriteOptions::default()
        };
        let manifest = Manifest {
            created: format!("2026-01-02T03:04:{second:02}Z"),
            container: Container {
                id: "c".into(),
                ..Container::default()
            },
            ..Manifest::default()
        };
        let file = fs::File::create(&path).unwrap();
        Writer::new(file, options)
            .unwrap()
            .finish(manifest)
            .unwrap();
        path
    }

    #[test]
    fn what_was_just_taken_stays_whatever_the_clock_says() {
        let dir = tempfile::tempdir().unwrap();
        let settings = RetentionSettings {
            dir: dir.path().to_owned(),
            per_pod: 2,
            ..RetentionSettings::default()
        };
        let [taken, older, newer] = [1, 7, 8].map(|second| archive(dir.path(), second));
        assert_eq!(prune(&settings, &taken).unwrap().count, 1);
        assert!(taken.exists() && !older.exists() && newer.exists());
        // The next one is newer, and there is nothing of that kind about it.
        let next = archive(dir.path(), 9);
        assert_eq!(prune(&settings, &next).unwrap().count, 1);
        assert!(!taken.exists());
    }

    #[test]
    fn two_at_once_do_not_get_the_same_space() {
        let dir = tempfile::tempdir().unwrap();
        let settings = RetentionSettings {
            dir: dir.path().to_owned(),
            ..RetentionSettings::default()
        };
        // Each takes three fifths of what is free.
        let free = client::free_space(dir.path()).unwrap();
        let room = || make_room(&settings, &Owner::alone("c"), free / 5 * 3 * GUESS);
        let (_, first) = room().unwrap();
        let error = room().unwrap_err().to_string();
        assert!(error.contains("checkpoints that run"), "{error}");
        drop(first);
        let (_, mut second) = room().unwrap();
        // What is written is no longer promised; here somebody has removed it again.
        second.written(free / 5 * 2);
        let (_, third) = room().unwrap();
        drop((second, third));
        assert_eq!(outstanding(), 0);
    }
}
