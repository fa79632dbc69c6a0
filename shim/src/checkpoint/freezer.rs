//! The container's freezer cgroup, and how it is thawed.
//!
//! `runc pause` freezes, since it knows every kernel's quirks. Thawing is one write that
//! must work whatever state runc is in, so it is done here.
//!
//! v1: `THAWED` into `freezer.state`. v2: `0` into `cgroup.freeze`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;

/// A container's freezer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Freezer {
    /// Directory in the freezer hierarchy.
    V1(PathBuf),
    /// Directory in the unified hierarchy.
    V2(PathBuf),
}

impl Freezer {
    /// The freezer of a container's cgroup; a v1 cgroup without that controller has none.
    #[must_use]
    pub fn of(cgroup: &Cgroup) -> Option<Self> {
        match cgroup {
            Cgroup::V1(paths) => paths.get("freezer").cloned().map(Self::V1),
            Cgroup::V2(path) => Some(Self::V2(path.clone())),
        }
    }

    /// The cgroup.
    #[must_use]
    pub fn directory(&self) -> &Path {
        match self {
            Self::V1(dir) | Self::V2(dir) => dir,
        }
    }

    /// Whether processes of it are frozen, or some are already.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        let read = |name| fs::read_to_string(self.directory().join(name)).unwrap_or_default();
        match self {
            Self::V1(_) => !matches!(read("freezer.state").trim(), "THAWED" | ""),
            Self::V2(_) => read("cgroup.events").lines().any(|line| line == "frozen 1"),
        }
    }

    /// Stops every process of the cgroup.
    pub fn freeze(&self) -> io::Result<()> {
        match self {
            Self::V1(dir) => fs::write(dir.join("freezer.state"), "FROZEN"),
            Self::V2(dir) => fs::write(dir.join("cgroup.freeze"), "1"),
        }
    }

    /// The file that thaws, and what is written into it.
    #[must_use]
    pub fn thaw_file(&self) -> (PathBuf, &'static str) {
        match self {
            Self::V1(dir) => (dir.join("freezer.state"), "THAWED"),
            Self::V2(dir) => (dir.join("cgroup.freeze"), "0"),
        }
    }

    /// Lets every process of the cgroup run.
    pub fn thaw(&self) -> io::Result<()> {
        let (file, value) = self.thaw_file();
        fs::write(file, value)
    }
}

/// Thaws when dropped, unless told that the container is to stay as it is.
#[derive(Debug)]
pub struct Thaw {
    freezer: Option<Freezer>,
}

impl Thaw {
    /// Thaws `freezer` at the end; `None` leaves a container frozen that was found so.
    #[must_use]
    pub fn at_end(freezer: Option<Freezer>) -> Self {
        Self { freezer }
    }

    /// Thaws now and says whether it worked.
    pub fn now(mut self) -> io::Result<()> {
        self.freezer.take().map_or(Ok(()), |freezer| freezer.thaw())
    }
}

impl Drop for Thaw {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.freezer.take().map(|freezer| freezer.thaw()) {
            tracing::error!(%error, "cannot thaw the container; write THAWED (cgroup v1) to its freezer.state or 0 (v2) to its cgroup.freeze");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_freezer_is_the_cgroups() {
        let v1 = Cgroup::V1([("freezer".to_owned(), "/f".into())].into());
        assert_eq!(Freezer::of(&v1), Some(Freezer::V1("/f".into())));
        assert_eq!(Freezer::of(&Cgroup::V1([].into())), None);
        assert_eq!(
            Freezer::of(&Cgroup::V2("/u".into())),
            Some(Freezer::V2("/u".into()))
        );
    }

    #[test]
    fn dropping_thaws_and_keeping_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("freezer.state");
        let freezer = Freezer::V1(dir.path().into());
        fs::write(&file, "FROZEN").unwrap();
        drop(Thaw::at_end(None));
        assert_eq!(fs::read_to_string(&file).unwrap(), "FROZEN");
        drop(Thaw::at_end(Some(freezer.clone())));
        assert_eq!(fs::read_to_string(&file).unwrap(), "THAWED");
    }
}
