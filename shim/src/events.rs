//! Events to containerd.
//!
//! They go one by one, in the order in which they were sent, to the ttrpc service
//! `containerd.services.events.ttrpc.v1.Events` at `TTRPC_ADDRESS`. While containerd is away
//! they wait, and the connection is made anew: a container that ended during a restart of
//! containerd is still reported. An event that containerd itself refuses is dropped.

use std::{sync::Arc, time::Duration};

use containerd_shim_protos::{
    api::ForwardRequest,
    events::task::{
        TaskCheckpointed, TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit,
        TaskOOM, TaskPaused, TaskResumed, TaskStart,
    },
    shim::event::Envelope,
    shim_async::EventsClient,
    topics,
};
use protobuf::{
    Message, MessageField,
    well_known_types::{any::Any, timestamp::Timestamp},
};
use tokio::sync::{mpsc, watch};
use ttrpc::{asynchronous::Client, context};

/// Most events that wait; the oldest of more are dropped.
const QUEUE: usize = 4096;
/// How long one delivery may take.
const FORWARD: Duration = Duration::from_secs(5);
/// Longest pause between attempts to reach containerd.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// A message that is an event, with its topic.
pub trait Event: Message {
    /// The topic it is published under.
    const TOPIC: &'static str;
}

macro_rules! events {
    ($($message:ident => $topic:ident),* $(,)?) => {
        $(impl Event for $message { const TOPIC: &'static str = topics::$topic; })*
    };
}

events! {
    TaskCreate => TASK_CREATE_EVENT_TOPIC,
    TaskStart => TASK_START_EVENT_TOPIC,
    TaskOOM => TASK_OOM_EVENT_TOPIC,
    TaskExit => TASK_EXIT_EVENT_TOPIC,
    TaskDelete => TASK_DELETE_EVENT_TOPIC,
    TaskExecAdded => TASK_EXEC_ADDED_EVENT_TOPIC,
    TaskExecStarted => TASK_EXEC_STARTED_EVENT_TOPIC,
    TaskPaused => TASK_PAUSED_EVENT_TOPIC,
    TaskResumed => TASK_RESUMED_EVENT_TOPIC,
    TaskCheckpointed => TASK_CHECKPOINTED_EVENT_TOPIC,
}

/// The sending side. Clones share one queue.
#[derive(Debug, Clone)]
pub struct Events {
    queue: mpsc::Sender<Envelope>,
    waiting: Arc<watch::Sender<usize>>,
    namespace: Arc<str>,
}

/// The end of the queue that [`Queue::forward`] empties.
#[derive(Debug)]
pub struct Queue {
    queue: mpsc::Receiver<Envelope>,
    waiting: Arc<watch::Sender<usize>>,
}

impl Events {
    /// A queue for the events of one namespace.
    #[must_use]
    pub fn new(namespace: &str) -> (Self, Queue) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let waiting = Arc::new(watch::Sender::new(0));
        let events = Self {
            queue: sender,
            waiting: Arc::clone(&waiting),
            namespace: namespace.into(),
        };
        (events, Queue { queue, waiting })
    }

    /// Queues an event.
    pub fn send<E: Event>(&self, event: &E) {
        let Ok(value) = event.write_to_bytes() else {
            tracing::error!(topic = E::TOPIC, "an event does not encode");
            return;
        };
        let type_url = format!("containerd.events.{}", E::NAME);
        let envelope = Envelope {
            timestamp: MessageField::some(Timestamp::now()),
            namespace: self.namespace.to_string(),
            topic: E::TOPIC.into(),
            event: MessageField::some(Any {
                type_url,
                value,
                ..Any::default()
            }),
            ..Envelope::default()
        };
        self.waiting.send_modify(|n| *n += 1);
        if self.queue.try_send(envelope).is_err() {
            self.waiting.send_modify(|n| *n -= 1);
            tracing::error!(
                topic = E::TOPIC,
                "event lost: {QUEUE} others wait for containerd"
            );
        }
    }

    /// Waits until every event has been delivered, at most `limit`.
    pub async fn flush(&self, limit: Duration) {
        let mut waiting = self.waiting.subscribe();
        let _ = tokio::time::timeout(limit, waiting.wait_for(|n| *n == 0)).await;
    }
}

impl Queue {
    /// Delivers events for ever. `address` is containerd's ttrpc socket; with an empty one
    /// events are dropped.
    pub async fn forward(mut self, address: String) {
        let mut connection = Connection::new(address);
        while let Some(envelope) = self.queue.recv().await {
            connection.deliver(envelope).await;
            self.waiting.send_modify(|n| *n -= 1);
        }
    }

    /// The next event, for tests of what sends them.
    pub async fn next(&mut self) -> Option<Envelope> {
        let envelope = self.queue.recv().await;
        self.waiting.send_modify(|n| *n = n.saturating_sub(1));
        envelope
    }
}

struct Connection {
    address: String,
    client: Option<EventsClient>,
}

impl Connection {
    fn new(address: String) -> Self {
        let address = match address.as_str() {
            "" => String::new(),
            known if known.contains("://") => address,
            path => format!("unix://{path}"),
        };
        Self {
            address,
            client: None,
        }
    }

    async fn deliver(&mut self, envelope: Envelope) {
        if self.address.is_empty() {
            return;
        }
        let topic = envelope.topic.clone();
        let request = ForwardRequest {
            envelope: MessageField::some(envelope),
            ..ForwardRequest::default()
        };
        let mut backoff = Duration::from_millis(50);
        loop {
            match self.attempt(&request).await {
                Ok(()) => return,
                Err(ttrpc::Error::RpcStatus(status)) => {
                    tracing::error!(
                        topic,
                        message = status.message,
                        "containerd refused an event"
                    );
                    return;
                }
                Err(error) => tracing::warn!(topic, %error, "cannot deliver an event yet"),
            }
            self.client = None;
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    async fn attempt(&mut self, request: &ForwardRequest) -> ttrpc::Result<()> {
        if self.client.is_none() {
            let client = Client::connect(&self.address).await?;
            self.client = Some(EventsClient::new(client));
        }
        let Some(client) = &self.client else {
            return Ok(());
        };
        let call = client.forward(context::Context::default(), request);
        match tokio::time::timeout(FORWARD, call).await {
            Ok(answer) => answer.map(drop),
            Err(_) => Err(ttrpc::Error::Others("no answer in time".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_event_carries_its_topic_type_and_namespace() {
        let (events, mut queue) = Events::new("k8s.io");
        events.send(&TaskOOM {
            container_id: "c".into(),
            ..TaskOOM::default()
        });
        let envelope = queue.next().await.unwrap();
        assert_eq!(envelope.topic, "/tasks/oom");
        assert_eq!(envelope.namespace, "k8s.io");
        assert_eq!(envelope.event.type_url, "containerd.events.TaskOOM");
        let event = TaskOOM::parse_from_bytes(&envelope.event.value).unwrap();
        assert_eq!(event.container_id, "c");
    }

    #[tokio::test]
    async fn flush_waits_for_delivery_and_no_longer_than_told() {
        let (events, queue) = Events::new("n");
        events.send(&TaskOOM::default());
        let started = std::time::Instant::now();
        events.flush(Duration::from_millis(50)).await;
        assert!(started.elapsed() >= Duration::from_millis(50));
        tokio::spawn(queue.forward(String::new()));
        tokio::time::timeout(
            Duration::from_secs(5),
            events.flush(Duration::from_secs(60)),
        )
        .await
        .unwrap();
    }
}
