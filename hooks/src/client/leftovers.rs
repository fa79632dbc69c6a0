//! Staging directories whose client was killed, and whose shim did not remove them.

use std::{
    fs::{self, File, TryLockError},
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime},
};

use kybernate_config::request::{REQUEST_FILE, RESULT_FILE, is_staging};

/// A directory whose client is gone is left to its shim for this long.
const SETTLED: Duration = Duration::from_secs(600);

/// Removes staging directories in `parent` that no client has used for a while. What can't be
/// removed stays: it hinders nobody.
pub(crate) fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    let ours = nix::unistd::geteuid().as_raw();
    for entry in entries.flatten() {
        let path = entry.path();
        let stale = is_staging(&entry.file_name())
            && entry
                .metadata()
                .is_ok_and(|facts| facts.is_dir() && facts.uid() == ours)
            && !path.join(RESULT_FILE).exists()
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
        leave(".kybernate-complete", SETTLED * 2);
        fs::write(
            dir.path().join(".kybernate-complete").join(RESULT_FILE),
            "{}",
        )
        .unwrap();
        let used = leave(".kybernate-used", SETTLED * 2);
        used.lock().unwrap();
        fs::create_dir(dir.path().join(".kybernate-empty")).unwrap();
        sweep(dir.path());
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                ".kybernate-complete",
                ".kybernate-empty",
                ".kybernate-used",
                ".kybernate-young",
                "other"
            ]
        );
    }
}
