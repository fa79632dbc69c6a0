//! One entry of a tar, free of how it is written down.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::PATH_LIMIT;

/// An entry: where it is, what it is and what belongs to it except a file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// Below the root, in normal form; empty for the root itself.
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    pub(super) meta: Meta,
}

impl Member {
    /// Bytes of memory that it takes, about.
    pub(super) fn memory(&self) -> usize {
        let attribute = |(name, value): &(OsString, Vec<u8>)| {
            size_of::<(OsString, Vec<u8>)>() + name.len() + value.len()
        };
        let attributes: usize = self.meta.xattrs.iter().map(attribute).sum();
        size_of::<Self>() + self.path.as_os_str().len() + attributes
    }
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// A regular file of this many bytes.
    File(u64),
    Directory,
    /// A symbolic link and its text.
    Symlink(PathBuf),
    /// A further name of an entry that came before.
    Link(PathBuf),
    Fifo,
    Char(u64, u64),
    Block(u64, u64),
}

/// Owner, permissions, time and extended attributes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Meta {
    /// Permission bits with setuid, setgid and sticky.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Stamp,
    /// Names and values, sorted by name.
    pub(super) xattrs: Vec<(OsString, Vec<u8>)>,
}

/// A point in time: seconds since the epoch, rounded down, and nanoseconds after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Stamp {
    pub(super) sec: i64,
    pub(super) nsec: u32,
}

impl Stamp {
    /// As pax writes times: decimal seconds, `-0.5` for half a second before the epoch.
    pub(super) fn to_pax(self) -> String {
        let (sign, sec, nsec) = match self {
            Self { sec, nsec: 0 } if sec < 0 => ("-", sec.unsigned_abs(), 0),
            Self { sec, nsec } if sec < 0 => ("-", (sec + 1).unsigned_abs(), 1_000_000_000 - nsec),
            Self { sec, nsec } => ("", sec.unsigned_abs(), nsec),
        };
        let text = format!("{sign}{sec}.{nsec:09}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }

    /// Reads that form. Digits beyond nanoseconds are cut off.
    pub(super) fn from_pax(text: &str) -> Option<Self> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
        let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !all_digits(whole) || !all_digits(part) {
            return None;
        }
        let sec: i64 = whole.parse().ok()?;
        let nsec = part.bytes().chain(std::iter::repeat(b'0')).take(9);
        let nsec = nsec.fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'));
        Some(match (negative, nsec) {
            (false, nsec) => Self { sec, nsec },
            (true, 0) => Self { sec: -sec, nsec: 0 },
            (true, nsec) => Self {
                sec: -sec - 1,
                nsec: 1_000_000_000 - nsec,
            },
        })
    }
}

/// A name from outside as a path below a root, or why it is none. An empty path is the root.
pub(super) fn inside(name: &[u8]) -> Result<PathBuf, &'static str> {
    if name.is_empty() {
        return Err("is empty");
    }
    if name.contains(&0) {
        return Err("holds a NUL byte");
    }
    let mut path = PathBuf::new();
    for part in Path::new(std::ffi::OsStr::from_bytes(name)).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir => return Err("holds a \"..\" component"),
            Component::RootDir | Component::Prefix(_) => return Err("is absolute"),
        }
    }
    if path.as_os_str().len() > PATH_LIMIT {
        return Err("is longer than 4095 bytes");
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_before_the_epoch() {
        for (sec, nsec, text) in [
            (0, 0, "0"),
            (5, 0, "5"),
            (1, 500_000_000, "1.5"),
            (0, 1, "0.000000001"),
            (-1, 500_000_000, "-0.5"),
            (-2, 250_000_000, "-1.75"),
            (-3, 0, "-3"),
            (100, 0, "100"),
        ] {
            assert_eq!(Stamp { sec, nsec }.to_pax(), text);
            assert_eq!(Stamp::from_pax(text), Some(Stamp { sec, nsec }));
        }
        for bad in ["", "-", ".5", "1.x", "1e3", "--1", "99999999999999999999"] {
            assert_eq!(Stamp::from_pax(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        assert_eq!(inside(b"./a//b/./c/").unwrap(), Path::new("a/b/c"));
        assert_eq!(inside(b"./").unwrap(), Path::new(""));
        for bad in [
            &b""[..],
            b"/",
            b"/etc/passwd",
            b"..",
            b"a/../../b",
            b"a\0b",
            &[b'a'; 5000],
        ] {
            assert!(inside(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn times_survive(sec in -1_000_000_000_000i64..1_000_000_000_000, nsec in 0u32..1_000_000_000) {
            let stamp = Stamp { sec, nsec };
            prop_assert_eq!(Stamp::from_pax(&stamp.to_pax()), Some(stamp));
        }
    }
}
