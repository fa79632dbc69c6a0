//! What Kybernate knows about CRIU: its version, its image formats, its logs, its
//! configuration file. runc is the one that runs it for a dump or a restore.

pub mod config;
pub mod log;
pub mod pagemap;

use std::{fmt, process::Command};

use crate::runc::Runc;

/// A release of CRIU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Major number.
    pub major: u32,
    /// Minor number. Patch releases change neither formats nor options.
    pub minor: u32,
}

impl Version {
    /// Parses `4.2.1` or `4.2`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        Some(Self {
            major: parts.next()?.parse().ok()?,
            minor: parts.next()?.parse().ok()?,
        })
    }

    /// The version text of the CRIU that runc will run: both look in the shim's PATH.
    pub async fn text(runc: &Runc) -> Option<String> {
        let mut command = Command::new("criu");
        command.arg("--version");
        let printed = runc.run(command).await.ok()?;
        let printed = String::from_utf8_lossy(&printed).into_owned();
        let line = printed
            .lines()
            .find_map(|line| line.strip_prefix("Version:"))?;
        Some(line.trim().to_owned())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_release() {
        let version = |text| Version::parse(text).unwrap();
        assert!(version("4.10") > version("4.9.3"));
        assert_eq!(version("4.2.1"), version("4.2"));
        assert_eq!(Version::parse("GitID"), None);
    }
}
