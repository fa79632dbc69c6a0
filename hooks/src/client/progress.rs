//! Follows `progress.jsonl`, to which the shim adds a line now and then.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use kybernate_config::request::Progress;

/// A line is a hundred bytes; a log without line ends is none.
const LINE_MAX: usize = 64 * 1024;

/// A file that grows.
#[derive(Debug)]
pub(crate) struct Tail {
    path: PathBuf,
    file: Option<File>,
    rest: Vec<u8>,
}

impl Tail {
    /// Will follow `path`, which may not exist yet.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            rest: Vec::new(),
        }
    }

    /// What has been added since the last call. Lines that do not parse are left out: progress
    /// is for looking at.
    pub(crate) fn read(&mut self) -> Vec<Progress> {
        if self.file.is_none() {
            self.file = open(&self.path).ok();
        }
        if let Some(file) = &mut self.file {
            let room = LINE_MAX.saturating_sub(self.rest.len()) as u64;
            // What was read before an error stays for the next call.
            let _ = file.take(room).read_to_end(&mut self.rest);
        }
        let Some(end) = self.rest.iter().rposition(|b| *b == b'\n') else {
            return Vec::new();
        };
        let lines: Vec<u8> = self.rest.drain(..=end).collect();
        lines
            .split(|b| *b == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect()
    }
}

fn open(path: &Path) -> io::Result<File> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_come_once_and_only_when_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        let mut tail = Tail::new(path.clone());
        assert!(tail.read().is_empty());
        let line = r#"{"phase":"dump","read_bytes":5,"written_bytes":2,"elapsed_ms":7}"#;
        let mut file = File::create(&path).unwrap();
        write!(file, "{line}\nnonsense\n{line}\n{}", &line[..20]).unwrap();
        let seen = tail.read();
        assert_eq!(seen.len(), 2);
        assert_eq!((seen[0].phase.as_str(), seen[0].read_bytes), ("dump", 5));
        assert!(tail.read().is_empty());
        writeln!(file, "{}", &line[20..]).unwrap();
        assert_eq!(tail.read().len(), 1);
    }
}
