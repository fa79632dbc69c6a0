//! The checkpoint client against a double of containerd: what ends up on disk, and what does
//! not, however the call ends.

mod double;

use std::{fs, future::pending, path::Path, time::Duration};

use double::{ARCHIVE, Double, ID, Shim};
use kybernate_hooks::{
    client::{Checkpoint, CheckpointError, CheckpointOrder, Update, checkpoint},
    connect::{ConnectError, Connection},
    containerd::task::Status as State,
};

fn order(dir: &Path) -> CheckpointOrder {
    CheckpointOrder {
        output: dir.join("out/a.zst"),
        replace: false,
        exit: false,
        level: Some("fast".into()),
        buffer: None,
        encrypt_to: Vec::new(),
        timeout: Duration::from_secs(60),
        space_check: true,
        requester: Some("a test".into()),
    }
}

async fn take(
    connection: &Connection,
    target: &str,
    order: &CheckpointOrder,
    updates: &mut Vec<Update>,
) -> Result<Checkpoint, CheckpointError> {
    let target = target.parse().unwrap();
    checkpoint(
        connection,
        "example",
        &target,
        order,
        &mut |u| updates.push(u),
        pending(),
    )
    .await
}

/// Everything that is beside the output, by name.
fn left(dir: &Path) -> Vec<String> {
    fs::read_dir(dir.join("out"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[tokio::test]
async fn an_archive_arrives_with_its_result_and_nothing_beside_it() {
    let double = Double::default();
    let (dir, connection) = double.serve().await;
    let mut updates = Vec::new();
    // A prefix that only one of the two containers has.
    let taken = take(&connection, "c0f", &order(dir.path()), &mut updates)
        .await
        .unwrap();
    assert_eq!(taken.subject.id, ID);
    assert_eq!(taken.result.pause_ms, 12);
    assert_eq!(fs::read(&taken.output).unwrap(), ARCHIVE);
    assert_eq!(left(dir.path()), ["a.zst"]);

    assert!(
        matches!(&updates[0], Update::Started { id, memory_bytes } if id == ID && *memory_bytes > 0)
    );
    assert!(matches!(updates.last(), Some(Update::Progress(p)) if p.read_bytes == 64));
    let (request, options) = double.seen.lock().unwrap().clone().unwrap();
    assert_eq!(request.level.as_deref(), Some("fast"));
    assert_eq!(request.requester.as_deref(), Some("a test"));
    assert!(request.deadline.is_some());
    let names: Vec<_> = request
        .include
        .iter()
        .map(|file| file.name.as_str())
        .collect();
    assert_eq!(names, ["config.dump"]);
    assert!(!options.exit);
}

#[tokio::test]
async fn a_failure_is_told_and_leaves_nothing() {
    let double = Double {
        shim: Shim::Fails,
        ..Double::default()
    };
    let (dir, connection) = double.serve().await;
    let err = take(&connection, ID, &order(dir.path()), &mut Vec::new())
        .await
        .unwrap_err();
    assert!(err.to_string().contains("pipe 7 is strange"), "{err}");
    assert_eq!(left(dir.path()), Vec::<String>::new());
}

#[tokio::test]
async fn a_shim_that_leaves_plain_images_is_not_taken_for_ours() {
    let double = Double {
        shim: Shim::Stock,
        ..Double::default()
    };
    let (dir, connection) = double.serve().await;
    let err = take(&connection, ID, &order(dir.path()), &mut Vec::new())
        .await
        .unwrap_err();
    assert!(matches!(err, CheckpointError::Answer { .. }), "{err}");
    assert_eq!(left(dir.path()), Vec::<String>::new());
}

async fn interrupted(shim: Shim, exit: bool) -> (Vec<String>, Result<Checkpoint, CheckpointError>) {
    let double = Double {
        shim,
        ..Double::default()
    };
    let (dir, connection) = double.serve().await;
    let order = CheckpointOrder {
        exit,
        ..order(dir.path())
    };
    let mut updates = Vec::new();
    let cancel = tokio::time::sleep(Duration::from_millis(200));
    let outcome = checkpoint(
        &connection,
        "example",
        &ID.parse().unwrap(),
        &order,
        &mut |update| updates.push(update),
        cancel,
    )
    .await;
    assert!(updates.contains(&Update::RollingBack));
    (left(dir.path()), outcome)
}

#[tokio::test]
async fn an_interrupt_makes_the_shim_roll_back_and_leaves_nothing() {
    let (left, outcome) = interrupted(Shim::Waits, false).await;
    assert!(
        matches!(
            outcome,
            Err(CheckpointError::Interrupted { said: None, .. })
        ),
        "{outcome:?}"
    );
    assert!(left.is_empty(), "{left:?}");
    let (left, outcome) = interrupted(Shim::Finishes, false).await;
    assert!(
        matches!(
            outcome,
            Err(CheckpointError::Interrupted { said: None, .. })
        ),
        "{outcome:?}"
    );
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn an_interrupt_that_comes_too_late_does_not_lose_a_container_that_has_ended() {
    let (left, outcome) = interrupted(Shim::Finishes, true).await;
    assert!(outcome.is_ok(), "{outcome:?}");
    assert_eq!(left, ["a.zst"]);
}

#[tokio::test]
async fn a_deadline_rolls_back() {
    let double = Double {
        shim: Shim::Waits,
        ..Double::default()
    };
    let (dir, connection) = double.serve().await;
    let order = CheckpointOrder {
        timeout: Duration::from_millis(200),
        ..order(dir.path())
    };
    let err = take(&connection, ID, &order, &mut Vec::new())
        .await
        .unwrap_err();
    assert!(matches!(err, CheckpointError::Deadline { .. }), "{err}");
    assert!(err.to_string().contains("nothing was written"), "{err}");
    assert_eq!(left(dir.path()), Vec::<String>::new());
}

#[tokio::test]
async fn nobody_is_told_that_all_is_well_when_the_shim_says_otherwise() {
    let says = |told: String| {
        assert!(told.contains("doctor --repair"), "{told}");
        assert!(!told.contains("goes on running"), "{told}");
    };
    let (left_there, outcome) = interrupted(Shim::Leaves, false).await;
    says(outcome.unwrap_err().to_string());
    assert!(left_there.is_empty(), "{left_there:?}");
    let double = Double {
        shim: Shim::Leaves,
        ..Double::default()
    };
    let (dir, connection) = double.serve().await;
    let order = CheckpointOrder {
        timeout: Duration::from_millis(200),
        ..order(dir.path())
    };
    let err = take(&connection, ID, &order, &mut Vec::new())
        .await
        .unwrap_err();
    assert!(err.to_string().contains("not done within"), "{err}");
    says(err.to_string());
}

#[tokio::test]
async fn a_dropped_client_leaves_nothing() {
    let double = Double {
        shim: Shim::Waits,
        ..Double::default()
    };
    let (dir, connection) = double.serve().await;
    let order = order(dir.path());
    let mut updates = Vec::new();
    let run = take(&connection, ID, &order, &mut updates);
    assert!(
        tokio::time::timeout(Duration::from_millis(300), run)
            .await
            .is_err()
    );
    assert!(double.seen.lock().unwrap().is_some());
    assert_eq!(left(dir.path()), Vec::<String>::new());
}

#[tokio::test]
async fn what_can_be_refused_is_refused_before_the_shim_is_asked() {
    let cases: [(Double, &str, &str); 7] = [
        (Double::default(), "beef", "no container beef"),
        (Double::default(), "c0", "start of 2 ids"),
        (
            Double {
                state: State::Stopped,
                ..Double::default()
            },
            ID,
            "is stopped",
        ),
        (
            Double {
                state: State::Created,
                ..Double::default()
            },
            ID,
            "created and not started",
        ),
        (
            Double {
                runtime: "io.containerd.runsc.v1",
                ..Double::default()
            },
            ID,
            "runsc",
        ),
        (
            Double {
                version: "1.7.24",
                ..Double::default()
            },
            ID,
            "runtime_path",
        ),
        (Double::default(), "shop/web/main", "ListPodSandbox"),
    ];
    for (double, target, text) in cases {
        let (dir, connection) = double.serve().await;
        let err = take(&connection, target, &order(dir.path()), &mut Vec::new())
            .await
            .unwrap_err();
        assert!(err.to_string().contains(text), "{err}");
        assert!(double.seen.lock().unwrap().is_none());
        assert_eq!(left(dir.path()), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_container_is_only_ended_by_a_shim_that_is_known() {
    // The parent of this test is no shim at all.
    let double = Double {
        runtime: "io.containerd.runc.v2",
        ..Double::default()
    };
    let (dir, connection) = double.serve().await;
    let exit = CheckpointOrder {
        exit: true,
        ..order(dir.path())
    };
    let err = take(&connection, ID, &exit, &mut Vec::new())
        .await
        .unwrap_err();
    assert!(matches!(err, CheckpointError::UnknownShim { .. }), "{err}");
    assert!(double.seen.lock().unwrap().is_none());
    take(&connection, ID, &order(dir.path()), &mut Vec::new())
        .await
        .unwrap();
}

#[tokio::test]
async fn what_a_wrong_shim_leaves_of_a_container_that_it_ended_is_kept() {
    let double = Double {
        shim: Shim::Stock,
        ..Double::default()
    };
    let (dir, connection) = double.serve().await;
    let exit = CheckpointOrder {
        exit: true,
        ..order(dir.path())
    };
    let err = take(&connection, ID, &exit, &mut Vec::new())
        .await
        .unwrap_err();
    let CheckpointError::Kept { path, .. } = err else {
        panic!("{err}")
    };
    assert!(path.join("inventory.img").is_file());
}

#[tokio::test]
async fn a_paused_container_can_be_checkpointed() {
    let double = Double {
        state: State::Paused,
        ..Double::default()
    };
    let (dir, connection) = double.serve().await;
    let taken = take(&connection, ID, &order(dir.path()), &mut Vec::new())
        .await
        .unwrap();
    assert!(taken.subject.paused);
}

#[tokio::test]
async fn a_missing_or_dead_socket_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("sock");
    let err = Connection::open(&socket).await.unwrap_err();
    assert!(matches!(err, ConnectError::Absent { .. }));
    assert!(
        err.to_string().contains("KYBERNATE_CONTAINERD_SOCKET"),
        "{err}"
    );
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let err = Connection::open(&socket).await.unwrap_err();
    assert!(matches!(err, ConnectError::Refused { .. }), "{err}");
}
