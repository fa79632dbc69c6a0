//! The directory in which an archive grows, beside the file it will be.
//!
//! ```text
//! /backups/.kybernate-x7Qz3a/       0700, the staging directory of kybernate_config::request
//!          .kybernate-x7Qz3a/archive.tar.zst ──fsync, rename──> /backups/web.tar.zst
//! ```
//!
//! It is on the output's file system, so that the last step is a rename, and it goes away with
//! its value, whatever happens in between. What a killed client left is removed by the next.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use kybernate_config::request::{
    ARCHIVE_FILE, CheckpointRequest, CheckpointResult, PROGRESS_FILE, REQUEST_FILE, RESULT_FILE,
};
use tempfile::TempDir;

use super::error::CheckpointError;

const PREFIX: &str = ".kybernate-";
/// A directory whose client is gone is left to its shim for this long.
const SETTLED: Duration = Duration::from_secs(600);
/// A result is a few lines.
const RESULT_MAX: u64 = 64 * 1024;

/// A staging directory and the file that its archive becomes.
#[derive(Debug)]
pub(crate) struct Staging {
    // The lock goes before the directory: the shim then sees a client that has gone.
    lock: Option<File>,
    dir: TempDir,
    parent: PathBuf,
    output: PathBuf,
    replace: bool,
}

impl Staging {
    /// Sees that `output` can be written and makes a directory beside it.
    pub(crate) fn create(output: &Path, replace: bool) -> Result<Self, CheckpointError> {
        let (parent, name) = split(output)?;
        let output = parent.join(name);
        match fs::symlink_metadata(&output) {
            Ok(facts) if facts.is_dir() => {
                return Err(CheckpointError::Output {
                    path: output,
                    reason: "it is a directory",
                });
            }
            Ok(_) if !replace => return Err(CheckpointError::Exists { path: output }),
            _ => {}
        }
        sweep(&parent);
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .rand_bytes(10)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&parent)
            .map_err(CheckpointError::io(
                "create a staging directory in",
                &parent,
            ))?;
        Ok(Self {
            lock: None,
            dir,
            parent,
            output,
            replace,
        })
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The directory that will hold the output.
    pub(crate) fn parent(&self) -> &Path {
        &self.parent
    }

    /// The output's absolute path.
    pub(crate) fn output(&self) -> &Path {
        &self.output
    }

    /// The shim's progress log.
    pub(crate) fn progress(&self) -> PathBuf {
        self.path().join(PROGRESS_FILE)
    }

    /// Makes an empty directory for logs.
    pub(crate) fn subdir(&self, name: &str) -> Result<PathBuf, CheckpointError> {
        let path = self.path().join(name);
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(CheckpointError::io("create", &path))?;
        Ok(path)
    }

    /// Adds a file.
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> Result<(), CheckpointError> {
        let path = self.path().join(name);
        new_file(&path)
            .and_then(|mut file| file.write_all(content))
            .map_err(CheckpointError::io("write", &path))
    }

    /// Writes the request and locks it. From here on the shim may work on it.
    pub(crate) fn submit(&mut self, request: &CheckpointRequest) -> Result<(), CheckpointError> {
        let path = self.path().join(REQUEST_FILE);
        let submit = || {
            let mut file = new_file(&path)?;
            file.lock()?;
            file.write_all(&serde_json::to_vec(request)?)?;
            Ok(file)
        };
        self.lock = Some(submit().map_err(CheckpointError::io("write", &path))?);
        Ok(())
    }

    /// Tells the shim that nobody waits for the archive any more.
    pub(crate) fn withdraw(&mut self) {
        self.lock = None;
    }

