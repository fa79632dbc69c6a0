//! The mount table of a process.
//!
//! ```text
//! 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
//!  │  │  │    │     │    └ options of the mount │    └ source, then its options
//!  │  │  │    │     └ mount point               └ file system type
//!  │  │  │    └ what of the file system is mounted
//!  │  │  └ device: the same for all mounts of one file system
//!  │  └ parent
//!  └ id
//! ```
//! proc_pid_mountinfo(5). Blanks and backslashes in paths are octal escapes.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf};

/// One mount, with its paths as the table writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The file system, as `major:minor`.
    pub device: &'a str,
    /// What of the file system is mounted: `/` for all of it.
    pub root: &'a str,
    /// Where.
    pub point: &'a str,
    /// Its options, as `ro,nosuid`.
    pub options: &'a str,
    /// Type of the file system.
    pub kind: &'a str,
    /// What the file system is made from.
    pub source: &'a str,
    /// Options of the file system, as `rw,memory`.
    pub data: &'a str,
}

impl<'a> Entry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(2);
        let mut filesystem = filesystem.split(' ');
        Some(Self {
            device: mount.next()?,
            root: mount.next()?,
            point: mount.next()?,
            options: mount.next()?,
            kind: filesystem.next()?,
            source: filesystem.next()?,
            data: filesystem.next().unwrap_or_default(),
        })
    }

    /// Whether it may not be written to.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.options.split(',').any(|option| option == "ro")
    }
}

/// The mounts in the text of a `mountinfo`, in order. Lines of another form are left out.
pub fn entries(table: &str) -> impl Iterator<Item = Entry<'_>> {
    table.lines().filter_map(Entry::parse)
}

/// A path as it is, without escapes.
#[must_use]
pub fn unescape(field: &str) -> PathBuf {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let value = octal
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match value {
            Some(value) => {
                out.push(value);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_fields_whatever_stands_between() {
        let table = "\
36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw
37 35 0:9 / /a\\040b\\134c ro - tmpfs tmpfs rw
garbage
";
        let entries: Vec<_> = entries(table).collect();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].device, "98:0");
        assert_eq!((entries[0].root, entries[0].point), ("/mnt1", "/mnt2"));
        assert_eq!((entries[0].kind, entries[0].source), ("ext3", "/dev/root"));
        assert_eq!(entries[0].data, "rw");
        assert!(!entries[0].is_read_only() && entries[1].is_read_only());
        assert_eq!(unescape(entries[1].point), PathBuf::from("/a b\\c"));
    }
}
