//! Memory, and the directories that a checkpoint or a restore writes to.

use std::{fs, path::Path};

use kybernate_config::{Settings, size};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};

use super::Finding;

/// Less than this is soon used up.
const LOW: u64 = 1 << 30;

/// A directory's file system.
#[derive(Debug, Clone, Copy)]
struct Place {
    free: u64,
    tmpfs: bool,
}

/// Looks at memory and at every directory of the settings.
pub fn examine(settings: &Settings) -> Vec<Finding> {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let directory = |check, path: &Path, memory| judge(check, path, place(path), memory);
    vec![
        judge_memory(&meminfo),
        directory("work_dir", &settings.checkpoint.work_dir, true),
        directory("memory_dir", &settings.restore.memory_dir, true),
        directory("disk_dir", &settings.restore.disk_dir, false),
    ]
}

/// The file system of `path` or, as long as that is not there, of where it would be.
fn place(path: &Path) -> Option<Place> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let facts = statfs(existing).ok()?;
    let block = u64::try_from(facts.block_size()).ok()?;
    let free = facts.blocks_available().saturating_mul(block);
    let kind: FsType = facts.filesystem_type();
    Some(Place {
        free,
        tmpfs: kind == TMPFS_MAGIC,
    })
}

/// Whether a directory is, or would be, on tmpfs.
pub fn is_on_tmpfs(path: &Path) -> bool {
    place(path).is_some_and(|place| place.tmpfs)
}

/// Judges a directory; `memory` says that it is meant to be on tmpfs.
fn judge(check: &'static str, path: &Path, place: Option<Place>, memory: bool) -> Finding {
    let path = path.display();
    let Some(place) = place else {
        return Finding::warn(
            check,
            format!("{path} can't be looked at"),
            "name a directory that can be made",
        );
    };
    let kind = if place.tmpfs { "on tmpfs" } else { "on disk" };
    let found = format!("{path} {kind}, {} free", size::display(place.free));
    if memory && !place.tmpfs {
        let remedy =
            format!("set {check} to a directory under /run or another tmpfs; it works, slower");
        Finding::warn(check, found, remedy)
    } else if !memory && place.free < LOW {
        Finding::warn(
            check,
            found,
            format!("free some space, or set {check} to a larger file system"),
        )
    } else {
        Finding::ok(check, found)
    }
}

fn judge_memory(meminfo: &str) -> Finding {
    let available = meminfo.lines().find_map(|line| {
        let kib = line
            .strip_prefix("MemAvailable:")?
            .trim()
            .strip_suffix(" kB")?;
        Some(kib.parse::<u64>().ok()?.saturating_mul(1024))
    });
    match available {
        Some(bytes) if bytes < LOW => Finding::warn(
            "memory",
            format!("{} available", size::display(bytes)),
            "a checkpoint keeps data in memory; set checkpoint.buffer to a size that is free",
        ),
        Some(bytes) => Finding::ok("memory", format!("{} available", size::display(bytes))),
        None => Finding::warn("memory", "unknown", "mount /proc"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn directories_are_judged_by_what_they_are_for() {
        let path = Path::new("/x");
        let level =
            |free, tmpfs, memory| judge("d", path, Some(Place { free, tmpfs }), memory).level;
        assert_eq!(level(LOW, true, true), Level::Ok);
        assert_eq!(level(LOW, false, true), Level::Warn);
        assert_eq!(level(LOW, false, false), Level::Ok);
        assert_eq!(level(LOW - 1, false, false), Level::Warn);
        assert_eq!(judge("d", path, None, true).level, Level::Warn);
        assert!(place(Path::new("/nonexistent/deeper")).is_some());
    }

    #[test]
    fn memory_is_what_the_kernel_says_is_available() {
        let text = "MemTotal:       99 kB\nMemFree: 1 kB\nMemAvailable:   2097152 kB\n";
        assert_eq!(
            judge_memory(text),
            Finding::ok("memory", "2.00 GiB available")
        );
        assert_eq!(judge_memory("MemAvailable: 1024 kB\n").level, Level::Warn);
        assert_eq!(judge_memory("").level, Level::Warn);
    }
}
