//! Asking the machine: programs, files, the search path.

use std::{
    ffi::OsStr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::process::Command;

/// No program that is asked for its version may take longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a program printed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Whether it ended with 0.
    pub success: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Finds an executable by name in the search path; a path is taken as it is.
pub fn find(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return is_executable(Path::new(program)).then(|| program.into());
    }
    find_in(program, &std::env::var_os("PATH").unwrap_or_default())
}

fn find_in(program: &str, path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path)
        .map(|directory| directory.join(program))
        .find(|path| is_executable(path))
}

/// Whether `path` is a file that may be executed.
pub fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|facts| facts.is_file() && facts.permissions().mode() & 0o111 != 0)
}

/// Runs a program and waits for it; the error says why there is no answer.
pub async fn run(program: &Path, args: &[&str]) -> Result<Answer, String> {
    let running = Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(PATIENCE, running).await {
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(output)) => Ok(Answer {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }),
    }
}

/// The first numbers of a version, from a text like `Version: 4.2.1` or `v2.1.9+x`.
pub fn version(text: &str) -> Option<(u32, u32)> {
    text.split(|c: char| c.is_whitespace() || c == '/')
        .find_map(|word| {
            let mut parts = word.trim_start_matches('v').split('.');
            let major = parts.next()?.parse().ok()?;
            let minor = parts
                .next()?
                .split(|c: char| !c.is_ascii_digit())
                .next()?
                .parse()
                .ok()?;
            Some((major, minor))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_print() {
        for (text, found) in [
            ("Version: 4.2.1", Some((4, 2))),
            ("runc version 1.3.6+ds1\ncommit: 1.3.6", Some((1, 3))),
            (
                "containerd github.com/containerd/containerd/v2 2.1.9+unknown ",
                Some((2, 1)),
            ),
            (
                "containerd github.com/containerd/containerd 1.7.24~ds1",
                Some((1, 7)),
            ),
            ("v2.2.7", Some((2, 2))),
            ("2.4-beta", Some((2, 4))),
            ("GitID: v4", None),
            ("", None),
        ] {
            assert_eq!(version(text), found, "{text}");
        }
    }

    #[test]
    fn only_executables_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tool");
        std::fs::write(&path, "").unwrap();
        assert_eq!(find_in("tool", dir.path().as_os_str()), None);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find_in("tool", dir.path().as_os_str()), Some(path.clone()));
        assert_eq!(find(path.to_str().unwrap()), Some(path));
        assert_eq!(find("/nonexistent/tool"), None);
    }

    #[tokio::test]
    async fn both_outputs_and_the_outcome_are_told() {
        let answer = run(Path::new("/bin/sh"), &["-c", "echo a; echo b >&2; exit 3"]).await;
        let expected = Answer {
            success: false,
            stdout: "a\n".into(),
            stderr: "b\n".into(),
        };
        assert_eq!(answer, Ok(expected));
        assert!(run(Path::new("/nonexistent/tool"), &[]).await.is_err());
    }
}
