//! Directories that live for as long as one checkpoint or restore.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// A private directory, removed with everything in it when dropped.
#[derive(Debug)]
pub struct WorkDir(PathBuf);

impl WorkDir {
    /// Where [`WorkDir::create`] makes one.
    #[must_use]
    pub fn place(parent: &Path, namespace: &str, id: &str) -> PathBuf {
        parent.join(format!("{namespace}-{id}"))
    }

    /// Makes `<parent>/<namespace>-<id>`, mode 0700, empty. What an earlier attempt left there
    /// goes away: a container has one operation at a time.
    pub fn create(parent: &Path, namespace: &str, id: &str) -> io::Result<Self> {
        let path = Self::place(parent, namespace, id);
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700).recursive(true).create(parent)?;
        builder.recursive(false).create(&path)?;
        Ok(Self(path))
    }

    /// Makes a directory in it.
    pub fn subdir(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.0.join(name);
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove a work directory");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_go_and_nothing_stays() {
        let parent = tempfile::tempdir().unwrap();
        let left = parent.path().join("ns-a/old");
        fs::create_dir_all(&left).unwrap();
        let dir = WorkDir::create(parent.path(), "ns", "a").unwrap();
        assert!(!left.exists());
        assert!(dir.subdir("images").unwrap().is_dir());
        drop(dir);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
