//! CRIU's log (`dump.log`, `restore.log`): the lines that say why it failed.
//!
//! A line is `(seconds.micros) [pid: ]Error (file.c:123): text`. At the log level that runc
//! sets a dump writes thousands of lines; only errors and the warnings just before them help.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

/// Enough for the errors at the end of any log.
const TAIL: u64 = 256 * 1024;
/// Lines in an error message.
const MAX_LINES: usize = 8;
/// Errors that CRIU survives and writes in every run on some machines: no right to raise its
/// own limit of open files.
const HARMLESS: &str = "Can't setup RLIMIT_NOFILE for self";

/// The lines of a log that say why CRIU failed, oldest first, without time stamps.
#[must_use]
pub fn causes(log: &str) -> Vec<String> {
    let mut lines: Vec<String> = log
        .lines()
        .filter(|line| line.contains("Error (") && !line.contains(HARMLESS))
        .map(|line| strip_time(line).trim().to_owned())
        .collect();
    if lines.is_empty() {
        lines = log
            .lines()
            .filter(|line| line.contains("Warn  (") || line.contains("Warn ("))
            .map(|line| strip_time(line).trim().to_owned())
            .collect();
    }
    // The first error is the cause, the ones after it are its consequences.
    lines.dedup();
    lines.truncate(MAX_LINES);
    lines
}

/// Reads the end of a log and returns its [`causes`] as one line, or what kept it from being
/// read.
#[must_use]
pub fn explain(path: &Path) -> String {
    match tail(path) {
        Ok(text) => match causes(&text) {
            lines if lines.is_empty() => {
                format!("CRIU's log {} names no error", path.display())
            }
            lines => lines.join("; "),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            format!("CRIU wrote no log ({}): it did not start", path.display())
        }
        Err(e) => format!("CRIU's log {} is unreadable: {e}", path.display()),
    }
}

fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn strip_time(line: &str) -> &str {
    match line.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
        Some((time, rest)) if time.bytes().all(|b| b.is_ascii_digit() || b == b'.') => rest,
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_come_without_stamps_and_noise() {
        let log = "\
(00.000012) Version: 4.2.1 (gitid 0)
(00.001006) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.012001) Warn  (criu/kerndat.c:1103): something harmless
(00.020100) Error (criu/sk-inet.c:189): inet: Connected TCP socket, consider using --tcp-established option.
(00.020119) Error (criu/cr-dump.c:1674): Dump files (pid: 42) failed with -1
(00.030000) Error (criu/cr-dump.c:2128): Dumping FAILED.
";
        assert_eq!(
            causes(log),
            [
                "Error (criu/sk-inet.c:189): inet: Connected TCP socket, consider using --tcp-established option.",
                "Error (criu/cr-dump.c:1674): Dump files (pid: 42) failed with -1",
                "Error (criu/cr-dump.c:2128): Dumping FAILED.",
            ]
        );
    }

    #[test]
    fn warnings_serve_where_no_error_is() {
        assert_eq!(
            causes("(00.1) Warn  (a.c:1): odd\n"),
            ["Warn  (a.c:1): odd"]
        );
        assert!(causes("(00.1) fine\n").is_empty());
    }

    #[test]
    fn a_missing_log_is_said_to_be_missing() {
        assert!(explain(Path::new("/nonexistent/dump.log")).contains("did not start"));
    }
}