    /// Reads the shim's answer, gives the archive its name, and makes both durable.
    pub(crate) fn publish(self, id: &str) -> Result<CheckpointResult, CheckpointError> {
        let wrong = |reason: String| CheckpointError::Answer {
            id: id.to_owned(),
            reason,
        };
        let result = read_result(&self.path().join(RESULT_FILE)).map_err(wrong)?;
        let archive = self.path().join(ARCHIVE_FILE);
        let facts =
            fs::symlink_metadata(&archive).map_err(|e| wrong(format!("{ARCHIVE_FILE}: {e}")))?;
        if !facts.is_file() || facts.len() != result.archive_bytes {
            return Err(wrong(format!(
                "{ARCHIVE_FILE} has {} bytes, {RESULT_FILE} says {}",
                facts.len(),
                result.archive_bytes
            )));
        }
        fs::set_permissions(&archive, Permissions::from_mode(0o600))
            .and_then(|()| File::open(&archive)?.sync_all())
            .map_err(CheckpointError::io("sync", &archive))?;
        self.rename(&archive)?;
        File::open(&self.parent)
            .and_then(|dir| dir.sync_all())
            .map_err(CheckpointError::io("sync", &self.parent))?;
        Ok(result)
    }

    fn rename(&self, archive: &Path) -> Result<(), CheckpointError> {
        let failed = || CheckpointError::io("write", &self.output);
        if self.replace {
            return fs::rename(archive, &self.output).map_err(failed());
        }
        // A link does not replace; not every file system has links.
        match fs::hard_link(archive, &self.output) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(CheckpointError::Exists {
                path: self.output.clone(),
            }),
            Err(_) if !self.output.exists() => fs::rename(archive, &self.output).map_err(failed()),
            Err(e) => Err(failed()(e)),
        }
    }
}

/// The absolute directory and the name of a file.
fn split(output: &Path) -> Result<(PathBuf, OsString), CheckpointError> {
    let bad = |reason| CheckpointError::Output {
        path: output.to_owned(),
        reason,
    };
    let name = output
        .file_name()
        .ok_or_else(|| bad("it has no file name"))?;
    let parent = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let parent = parent.canonicalize().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => bad("its directory does not exist"),
        _ => CheckpointError::io("use the directory", parent)(e),
    })?;
    if !parent.is_dir() {
        return Err(bad("what should be its directory is a file"));
    }
    Ok((parent, name.to_owned()))
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

fn read_result(path: &Path) -> Result<CheckpointResult, String> {
    let read = || {
        let facts = fs::symlink_metadata(path)?;
        if !facts.is_file() || facts.len() > RESULT_MAX {
            return Err(io::Error::other("not a small regular file"));
        }
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    };
    read().map_err(|e: io::Error| format!("{RESULT_FILE}: {e}"))
}

/// Removes staging directories in `parent` that no client has used for a while. What can't be
/// removed stays: it hinders nobody.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    let ours = nix::unistd::geteuid().as_raw();
    for entry in entries.flatten() {
        let path = entry.path();
        let stale = entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(PREFIX.as_bytes())
            && entry
                .metadata()
                .is_ok_and(|facts| facts.is_dir() && facts.uid() == ours)
            && abandoned(&path.join(REQUEST_FILE));
        if stale && fs::remove_dir_all(&path).is_ok() {
            tracing::info!(path = %path.display(), "removed what an earlier client left");
        }
    }
}

