//! Where the tar of an archive holds what, from the manifest alone.

use std::collections::HashSet;
use std::ops::Range;

use super::error::{EntryFault, NameFault, ReadError};
use super::{BLOCK, FIRST, header, name, padding};
use crate::manifest::{Entry, FILE};

/// sha256 of nothing.
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// What a stretch of the tar is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The header from this byte on.
    Header(usize),
    /// The content from this byte on.
    Content(u64),
    /// Zeros after the content.
    Padding,
}

/// A stretch of a frame that belongs to one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    /// Index of the entry.
    pub(super) entry: usize,
    pub(super) part: Part,
    /// Where in the frame.
    pub(super) range: Range<usize>,
}

/// Refuses entries that do not fill `total` bytes of tar from its start, one after another.
pub(super) fn check(entries: &[Entry], total: u64) -> Result<(), ReadError> {
    let mut names = HashSet::new();
    let mut expected = 0;
    for (index, entry) in entries.iter().enumerate() {
        let refuse = |fault| {
            Err(ReadError::Entry {
                name: entry.name.clone(),
                fault,
            })
        };
        if let Err(fault) = check_name(&entry.name, &names) {
            return refuse(EntryFault::Name(fault));
        }
        if index == 0 && entry.name != FIRST {
            return refuse(EntryFault::Name(NameFault::Orphan));
        }
        names.insert(entry.name.as_str());
        if entry.offset != expected {
            return refuse(EntryFault::Offset {
                expected,
                found: entry.offset,
            });
        }
        let directory = entry.name.ends_with('/');
        if entry.size > total || (directory && entry.size != 0) {
            return refuse(EntryFault::Size { size: entry.size });
        }
        let hex = |text: &str| {
            text.len() == 64
                && text
                    .bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let fits = if directory {
            entry.sha256.is_empty()
        } else {
            hex(&entry.sha256) && (entry.size > 0 || entry.sha256 == EMPTY)
        };
        if !fits {
            return refuse(EntryFault::DigestForm {
                found: entry.sha256.clone(),
            });
        }
        // Neither sum overflows: each end so far was at most `total`, the size is, too.
        expected = match end(entry) {
            Some(end) if end <= total => end,
            _ => return refuse(EntryFault::Size { size: entry.size }),
        };
    }
    if entries.is_empty() {
        return Err(ReadError::Manifest {
            fault: "it lists no entry",
        });
    }
    if expected != total {
        return Err(ReadError::Manifest {
            fault: "its entries end before it begins: something lies between",
        });
    }
    Ok(())
}

fn check_name(name: &str, names: &HashSet<&str>) -> Result<(), NameFault> {
    name::check(name)?;
    if name == FILE {
        return Err(NameFault::Reserved);
    }
    let bare = name.strip_suffix('/').unwrap_or(name);
    if names.contains(bare) || names.contains(format!("{bare}/").as_str()) {
        return Err(NameFault::Duplicate);
    }
    match name::parent(name) {
        Some(parent) if !names.contains(parent) => Err(NameFault::Orphan),
        _ => Ok(()),
    }
}

/// Where the next entry starts.
fn end(entry: &Entry) -> Option<u64> {
    entry
        .offset
        .checked_add(BLOCK as u64)?
        .checked_add(entry.size)?
        .checked_add(padding(entry.size) as u64)
}

/// The entry that holds byte `at` of the tar; `entries` have passed [`check`].
pub(super) fn entry_at(entries: &[Entry], at: u64) -> usize {
    entries
        .partition_point(|entry| entry.offset <= at)
        .saturating_sub(1)
}

/// What the `size` bytes of tar from `start` on are; `entries` have passed [`check`].
pub(super) fn segments(
    entries: &[Entry],
    start: u64,
    size: usize,
) -> impl Iterator<Item = Segment> + '_ {
    let mut at = 0;
    let mut index = entry_at(entries, start);
    std::iter::from_fn(move || {
        while at < size {
            let entry = entries.get(index)?;
            let position = start + at as u64 - entry.offset;
            let content = BLOCK as u64 + entry.size;
            let whole = content + padding(entry.size) as u64;
            let (part, end) = if position < BLOCK as u64 {
                (Part::Header(position as usize), BLOCK as u64)
            } else if position < content {
                (Part::Content(position - BLOCK as u64), content)
            } else if position < whole {
                (Part::Padding, whole)
            } else {
                index += 1;
                continue;
            };
            let left = (size - at) as u64;
            let length = left.min(end - position) as usize;
            let range = at..at + length;
            at += length;
            return Some(Segment {
                entry: index,
                part,
                range,
            });
        }
        None
    })
}

/// Does `bytes` equal the header of `entry` from byte `from` on?
pub(super) fn is_header(entry: &Entry, from: usize, bytes: &[u8]) -> bool {
    header::encode(&entry.name, entry.size).get(from..from + bytes.len()) == Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<Entry> {
        let mut offset = 0;
        [
            ("checkpoint/", 0),
            ("checkpoint/a", 513),
            ("b", 0),
            ("c", 512),
        ]
        .into_iter()
        .map(|(name, size)| {
            let entry = Entry {
                name: name.to_owned(),
                size,
                offset,
                sha256: match (name.ends_with('/'), size) {
                    (true, _) => String::new(),
                    (_, 0) => EMPTY.to_owned(),
                    _ => "0".repeat(64),
                },
            };
            offset = end(&entry).unwrap();
            entry
        })
        .collect()
    }

    #[test]
    fn segments_cover_every_cut_exactly() {
        let entries = entries();
        let total = end(&entries[3]).unwrap();
        check(&entries, total).unwrap();
        for start in 0..total {
            for size in [1, 511, 512, 2000, (total - start) as usize] {
                let size = size.min((total - start) as usize);
                let mut at = 0;
                for segment in segments(&entries, start, size) {
                    assert_eq!(segment.range.start, at);
                    assert!(!segment.range.is_empty());
                    at = segment.range.end;
                }
                assert_eq!(at, size);
            }
        }
    }

    #[test]
    fn entries_that_do_not_fill_the_tar_are_refused() {
        let good = entries();
        let total = end(&good[3]).unwrap();
        let bad = |change: &dyn Fn(&mut Vec<Entry>)| {
            let mut entries = good.clone();
            change(&mut entries);
            assert!(check(&entries, total).is_err(), "{entries:?}");
        };
        bad(&|entries| entries.clear());
        bad(&|entries| drop(entries.pop()));
        bad(&|entries| drop(entries.remove(0)));
        bad(&|entries| entries.swap(1, 2));
        bad(&|entries| entries[1].size = u64::MAX);
        bad(&|entries| entries[1].size += 512);
        bad(&|entries| entries[0].size = 1);
        bad(&|entries| entries[2].offset += 512);
        bad(&|entries| entries[2].sha256 = "0".repeat(64));
        bad(&|entries| entries[1].sha256 = "A".repeat(64));
        bad(&|entries| entries[1].sha256.clear());
        bad(&|entries| entries[3].name = "b".to_owned());
        bad(&|entries| entries[3].name = "b/c".to_owned());
        bad(&|entries| entries[3].name = FILE.to_owned());
        bad(&|entries| entries[3].name = "../c".to_owned());
    }
}
