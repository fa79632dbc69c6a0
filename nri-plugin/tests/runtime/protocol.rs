//! The plugin against a runtime double, step by step.

use std::{path::PathBuf, time::Duration};

use crate::double::{Runtime, Session, container, limit, pod};
use kybernate_config::Settings;
use kybernate_nri::{
    nri::{
        api::{ContainerRequest, Event, PodRequest, StateChangeEvent},
        connect::Identity,
        stub::Stub,
    },
    plugin::{Plugin, policy::Policy},
};
use protobuf::{EnumOrUnknown, Message as _};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use ttrpc::{Code, Error};

const SOURCE: &str = "/var/lib/kybernate/a.tar.zst";

/// A plugin that runs in this process and stops when the test ends.
struct Running {
    _dir: tempfile::TempDir,
    socket: PathBuf,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn start() -> Running {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nri.sock");
    let stop = CancellationToken::new();
    let plugin = Plugin::new(Policy::new(&Settings::default()).unwrap());
    let stub = Stub::new(Identity::new("kybernate", "10").unwrap(), plugin);
    let (path, stopped) = (socket.clone(), stop.clone());
    let task = tokio::spawn(async move { stub.run(&path, &stopped).await });
    Running {
        _dir: dir,
        socket,
        stop,
        task,
    }
}

async fn in_service() -> (Running, Runtime, Session) {
    let plugin = start();
    let runtime = Runtime::listen(&plugin.socket);
    let session = runtime.plugin().await;
    session.take_in().await;
    (plugin, runtime, session)
}

fn status(error: Error) -> (Code, String) {
    match error {
        Error::RpcStatus(status) => (status.code(), status.message().to_owned()),
        other => panic!("not a status: {other}"),
    }
}

#[tokio::test]
async fn it_registers_and_subscribes_to_what_it_needs_alone() {
    let plugin = start();
    let runtime = Runtime::listen(&plugin.socket);
    let session = runtime.plugin().await;
    assert_eq!(session.registered.plugin_name, "kybernate");
    assert_eq!(session.registered.plugin_idx, "10");
    for version in ["1.7.24~ds1", "v2.1.9", "2.3.4"] {
        let answer = session.configure(version, "").await.unwrap();
        assert_eq!(answer.events, 1 << 3, "{version}");
    }
}

#[tokio::test]
async fn class_containers_are_prepared_and_foreign_ones_get_an_empty_answer() {
    let (_plugin, _runtime, session) = in_service().await;
    let annotations = [("restore.kybernate.io/app", SOURCE)];
    let answer = session
        .create(&pod("kybernate", &annotations), &container("app"))
        .await
        .unwrap();
    let adjusted = &answer.adjust.annotations;
    assert_eq!(
        adjusted
            .get("kybernate.io/restore-from")
            .map(String::as_str),
        Some(SOURCE)
    );
    assert_eq!(
        adjusted.get("kybernate.io/managed").unwrap(),
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(adjusted.len(), 2);
    for handler in ["", "runc"] {
        let answer = session
            .create(&pod(handler, &annotations), &container("app"))
            .await
            .unwrap();
        assert_eq!(answer.write_to_bytes().unwrap(), b"", "{handler}");
    }
}

#[tokio::test]
async fn a_wrong_annotation_refuses_the_container_and_says_why() {
    let (_plugin, _runtime, session) = in_service().await;
    let wrong = pod("kybernate", &[("restore.kybernate.io/app", "/etc/shadow")]);
    let (code, message) = status(session.create(&wrong, &container("app")).await.unwrap_err());
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(
        message.contains("restore.kybernate.io/app") && message.contains("/etc/shadow"),
        "{message}"
    );
    // The connection goes on.
    session
        .create(&pod("kybernate", &[]), &container("app"))
        .await
        .unwrap();
}

#[tokio::test]
async fn requests_and_answers_of_any_size_pass() {
    let (_plugin, _runtime, session) = in_service().await;
    let large = "x".repeat(3 << 20);
    let mut large_pod = pod("kybernate", &[("large", &large)]);
    assert_eq!(
        session
            .create(&large_pod, &container("app"))
            .await
            .unwrap()
            .adjust
            .annotations
            .len(),
        1
    );
    // An answer of more than 4096 bytes: the refusal repeats the value.
    let value = format!("relative/{}", "y".repeat(4000));
    large_pod
        .annotations
        .insert("restore.kybernate.io/app".into(), value.clone());
    let (_, message) = status(
        session
            .create(&large_pod, &container("app"))
            .await
            .unwrap_err(),
    );
    assert!(
        message.contains(&value) && message.len() > 4096 - 40,
        "{}",
        message.len()
    );
}

#[tokio::test]
async fn synchronization_comes_in_parts() {
    let plugin = start();
    let runtime = Runtime::listen(&plugin.socket);
    let session = runtime.plugin().await;
    session.configure("2.1.9", "").await.unwrap();
    assert!(
        session
            .synchronize(vec![pod("kybernate", &[])], Vec::new(), true)
            .await
    );
    assert!(
        session
            .synchronize(Vec::new(), vec![container("a"), container("b")], true)
            .await
    );
    assert!(
        !session
            .synchronize(vec![pod("runc", &[])], vec![container("c")], false)
            .await
    );
}

#[tokio::test]
async fn every_event_is_taken_in_both_of_its_forms() {
    let (_plugin, _runtime, session) = in_service().await;
    let of_pod = PodRequest {
        pod: Some(pod("kybernate", &[])).into(),
        ..Default::default()
    };
    let of_container = ContainerRequest {
        pod: of_pod.pod.clone(),
        container: Some(container("app")).into(),
        ..Default::default()
    };
    let plugin = &session.plugin;
    plugin.run_pod_sandbox(limit(), &of_pod).await.unwrap();
    plugin.update_pod_sandbox(limit(), &of_pod).await.unwrap();
    plugin
        .post_update_pod_sandbox(limit(), &of_pod)
        .await
        .unwrap();
    plugin.stop_pod_sandbox(limit(), &of_pod).await.unwrap();
    plugin.remove_pod_sandbox(limit(), &of_pod).await.unwrap();
    plugin
        .post_create_container(limit(), &of_container)
        .await
        .unwrap();
    plugin
        .start_container(limit(), &of_container)
        .await
        .unwrap();
    plugin
        .post_start_container(limit(), &of_container)
        .await
        .unwrap();
    plugin
        .update_container(limit(), &of_container)
        .await
        .unwrap();
    plugin
        .post_update_container(limit(), &of_container)
        .await
        .unwrap();
    plugin.stop_container(limit(), &of_container).await.unwrap();
    plugin
        .remove_container(limit(), &of_container)
        .await
        .unwrap();
    for number in 0..20 {
        let change = StateChangeEvent {
            event: EnumOrUnknown::<Event>::from_i32(number),
            pod: of_pod.pod.clone(),
            ..Default::default()
        };
        plugin.state_change(limit(), &change).await.unwrap();
    }
}

#[tokio::test]
async fn a_method_that_does_not_exist_is_unimplemented() {
    let (_plugin, _runtime, session) = in_service().await;
    for method in ["ValidateContainerAdjustment", "SomethingOfTheFuture"] {
        let request = ttrpc::Request {
            service: "nri.pkg.api.v1alpha1.Plugin".into(),
            method: method.into(),
            timeout_nano: 2_000_000_000,
            ..Default::default()
        };
        let (code, _) = status(session.raw.request(request).await.unwrap_err());
        assert_eq!(code, Code::UNIMPLEMENTED, "{method}");
    }
}

#[tokio::test]
async fn the_runtimes_configuration_file_counts_and_a_wrong_one_is_refused() {
    let plugin = start();
    let runtime = Runtime::listen(&plugin.socket);
    let session = runtime.plugin().await;
    session
        .configure("2.1.9", "handlers = ['gpu']")
        .await
        .unwrap();
    session.synchronize(Vec::new(), Vec::new(), false).await;
    let prepared =
        |answer: kybernate_nri::nri::api::CreateContainerResponse| answer.adjust.is_some();
    assert!(prepared(
        session
            .create(&pod("gpu", &[]), &container("a"))
            .await
            .unwrap()
    ));
    assert!(!prepared(
        session
            .create(&pod("kybernate", &[]), &container("a"))
            .await
            .unwrap()
    ));
    let (code, message) = status(
        session
            .configure("2.1.9", "handlers = 7")
            .await
            .unwrap_err(),
    );
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(message.contains("handlers"), "{message}");
    // Without the file the node's settings count again.
    session.configure("2.1.9", "").await.unwrap();
    assert!(prepared(
        session
            .create(&pod("kybernate", &[]), &container("a"))
            .await
            .unwrap()
    ));
}

#[tokio::test]
async fn it_comes_back_when_the_runtime_does() {
    let (plugin, runtime, session) = in_service().await;
    // The runtime dies, its socket goes, and later there is a new one.
    drop(session);
    drop(runtime);
    std::fs::remove_file(&plugin.socket).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let runtime = Runtime::listen(&plugin.socket);
    let session = runtime.plugin().await;
    session.take_in().await;
    session
        .create(&pod("kybernate", &[]), &container("a"))
        .await
        .unwrap();
    // The runtime closes the plugin and lives on.
    drop(session);
    runtime.plugin().await.take_in().await;
    // A runtime that hangs up at once is tried again.
    for _ in 0..3 {
        drop(runtime.connection().await);
    }
    runtime.plugin().await.take_in().await;
}

#[tokio::test]
async fn it_stops_when_told_connected_or_not() {
    let (mut plugin, runtime, mut session) = in_service().await;
    plugin.stop.cancel();
    let limit = Duration::from_secs(1);
    tokio::time::timeout(limit, &mut plugin.task)
        .await
        .expect("connected")
        .unwrap();
    tokio::time::timeout(limit, session.trunk.closed())
        .await
        .expect("hangs up")
        .unwrap();
    drop(runtime);

    let mut alone = start();
    tokio::time::sleep(Duration::from_millis(50)).await;
    alone.stop.cancel();
    tokio::time::timeout(limit, &mut alone.task)
        .await
        .expect("alone")
        .unwrap();
}
