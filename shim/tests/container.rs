//! A container's life with a runc that does what a test tells it: who is told what, and in
//! which order, when processes end at the worst of times.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};

use containerd_shim_protos::{events::task::TaskExit, shim::oci};
use kybernate_shim::{
    container::{Container, ContainerError, CreateRequest, Shared},
    events::{Events, Queue},
    io::Endpoints,
    process::ProcessState,
    reaper::Reaper,
};
use protobuf::{Message, well_known_types::any::Any};
use tokio_util::sync::CancellationToken;

/// runc, as far as the shim sees it. `init`, `exec`, `start` and `delete` in the bundle are
/// shell scripts; the first two run as processes that outlive it, orphans from the beginning
/// lest the shell reap them.
const RUNC: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
  case $1 in
    --log) log=$2; shift 2 ;;
    --pid-file) pid=$2; shift 2 ;;
    --root|--log-format|--bundle|--process) shift 2 ;;
    create|start|exec|delete|pause|resume) command=$1; shift ;;
    *) shift ;;
  esac
done
bundle=${log%/*}
fail() { echo "{\"level\":\"error\",\"msg\":\"$1\"}" >>"$log"; exit 1; }
case $command in
  create) (sh "$bundle/init" & echo $! >"$pid") ;;
  exec) [ -f "$bundle/exec" ] || fail "no such program"
    (sh "$bundle/exec" & echo $! >"$pid"); sleep "$(cat "$bundle/exec-delay")" ;;
  start) [ ! -f "$bundle/start" ] || . "$bundle/start" ;;
  delete) [ ! -f "$bundle/gone" ] || fail "container does not exist" ;;
esac
"#;

struct Setting {
    directory: tempfile::TempDir,
    shared: Shared,
    queue: Queue,
}

impl Setting {
    fn new(reaper: &Reaper) -> Self {
        let reaper = reaper.clone();
        let (events, queue) = Events::new("test");
        let directory = tempfile::tempdir().unwrap();
        let runc = directory.path().join("runc");
        fs::write(&runc, RUNC).unwrap();
        fs::set_permissions(&runc, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(directory.path().join("config.json"), OWN_PIDS).unwrap();
        fs::write(directory.path().join("exec-delay"), "0").unwrap();
        Self {
            directory,
            shared: Shared {
                namespace: "test".into(),
                reaper,
                events,
            },
            queue,
        }
    }

    fn script(&self, name: &str, text: &str) -> &Self {
        fs::write(self.bundle().join(name), text).unwrap();
        self
    }

    fn bundle(&self) -> &Path {
        self.directory.path()
    }

    async fn create(&self) -> Arc<Container> {
        let options = oci::Options {
            binary_name: self.bundle().join("runc").to_str().unwrap().into(),
            ..oci::Options::default()
        };
        let request = CreateRequest {
            id: "c".into(),
            bundle: self.bundle().into(),
            options: Some(Any {
                type_url: "containerd.runc.v1.Options".into(),
                value: options.write_to_bytes().unwrap(),
                ..Any::default()
            }),
            ..CreateRequest::default()
        };
        Container::create(&self.shared, request).await.unwrap()
    }

    /// The topics of the next events, with the process that an exit is about.
    async fn events(&mut self, count: usize) -> Vec<String> {
        let mut seen = Vec::new();
        for _ in 0..count {
            let next = tokio::time::timeout(Duration::from_secs(20), self.queue.next());
            let envelope = next.await.expect("an event in time").unwrap();
            let detail = match envelope.topic.as_str() {
                "/tasks/exit" => {
                    let exit = TaskExit::parse_from_bytes(&envelope.event.value).unwrap();
                    format!(" {} {}", exit.id, exit.exit_status)
                }
                _ => String::new(),
            };
            seen.push(format!(
                "{}{detail}",
                envelope.topic.trim_start_matches("/tasks/")
            ));
        }
        seen
    }
}

const OWN_PIDS: &str = r#"{"linux":{"namespaces":[{"type":"pid"}]}}"#;

fn exec(container: &Arc<Container>, id: &str) {
    container
        .add_exec(id, b"{\"args\":[\"x\"]}", Endpoints::default())
        .unwrap();
}

#[tokio::test]
async fn lives() {
    // One test, one after another: the reaper reaps every child of this process.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let reaper = &Reaper::new();
    tokio::spawn(reaper.clone().run());
    an_exec_that_ends_before_runc_does_is_started_first(reaper).await;
    an_init_that_ends_during_start_is_started_first(reaper).await;
    exits_of_execs_come_before_inits(reaper).await;
    a_failed_exec_says_why_and_can_be_deleted(reaper).await;
    a_pause_is_no_end(reaper).await;
    a_container_that_runc_forgot_can_be_deleted(reaper).await;
}

async fn an_exec_that_ends_before_runc_does_is_started_first(reaper: &Reaper) {
    let mut setting = Setting::new(reaper);
    setting
        .script("init", "exec sleep 100")
        .script("exec", "exit 3")
        .script("exec-delay", "0.3");
    let container = setting.create().await;
    container.start(CancellationToken::new()).await.unwrap();
    exec(&container, "e");
    let pid = container.start_exec("e").await.unwrap();
    let exit = container.process("e").unwrap().wait().await;
    assert_eq!((exit.pid, exit.status), (pid, 3));
    let events = setting.events(5).await;
    assert_eq!(
        events,
        ["create", "start", "exec-added", "exec-started", "exit e 3"]
    );
    assert!(matches!(
        container.kill("e", 9, false),
        Err(ContainerError::Finished { .. })
    ));
    container.delete_exec("e").await.unwrap();
    assert!(container.process("e").is_err());
    container.kill("", 9, false).unwrap();
    assert_eq!(setting.events(1).await, ["exit c 137"]);
    container.delete().await.unwrap();
}

async fn an_init_that_ends_during_start_is_started_first(reaper: &Reaper) {
    let mut setting = Setting::new(reaper);
    let wait = "while [ ! -f \"$bundle/go\" ]; do sleep 0.01; done";
    setting
        .script(
            "init",
            &format!("bundle={}; {wait}; exit 5", setting.bundle().display()),
        )
        .script("start", "touch \"$bundle/go\"; sleep 0.5");
    let container = setting.create().await;
    container.start(CancellationToken::new()).await.unwrap();
    assert_eq!(setting.events(3).await, ["create", "start", "exit c 5"]);
    assert_eq!(container.state(), ProcessState::Stopped);
    container.delete().await.unwrap();
}

async fn exits_of_execs_come_before_inits(reaper: &Reaper) {
    let mut setting = Setting::new(reaper);
    setting
        .script("init", "sleep 0.5; exit 1")
        .script("exec", "sleep 1.5; exit 2");
    let container = setting.create().await;
    container.start(CancellationToken::new()).await.unwrap();
    for id in ["a", "b"] {
        exec(&container, id);
        container.start_exec(id).await.unwrap();
    }
    let events = setting.events(9).await;
    let mut exits: Vec<&str> = events[6..8].iter().map(String::as_str).collect();
    exits.sort_unstable();
    assert_eq!(exits, ["exit a 2", "exit b 2"], "{events:?}");
    assert_eq!(events[8], "exit c 1");
    exec_is_refused(&container).await;
    container.delete().await.unwrap();
}

async fn exec_is_refused(container: &Arc<Container>) {
    let spec = b"{}";
    let refused = container
        .add_exec("late", spec, Endpoints::default())
        .unwrap_err();
    assert!(matches!(refused, ContainerError::State { .. }), "{refused}");
}

async fn a_failed_exec_says_why_and_can_be_deleted(reaper: &Reaper) {
    let mut setting = Setting::new(reaper);
    setting.script("init", "exec sleep 100");
    let container = setting.create().await;
    container.start(CancellationToken::new()).await.unwrap();
    exec(&container, "e");
    let error = container.start_exec("e").await.unwrap_err().to_string();
    assert!(error.contains("no such program"), "{error}");
    container.delete_exec("e").await.unwrap();
    // The fake makes no cgroup: the processes are in the test's own, which must not be killed.
    assert!(matches!(
        container.kill("", 15, true),
        Err(ContainerError::Signal { .. })
    ));
    container.kill("", 15, false).unwrap();
    let events = setting.events(4).await;
    assert_eq!(events, ["create", "start", "exec-added", "exit c 143"]);
    container.delete().await.unwrap();
    let left = fs::read_dir(setting.bundle()).unwrap().flatten();
    let logs = left.filter(|e| e.file_name().to_string_lossy().starts_with("runc-"));
    assert_eq!(logs.count(), 0, "logs of runc stay behind");
}

async fn a_pause_is_no_end(reaper: &Reaper) {
    let mut setting = Setting::new(reaper);
    setting.script("init", "exec sleep 100");
    let container = setting.create().await;
    assert!(matches!(
        container.pause().await,
        Err(ContainerError::State { .. })
    ));
    container.start(CancellationToken::new()).await.unwrap();
    container.pause().await.unwrap();
    assert!(container.paused_for().is_some());
    let init = container.process("").unwrap();
    let waited = tokio::time::timeout(Duration::from_millis(300), init.wait()).await;
    assert!(waited.is_err(), "a paused container has not ended");
    exec_is_refused(&container).await;
    container.resume().await.unwrap();
    assert!(matches!(
        container.resume().await,
        Err(ContainerError::State { .. })
    ));
    assert!(matches!(
        container.delete().await,
        Err(ContainerError::State { .. })
    ));
    container.kill("", 9, false).unwrap();
    init.wait().await;
    let events = setting.events(5).await;
    assert_eq!(
        events,
        ["create", "start", "paused", "resumed", "exit c 137"]
    );
    container.delete().await.unwrap();
}

async fn a_container_that_runc_forgot_can_be_deleted(reaper: &Reaper) {
    let mut setting = Setting::new(reaper);
    setting.script("init", "exit 0").script("gone", "");
    let container = setting.create().await;
    container.process("").unwrap().wait().await;
    container.delete().await.unwrap();
    assert_eq!(setting.events(2).await, ["create", "exit c 0"]);
}
