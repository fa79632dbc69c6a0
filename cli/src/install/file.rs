//! A file's content and owner, read and written whole.

use std::{
    fs::{self, File, FileTimes},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use kybernate_config::profile::Root;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What is remembered of a file besides its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Lower-case hex sha256 of the content.
    pub sha256: String,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change, in nanoseconds since 1970; none where it does not matter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime: Option<u64>,
}

/// A file as it is, or as it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The rest.
    pub facts: Facts,
}

impl Facts {
    /// Whether both are the same but for the time of the change.
    pub fn same(&self, other: &Self) -> bool {
        Self {
            mtime: None,
            ..self.clone()
        } == Self {
            mtime: None,
            ..other.clone()
        }
    }
}

impl Content {
    /// A new file of root's.
    pub fn new(bytes: Vec<u8>, mode: u32) -> Self {
        let owner = nix::unistd::geteuid().as_raw();
        let group = nix::unistd::getegid().as_raw();
        let facts = Facts {
            sha256: digest(&bytes),
            mode,
            uid: owner,
            gid: group,
            mtime: None,
        };
        Self { bytes, facts }
    }

    /// The same file with other bytes.
    pub fn with_bytes(&self, bytes: Vec<u8>) -> Self {
        let facts = Facts {
            sha256: digest(&bytes),
            mtime: None,
            ..self.facts.clone()
        };
        Self { bytes, facts }
    }

    /// Reads a file, if it is there.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        let facts = match fs::metadata(path) {
            Ok(facts) => facts,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        if !facts.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let bytes = fs::read(path)?;
        let mtime = facts.modified().ok().and_then(|time| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
            u64::try_from(since.as_nanos()).ok()
        });
        let facts = Facts {
            sha256: digest(&bytes),
            mode: facts.mode() & 0o7777,
            uid: facts.uid(),
            gid: facts.gid(),
            mtime,
        };
        Ok(Some(Self { bytes, facts }))
    }

    /// Writes it to `path` and makes sure that it is on disk. Labels are those of `like`.
    pub fn write(&self, path: &Path, like: Option<&Path>) -> io::Result<()> {
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(&self.bytes)?;
        chown(path, Some(self.facts.uid), Some(self.facts.gid))?;
        file.set_permissions(fs::Permissions::from_mode(self.facts.mode))?;
        if let Some(like) = like.filter(|like| like.exists()) {
            copy_labels(like, path);
        }
        if let Some(mtime) = self.facts.mtime {
            let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(mtime);
            file.set_times(FileTimes::new().set_modified(time))?;
        }
        file.sync_all()
    }
}

/// Copies extended attributes. A file system or a user that can't have them does without.
fn copy_labels(from: &Path, to: &Path) {
    for name in xattr::list(from).into_iter().flatten() {
        if let Ok(Some(value)) = xattr::get(from, &name) {
            let _ = xattr::set(to, &name, &value);
        }
    }
}

/// Lower-case hex sha256.
pub fn digest(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// Writes a small file of our own so that it is there whole or not at all.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    let partial = Path::new(&name);
    Content::new(bytes.to_vec(), 0o600).write(partial, None)?;
    fs::rename(partial, path)?;
    sync_parent(path)
}

/// Makes sure that names in a file's directory are on disk.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Removes a file that may not be there.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Those of `paths` and of the directories above them that are not there, the outermost first.
pub fn missing_directories<'a>(
    root: &Root,
    paths: impl IntoIterator<Item = &'a Path>,
) -> Vec<PathBuf> {
    let mut missing = Vec::new();
    for path in paths {
        let above: Vec<&Path> = path.ancestors().collect();
        for directory in above.into_iter().rev() {
            let directory = directory.to_owned();
            if !root.exists(&directory) && !missing.contains(&directory) {
                missing.push(directory);
            }
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_comes_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, "x").unwrap();
        fs::set_permissions(&a, fs::Permissions::from_mode(0o640)).unwrap();
        let content = Content::read(&a).unwrap().unwrap();
        content.write(&b, Some(&a)).unwrap();
        assert_eq!(Content::read(&b).unwrap().unwrap(), content);
        assert_eq!(content.facts.mode, 0o640);
        assert!(!content.with_bytes(b"y".to_vec()).facts.same(&content.facts));
        assert_eq!(Content::read(&dir.path().join("none")).unwrap(), None);
        assert!(Content::read(dir.path()).is_err());
    }
}
