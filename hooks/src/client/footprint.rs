//! How much memory a container has, and how much space a directory: enough to refuse a
//! checkpoint that can't fit before the container is frozen for it.

use std::{fs, io, path::Path};

/// An archive is rarely below this part of the memory it holds.
const LEAST_SHARE: u64 = 4;

/// Memory of `pids` that an archive has to hold, in bytes: private and shared, each page once.
/// Processes that can't be seen from here count as nothing.
pub(crate) fn memory(pids: &[u32]) -> u64 {
    pids.iter()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok())
        .map(|text| rollup(&text))
        .sum()
}

/// Anonymous, shared-memory and swapped bytes in the text of `/proc/<pid>/smaps_rollup`,
/// shared ones in proportion to their users.
fn rollup(text: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| ["Pss_Anon", "Pss_Shmem", "SwapPss"].contains(name))
        .filter_map(|(_, value)| value.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .sum()
}

/// Bytes that this user may still write in the file system of `path`.
///
/// # Errors
/// The path can't be looked at.
pub fn available(path: &Path) -> io::Result<u64> {
    let facts = nix::sys::statvfs::statvfs(path)?;
    let blocks: u64 = facts.blocks_available();
    Ok(blocks.saturating_mul(facts.fragment_size()))
}

/// Whether an archive of `memory` bytes can't fit into `available` ones, however well it
/// compresses.
pub(crate) fn hopeless(memory: u64, available: u64) -> bool {
    available < memory / LEAST_SHARE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_dump_holds_is_counted() {
        let text = "\
55d-7ff ---p 00000000 00:00 0    [rollup]
Rss:              900000 kB
Pss:              800000 kB
Pss_Anon:           1000 kB
Pss_File:          70000 kB
Pss_Shmem:           200 kB
Anonymous:          5000 kB
Swap:                 99 kB
SwapPss:               4 kB
";
        assert_eq!(rollup(text), 1204 * 1024);
    }

    #[test]
    fn this_process_has_memory_and_this_disk_some_space() {
        assert!(memory(&[std::process::id()]) > 4096);
        assert_eq!(memory(&[u32::MAX]), 0);
        assert!(available(Path::new("/")).unwrap() > 0);
    }

    #[test]
    fn a_quarter_of_the_memory_must_be_free() {
        assert!(hopeless(4096, 1023));
        assert!(!hopeless(4096, 1024));
        assert!(!hopeless(0, 0));
    }
}
