use std::{fs::TryLockError, os::unix::fs::MetadataExt};

use super::*;

fn request() -> CheckpointRequest {
    CheckpointRequest {
        version: kybernate_config::request::REQUEST_VERSION,
        level: None,
        buffer: None,
        deadline: None,
        encrypt_to: Vec::new(),
        include: Vec::new(),
        requester: None,
    }
}

fn answer(staging: &Staging, content: &[u8], bytes: u64) {
    staging.write(ARCHIVE_FILE, content).unwrap();
    let result = CheckpointResult {
        archive_bytes: bytes,
        content_bytes: 9,
        manifest_sha256: "ab".into(),
        pause_ms: 1,
        total_ms: 2,
    };
    staging
        .write(RESULT_FILE, &serde_json::to_vec(&result).unwrap())
        .unwrap();
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_published_archive_is_alone_and_private() {
    let dir = tempfile::tempdir().unwrap();
    let mut staging = Staging::create(&dir.path().join("a.zst"), false, false).unwrap();
    assert_eq!(fs::metadata(staging.path()).unwrap().mode() & 0o777, 0o700);
    staging.submit(&request()).unwrap();
    answer(&staging, b"content", 7);
    assert_eq!(staging.publish("c").unwrap().archive_bytes, 7);
    assert_eq!(names(dir.path()), ["a.zst"]);
    assert_eq!(fs::read(dir.path().join("a.zst")).unwrap(), b"content");
    assert_eq!(
        fs::metadata(dir.path().join("a.zst")).unwrap().mode() & 0o777,
        0o600
    );
}

#[test]
fn an_output_that_appears_meanwhile_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("a.zst");
    let staging = Staging::create(&output, false, false).unwrap();
    answer(&staging, b"new", 3);
    fs::write(&output, "old").unwrap();
    assert!(matches!(
        staging.publish("c"),
        Err(CheckpointError::Exists { .. })
    ));
    assert_eq!(names(dir.path()), ["a.zst"]);
    assert_eq!(fs::read(&output).unwrap(), b"old");
    assert!(matches!(
        Staging::create(&output, false, false),
        Err(CheckpointError::Exists { .. })
    ));
    let staging = Staging::create(&output, true, false).unwrap();
    answer(&staging, b"new", 3);
    staging.publish("c").unwrap();
    assert_eq!(fs::read(&output).unwrap(), b"new");
}

#[test]
fn an_answer_that_does_not_fit_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("a.zst");
    let staging = Staging::create(&output, false, false).unwrap();
    answer(&staging, b"short", 99);
    let err = staging.publish("c").unwrap_err().to_string();
    assert!(err.contains("5 bytes") && err.contains("99"), "{err}");
    let staging = Staging::create(&output, false, false).unwrap();
    let err = staging.publish("c").unwrap_err().to_string();
    assert!(err.contains(RESULT_FILE), "{err}");
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

#[test]
fn what_is_left_of_a_container_that_has_ended_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("a.zst");
    let staging = Staging::create(&output, false, true).unwrap();
    answer(&staging, b"precious", 8);
    fs::write(&output, "in the way").unwrap();
    let err = staging.publish("c").unwrap_err();
    let CheckpointError::Kept { path, source, .. } = &err else {
        panic!("{err}")
    };
    assert!(matches!(**source, CheckpointError::Exists { .. }));
    assert_eq!(fs::read(path.join(ARCHIVE_FILE)).unwrap(), b"precious");
    assert!(err.to_string().contains(path.to_str().unwrap()));
}

#[test]
fn a_complete_archive_of_a_container_that_ends_survives_its_client() {
    let dir = tempfile::tempdir().unwrap();
    for (ends, left) in [(true, 1), (false, 0)] {
        let dir = dir.path().join(left.to_string());
        fs::create_dir(&dir).unwrap();
        let staging = Staging::create(&dir.join("a"), false, ends).unwrap();
        answer(&staging, b"x", 1);
        drop(staging);
        assert_eq!(names(&dir).len(), left);
        let staging = Staging::create(&dir.join("b"), false, ends).unwrap();
        drop(staging);
        assert_eq!(names(&dir).len(), left, "nothing complete, nothing kept");
        let staging = Staging::create(&dir.join("c"), false, ends).unwrap();
        answer(&staging, b"x", 1);
        staging.publish("c").unwrap();
        assert_eq!(names(&dir).len(), left + 1);
    }
}

/// Whenever the shim comes to its end: either its result is kept, or it could not be written and
/// the container goes on.
#[test]
fn no_archive_is_lost_between_the_last_look_and_the_removal() {
    let dir = tempfile::tempdir().unwrap();
    let refused = || CheckpointError::Space {
        path: "/".into(),
        available: 0,
        wanted: 0,
    };
    for round in 0..400_u32 {
        let staging = Staging::create(&dir.path().join("a.zst"), false, true).unwrap();
        for file in 0..8 {
            staging.write(&format!("file-{file}"), b"x").unwrap();
        }
        let result = staging.path().join(RESULT_FILE);
        let shim = std::thread::spawn(move || {
            for _ in 0..round * 50 {
                std::hint::spin_loop();
            }
            File::create_new(&result).is_ok()
        });
        let path = staging.path().to_owned();
        let error = if round % 2 == 0 {
            Some(staging.fail("c", refused()))
        } else {
            drop(staging);
            None
        };
        let written = shim.join().unwrap();
        assert_eq!(path.join(RESULT_FILE).exists(), written, "round {round}");
        let kept = matches!(error, Some(CheckpointError::Kept { .. }));
        assert!(error.is_none() || kept == written, "round {round}");
        let _ = fs::remove_dir_all(path);
    }
    assert_eq!(names(dir.path()).len(), 0);
}

#[test]
fn the_request_is_locked_until_withdrawn() {
    let dir = tempfile::tempdir().unwrap();
    let mut staging = Staging::create(&dir.path().join("a"), false, false).unwrap();
    staging.submit(&request()).unwrap();
    let shim = File::open(staging.path().join(REQUEST_FILE)).unwrap();
    assert!(matches!(shim.try_lock(), Err(TryLockError::WouldBlock)));
    staging.withdraw();
    shim.try_lock().unwrap();
}

#[test]
fn impossible_outputs_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    for path in [
        dir.path().to_owned(),
        dir.path().join("no/such"),
        PathBuf::from("/"),
    ] {
        let err = Staging::create(&path, true, false).unwrap_err();
        assert!(matches!(err, CheckpointError::Output { .. }), "{err}");
    }
    assert_eq!(names(dir.path()), Vec::<String>::new());
}
