use super::{record::tests::intent, *};
use crate::checkpoint::Freezer;

/// A freezer of v1 with a file for a kernel, and an intent about it.
fn frozen() -> (tempfile::TempDir, PathBuf, Intent) {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("freezer.state");
    fs::write(&state, "FROZEN").unwrap();
    let intent = Intent {
        freezer: Some(Freezer::V1(dir.path().into())),
        ..intent()
    };
    (dir, state, intent)
}

fn count(directory: &Path) -> usize {
    fs::read_dir(directory).unwrap().count()
}

#[test]
fn an_operation_that_is_under_way_is_left_alone_and_one_that_ended_is_no_more() {
    let (dir, state, intent) = frozen();
    let records = dir.path().join("journal");
    let journal = Journal::begin(&records, intent).unwrap();
    journal.step("freeze").unwrap();
    assert_eq!(journal.current(), "freeze");
    assert!(repair(&records).is_empty());
    assert_eq!(fs::read_to_string(&state).unwrap(), "FROZEN");
    journal.end();
    drop(journal);
    assert_eq!(count(&records), 0);
}

#[test]
fn one_whose_shim_died_is_undone_by_whoever_comes() {
    let heirs: [fn(&Path); 3] = [
        |records| {
            let said = repair(records);
            assert_eq!(
                said,
                [Ok(
                    "checkpoint of container abc, left at step freeze: undone".into()
                )]
            );
        },
        |records| settle(records, "k8s.io", "abc").unwrap(),
        |records| release(records, "k8s.io", "abc").unwrap(),
    ];
    for heir in heirs {
        let (dir, state, intent) = frozen();
        let records = dir.path().join("journal");
        let journal = Journal::begin(&records, intent).unwrap();
        journal.step("freeze").unwrap();
        drop(journal);
        heir(&records);
        assert_eq!(fs::read_to_string(&state).unwrap(), "THAWED");
        assert_eq!(count(&records), 0);
    }
}

#[test]
fn other_containers_are_none_of_the_next_operations_business() {
    let (dir, state, intent) = frozen();
    let records = dir.path().join("journal");
    drop(Journal::begin(&records, intent).unwrap());
    settle(&records, "k8s.io", "ab").unwrap();
    release(&records, "k8s.io", "abcd").unwrap();
    assert_eq!(fs::read_to_string(&state).unwrap(), "FROZEN");
}

#[test]
fn what_cannot_be_read_is_told_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("k8s.io-abc.7.0"), "nonsense\n").unwrap();
    fs::write(dir.path().join("k8s.io-abc.7.1.new"), "").unwrap();
    let said = repair(dir.path());
    assert!(
        matches!(&said[..], [Err(text)] if text.contains("abc.7.0")),
        "{said:?}"
    );
    assert!(settle(dir.path(), "k8s.io", "abc").is_err());
    assert_eq!(count(dir.path()), 2);
}
