//! Processes by pid and start time: a pid that is free again may be anybody's.

use std::{fs, io, str::FromStr};

use serde::{Deserialize, Serialize};

/// A process that can't be taken for another. As text, `PID:START`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// When it started, in clock ticks since boot (`/proc/<pid>/stat`, field 22).
    pub start: u64,
}

impl Process {
    /// The process that has this pid now.
    #[must_use]
    pub fn now(pid: u32) -> Option<Self> {
        Self::read(pid).ok()
    }

    /// The process that runs this.
    ///
    /// # Errors
    /// `/proc` can't be read; says where.
    pub fn own() -> Result<Self, String> {
        let pid = std::process::id();
        Self::read(pid).map_err(|error| format!("cannot read /proc/{pid}/stat: {error}"))
    }

    fn read(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start = start(&stat).ok_or_else(|| io::Error::other("its 22nd field is no number"))?;
        Ok(Self { pid, start })
    }

    /// Whether it still lives.
    #[must_use]
    pub fn lives(self) -> bool {
        Self::now(self.pid) == Some(self)
    }
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.pid, self.start)
    }
}

impl FromStr for Process {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text
            .split_once(':')
            .and_then(|(pid, start)| Some((pid.parse().ok()?, start.parse().ok()?)));
        let (pid, start) = parsed.ok_or_else(|| format!("{text:?} is not PID:START"))?;
        Ok(Self { pid, start })
    }
}

/// Whether a process has this pid.
#[must_use]
pub fn is_there(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap_or(false)
}

/// The process that traces this one, if any.
#[must_use]
pub fn tracer(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("TracerPid:"))?;
    line.trim().parse().ok().filter(|tracer| *tracer != 0)
}

/// Field 22 of `/proc/<pid>/stat`. The name, field 2, may hold anything.
fn start(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_itself_and_nobody_else() {
        let own = Process::now(std::process::id()).unwrap();
        assert!(own.lives() && tracer(own.pid).is_none());
        let other = Process {
            start: own.start + 1,
            ..own
        };
        assert!(!other.lives());
        assert_eq!(own.to_string().parse(), Ok(own));
        assert!("7".parse::<Process>().is_err());
    }

    #[test]
    fn names_with_parentheses_do_not_shift_the_fields() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4242 8 9";
        assert_eq!(start(stat), Some(4242));
    }
}
