//! A recorder of containerd's events.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use kybernate_hooks::containerd::{event_service::SubscribeRequest, events, unpack};
use prost_types::Any;
use tokio::task::JoinHandle;

use crate::{lab::Lab, time::eventually};

/// What happened to a task, as far as lifecycle tests care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The task was created.
    Create,
    /// Its first process was started.
    Start,
    /// An exec of this id was added.
    ExecAdded(String),
    /// An exec of this id was started.
    ExecStarted(String),
    /// A process ended: the id (the container's own for the first process) and its status.
    Exit(String, u32),
    /// The task, or the exec of this id, was deleted.
    Delete(String),
    /// The task was frozen.
    Paused,
    /// The task was thawed.
    Resumed,
    /// The kernel killed a process of the task for memory.
    Oom,
    /// A checkpoint of the task was taken.
    Checkpointed,
}

/// Records the events of all tasks of a lab from its making on.
#[derive(Debug)]
pub struct Recorder {
    seen: Arc<Mutex<Vec<(String, Event)>>>,
    reader: JoinHandle<()>,
}

impl Recorder {
    /// Subscribes; events that come later than this call returns are not missed.
    pub async fn subscribe(lab: &Lab) -> Result<Self> {
        let topics = ["^/tasks/", "^/namespaces/"];
        let request = SubscribeRequest {
            filters: topics.map(|topic| format!("topic~=\"{topic}\"")).into(),
        };
        let seen = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::new(AtomicBool::new(false));
        let (into, first) = (seen.clone(), heard.clone());
        let mut client = lab.events();
        let reader = tokio::spawn(async move {
            let Ok(stream) = client.subscribe(request).await else {
                return;
            };
            let mut stream = stream.into_inner();
            while let Ok(Some(envelope)) = stream.message().await {
                first.store(true, Ordering::Relaxed);
                if let Some(event) = envelope.event.as_ref().and_then(decode) {
                    into.lock().unwrap_or_else(|e| e.into_inner()).push(event);
                }
            }
        });
        let recorder = Self { seen, reader };
        // containerd says nothing on a subscription before its first event, so we make one.
        let limit = Duration::from_secs(20);
        eventually("subscription to events", limit, || async {
            lab.exec(&["ctr", "namespaces", "label", "k8s.io", "subscribed=yes"])?;
            Ok(heard.load(Ordering::Relaxed).then_some(()))
        })
        .await?;
        Ok(recorder)
    }

    /// Events of one container so far, in the order in which containerd sent them.
    pub fn of(&self, container: &str) -> Vec<Event> {
        let seen = self.seen.lock().unwrap_or_else(|e| e.into_inner());
        seen.iter()
            .filter(|(id, _)| id == container)
            .map(|(_, event)| event.clone())
            .collect()
    }

    /// Waits up to 10 s until the container had the event; returns all of its events.
    pub async fn wait(&self, container: &str, event: &Event) -> Result<Vec<Event>> {
        let what = format!("{event:?}");
        let waited = eventually(&what, Duration::from_secs(10), || async {
            let events = self.of(container);
            Ok(events.contains(event).then_some(events))
        });
        waited
            .await
            .with_context(|| format!("events so far: {:?}", self.of(container)))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

fn decode(any: &Any) -> Option<(String, Event)> {
    macro_rules! decode {
        ($($kind:ident: $event:ident => $to:expr;)*) => {
            $(if let Some(Ok($event)) = unpack::<events::$kind>(any) {
                let id = $event.container_id.clone();
                return Some((id, $to));
            })*
        };
    }
    decode! {
        TaskCreate: _e => Event::Create;
        TaskStart: _e => Event::Start;
        TaskExecAdded: e => Event::ExecAdded(e.exec_id);
        TaskExecStarted: e => Event::ExecStarted(e.exec_id);
        TaskExit: e => Event::Exit(e.id, e.exit_status);
        TaskDelete: e => Event::Delete(if e.id.is_empty() { e.container_id } else { e.id });
        TaskPaused: _e => Event::Paused;
        TaskResumed: _e => Event::Resumed;
        TaskOom: _e => Event::Oom;
        TaskCheckpointed: _e => Event::Checkpointed;
    }
    None
}