fn abandoned(request: &Path) -> bool {
    let Ok(file) = File::open(request) else {
        return false;
    };
    let age = file
        .metadata()
        .and_then(|facts| facts.modified())
        .map(|then| SystemTime::now().duration_since(then).unwrap_or_default());
    age.is_ok_and(|age| age > SETTLED) && !matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> CheckpointRequest {
        CheckpointRequest {
            version: kybernate_config::request::REQUEST_VERSION,
            level: None,
            buffer: None,
            deadline: None,
            include: Vec::new(),
            requester: None,
        }
    }

    fn answer(staging: &Staging, content: &[u8], bytes: u64) {
        staging.write(ARCHIVE_FILE, content).unwrap();
        let result = CheckpointResult {
            archive_bytes: bytes,
            content_bytes: 9,
            manifest_sha256: "ab".into(),
            pause_ms: 1,
            total_ms: 2,
        };
        staging
            .write(RESULT_FILE, &serde_json::to_vec(&result).unwrap())
            .unwrap();
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_published_archive_is_alone_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let mut staging = Staging::create(&dir.path().join("a.zst"), false).unwrap();
        assert_eq!(fs::metadata(staging.path()).unwrap().mode() & 0o777, 0o700);
        staging.submit(&request()).unwrap();
        answer(&staging, b"content", 7);
        assert_eq!(staging.publish("c").unwrap().archive_bytes, 7);
        assert_eq!(names(dir.path()), ["a.zst"]);
        assert_eq!(fs::read(dir.path().join("a.zst")).unwrap(), b"content");
        assert_eq!(
            fs::metadata(dir.path().join("a.zst")).unwrap().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn an_output_that_appears_meanwhile_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("a.zst");
        let staging = Staging::create(&output, false).unwrap();
        answer(&staging, b"new", 3);
        fs::write(&output, "old").unwrap();
        assert!(matches!(
            staging.publish("c"),
            Err(CheckpointError::Exists { .. })
        ));
        assert_eq!(names(dir.path()), ["a.zst"]);
        assert_eq!(fs::read(&output).unwrap(), b"old");
        assert!(matches!(
            Staging::create(&output, false),
            Err(CheckpointError::Exists { .. })
        ));
        let staging = Staging::create(&output, true).unwrap();
        answer(&staging, b"new", 3);
        staging.publish("c").unwrap();
        assert_eq!(fs::read(&output).unwrap(), b"new");
    }

    #[test]
    fn an_answer_that_does_not_fit_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("a.zst");
        let staging = Staging::create(&output, false).unwrap();
        answer(&staging, b"short", 99);
        let err = staging.publish("c").unwrap_err().to_string();
        assert!(err.contains("5 bytes") && err.contains("99"), "{err}");
        let staging = Staging::create(&output, false).unwrap();
        let err = staging.publish("c").unwrap_err().to_string();
        assert!(err.contains(RESULT_FILE), "{err}");
        assert_eq!(names(dir.path()), Vec::<String>::new());
    }

    #[test]
    fn the_request_is_locked_until_withdrawn() {
        let dir = tempfile::tempdir().unwrap();
        let mut staging = Staging::create(&dir.path().join("a"), false).unwrap();
        staging.submit(&request()).unwrap();
        let shim = File::open(staging.path().join(REQUEST_FILE)).unwrap();
        assert!(matches!(shim.try_lock(), Err(TryLockError::WouldBlock)));
        staging.withdraw();
        shim.try_lock().unwrap();
    }

    #[test]
    fn impossible_outputs_are_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        for path in [
            dir.path().to_owned(),
            dir.path().join("no/such"),
            PathBuf::from("/"),
        ] {
            let err = Staging::create(&path, true).unwrap_err();
            assert!(matches!(err, CheckpointError::Output { .. }), "{err}");
        }
        assert_eq!(names(dir.path()), Vec::<String>::new());
    }

    #[test]
    fn only_abandoned_directories_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let leave = |name: &str, age: Duration| {
            let staging = dir.path().join(name);
            fs::create_dir(&staging).unwrap();
            let file = File::create(staging.join(REQUEST_FILE)).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
            file
        };
        leave(".kybernate-old", SETTLED * 2);
        leave(".kybernate-young", SETTLED / 2);
        leave("other", SETTLED * 2);
        let used = leave(".kybernate-used", SETTLED * 2);
        used.lock().unwrap();
        fs::create_dir(dir.path().join(".kybernate-empty")).unwrap();
        sweep(dir.path());
        assert_eq!(
            names(dir.path()),
            [
                ".kybernate-empty",
                ".kybernate-used",
                ".kybernate-young",
                "other"
            ]
        );
    }
}
