//! The directory in which an archive grows, beside the file it will be.
//!
//! ```text
//! /backups/.kybernate-x7Qz3a/       0700, the staging directory of kybernate_config::request
//!          .kybernate-x7Qz3a/archive.tar.zst ──fsync, rename──> /backups/web.tar.zst
//! ```
//!
//! It is on the output's file system, so that the last step is a rename, and it goes away with
//! its value, whatever happens in between. What a killed client left is removed by the shim, or, if
//! that was killed, too, by the next client, unless it holds a complete archive: the container may
//! have ended with it.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use kybernate_config::request::{
    ARCHIVE_FILE, CheckpointRequest, CheckpointResult, PROGRESS_FILE, REQUEST_FILE, RESULT_FILE,
    STAGING_PREFIX,
};
use tempfile::TempDir;

use super::{error::CheckpointError, leftovers::sweep};

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
    /// Whether the container ends with its checkpoint: then a complete archive is never removed.
    ends: bool,
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.ends && self.close() {
            self.dir.disable_cleanup(true);
        }
    }
}

impl Staging {
    /// Sees that `output` can be written and makes a directory beside it.
    pub(crate) fn create(
        output: &Path,
        replace: bool,
        ends: bool,
    ) -> Result<Self, CheckpointError> {
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
            .prefix(STAGING_PREFIX)
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
            ends,
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

    /// Whether the shim has written all there is to write. What it has not by now it can't any more,
    /// since the directory is gone: between a look and a removal it would end the container, and
    /// its archive would be removed.
    fn close(&self) -> bool {
        let (path, away) = (self.path(), self.path().with_extension("over"));
        if fs::rename(path, &away).is_err() {
            return path.join(RESULT_FILE).exists();
        }
        if away.join(RESULT_FILE).exists() {
            if let Err(error) = fs::rename(&away, path) {
                tracing::error!(path = %away.display(), %error, "the archive is kept there");
            }
            return true;
        }
        if let Err(error) = fs::remove_dir_all(&away) {
            tracing::warn!(path = %away.display(), %error, "a staging directory stays");
        }
        false
    }

    /// Gives up. Of a container that may have ended, what its shim wrote is kept, for `because`
    /// says nothing about it.
    pub(crate) fn fail(mut self, id: &str, because: CheckpointError) -> CheckpointError {
        let doubtful = matches!(
            because,
            CheckpointError::Unconfirmed { .. } | CheckpointError::Answer { .. }
        );
        if !self.ends || !(doubtful || self.close()) {
            return because;
        }
        self.ends = false;
        self.dir.disable_cleanup(true);
        let path = self.path().to_owned();
        CheckpointError::Kept {
            id: id.to_owned(),
            path,
            source: Box::new(because),
        }
    }

    /// Reads the shim's answer, gives the archive its name, and makes both durable.
    pub(crate) fn publish(mut self, id: &str) -> Result<CheckpointResult, CheckpointError> {
        match self.try_publish(id) {
            Ok(result) => {
                self.ends = false;
                Ok(result)
            }
            Err(error) => Err(self.fail(id, error)),
        }
    }

    fn try_publish(&self, id: &str) -> Result<CheckpointResult, CheckpointError> {
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

#[cfg(test)]
mod tests;
