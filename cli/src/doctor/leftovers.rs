//! Operations that a dead shim has left half done.
//!
//! The shim notes each in `checkpoint.journal_dir` and holds a lock on its note for as long as it
//! lives. It undoes them, too: this only finds them, and runs the shim for it.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use kybernate_config::{Settings, names::SHIM_BINARY};

use super::{Finding, probe};

const CHECK: &str = "leftovers";
/// Extension of a note that is being written.
const NEW: &str = "new";

/// Looks for what is left; with `repair` it is undone first.
pub async fn examine(settings: &Settings, repair: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if repair {
        findings.push(run_repair().await);
    }
    findings.push(judge(&abandoned(&settings.checkpoint.journal_dir)));
    findings
}

async fn run_repair() -> Finding {
    let beside = std::env::current_exe()
        .ok()
        .map(|program| program.with_file_name(SHIM_BINARY))
        .filter(|path| probe::is_executable(path));
    let Some(shim) = beside.or_else(|| probe::find(SHIM_BINARY)) else {
        return Finding::fail(
            "repair",
            format!("{SHIM_BINARY} is neither beside this program nor in the PATH"),
            "install it, or add its directory to the PATH",
        );
    };
    judge_repair(probe::run(&shim, &["repair"]).await)
}

fn judge_repair(answer: Result<probe::Answer, String>) -> Finding {
    const REMEDY: &str = "see to what it names, and run `kybernate doctor --repair` again";
    match answer {
        Ok(answer) if answer.success && answer.stdout.is_empty() => {
            Finding::ok("repair", "nothing to undo")
        }
        Ok(answer) if answer.success => {
            Finding::ok("repair", answer.stdout.trim().replace('\n', "; "))
        }
        Ok(answer) => {
            let said = format!("{}{}", answer.stdout, answer.stderr);
            Finding::fail("repair", said.trim().replace('\n', "; "), REMEDY)
        }
        Err(error) => Finding::fail("repair", error, REMEDY),
    }
}

/// Notes whose shim is dead.
fn abandoned(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_none_or(|extension| extension != NEW))
        .filter(|path| {
            File::open(path)
                .is_ok_and(|file| !matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
        })
        .collect();
    found.sort();
    found
}

fn judge(abandoned: &[PathBuf]) -> Finding {
    if abandoned.is_empty() {
        return Finding::ok(CHECK, "no operation was left half done");
    }
    let names: Vec<_> = abandoned
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    Finding::fail(
        CHECK,
        format!("a shim died in the middle of {}", names.join(", ")),
        "run `kybernate doctor --repair` to thaw the containers and undo the rest",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn only_what_nobody_holds_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(judge(&abandoned(dir.path())).level, Level::Ok);
        let held = File::create(dir.path().join("k8s.io-a.1.0")).unwrap();
        held.lock().unwrap();
        fs::write(dir.path().join("k8s.io-b.1.0.new"), "").unwrap();
        assert_eq!(judge(&abandoned(dir.path())).level, Level::Ok);
        drop(held);
        let finding = judge(&abandoned(dir.path()));
        assert_eq!(finding.level, Level::Fail);
        assert!(finding.found.contains("k8s.io-a.1.0"), "{finding:?}");
    }

    #[test]
    fn a_repair_tells_what_it_did_or_why_not() {
        let answer = |success, stdout: &str, stderr: &str| {
            Ok(probe::Answer {
                success,
                stdout: stdout.into(),
                stderr: stderr.into(),
            })
        };
        assert_eq!(judge_repair(answer(true, "", "")).level, Level::Ok);
        assert_eq!(judge_repair(answer(true, "a\nb\n", "")).found, "a; b");
        let failed = judge_repair(answer(false, "a\n", "no\n"));
        assert_eq!((failed.level, &*failed.found), (Level::Fail, "a; no"));
        assert_eq!(judge_repair(Err("x".into())).level, Level::Fail);
    }
}
