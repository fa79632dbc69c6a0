//! Everything that a container could see of a tree, for comparison.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub kind: String,
    pub mode: u32,
    pub owner: (u32, u32),
    /// Of files.
    pub size: u64,
    pub mtime: (i64, i64),
    pub xattrs: Vec<(OsString, Vec<u8>)>,
    /// Link text, device number or digest of the content.
    pub content: String,
    /// The first of the names of the same inode.
    pub inode: PathBuf,
}

/// All entries by path; sockets are left out.
pub type Snapshot = BTreeMap<PathBuf, Seen>;

/// Takes a snapshot of everything below `root`, and of `root` itself.
pub fn snapshot(root: &Path) -> Snapshot {
    let mut seen = Snapshot::new();
    let mut inodes = HashMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let full = root.join(&path);
        let meta = fs::symlink_metadata(&full).unwrap();
        let kind = meta.file_type();
        if kind.is_socket() {
            continue;
        }
        let mut content = String::new();
        if kind.is_dir() {
            let mut names: Vec<_> = fs::read_dir(&full)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            pending.extend(names.into_iter().rev().map(|name| path.join(name)));
        } else if kind.is_symlink() {
            write!(content, "{:?}", fs::read_link(&full).unwrap()).unwrap();
        } else if kind.is_file() {
            let mut digest = Digests(Sha256::new());
            io::copy(&mut File::open(&full).unwrap(), &mut digest).unwrap();
            write!(content, "{:x?}", digest.0.finalize()).unwrap();
        } else {
            write!(content, "{:x}", meta.rdev()).unwrap();
        }
        let inode = match kind.is_dir() {
            true => path.clone(),
            false => inodes
                .entry((meta.dev(), meta.ino()))
                .or_insert(path.clone())
                .clone(),
        };
        let mut xattrs: Vec<_> = xattr::list(&full)
            .unwrap()
            .filter(|name| !name.to_string_lossy().starts_with("security.selinux"))
            .map(|name| (name.clone(), xattr::get(&full, &name).unwrap().unwrap()))
            .collect();
        xattrs.sort();
        let entry = Seen {
            kind: format!("{kind:?}"),
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            size: if kind.is_file() { meta.len() } else { 0 },
            mtime: (meta.mtime(), meta.mtime_nsec()),
            xattrs,
            content,
            inode,
        };
        seen.insert(path, entry);
    }
    seen
}

struct Digests(Sha256);

impl io::Write for Digests {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.update(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What differs, one line each; empty when nothing does.
pub fn differences(expected: &Snapshot, found: &Snapshot) -> String {
    let mut text = String::new();
    for (path, seen) in expected {
        match found.get(path) {
            None => writeln!(text, "missing {path:?}: {seen:?}").unwrap(),
            Some(other) if other != seen => {
                writeln!(text, "{path:?}:\n  expected {seen:?}\n  found    {other:?}").unwrap();
            }
            Some(_) => {}
        }
    }
    for path in found.keys().filter(|path| !expected.contains_key(*path)) {
        writeln!(text, "too much: {path:?}").unwrap();
    }
    text
}

/// Fails with what differs.
#[track_caller]
pub fn assert_same(expected: &Snapshot, found: &Snapshot) {
    let text = differences(expected, found);
    assert!(text.is_empty(), "the trees differ:\n{text}");
}
