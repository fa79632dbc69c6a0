//! The connections of a trigger socket. A container may be hostile: it gets few connections,
//! short lines and slow answers, and costs the shim next to nothing.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream, unix::OwnedReadHalf},
    sync::broadcast,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    Trigger,
    protocol::{Event, LONGEST_LINE, Reply, Request, line, parse},
};

/// Connections at once.
const MOST: usize = 8;
/// Between two connections that are accepted, and two lines that are answered.
const PACE: Duration = Duration::from_millis(10);

/// Accepts until it is stopped, and ends every connection before it returns.
pub(super) async fn accept(trigger: Arc<Trigger>, listener: UnixListener, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < MOST => match accepted {
                Ok((stream, _)) => {
                    let number = {
                        let mut state = trigger.state();
                        state.connections += 1;
                        state.connections
                    };
                    connections.spawn(serve(Arc::clone(&trigger), number, stream));
                    tokio::time::sleep(PACE).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection of a container");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
}

/// Serves one connection. Its end, by whatever side, is not worth a word.
async fn serve(trigger: Arc<Trigger>, number: u64, stream: UnixStream) {
    let _known = Known {
        trigger: &trigger,
        number,
    };
    let _ = converse(&trigger, number, stream).await;
}

async fn converse(trigger: &Arc<Trigger>, number: u64, stream: UnixStream) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = Lines {
        read,
        buffer: Vec::new(),
    };
    let mut events: Option<broadcast::Receiver<Event>> = None;
    loop {
        let text = tokio::select! {
            event = next(&mut events) => {
                write.write_all(&line(&event)).await?;
                continue;
            }
            text = lines.next() => match text? {
                Some(text) => text,
                None => return Ok(()),
            }
        };
        match parse(&text) {
            Ok(Request::Checkpoint {}) => {
                let reply = trigger.ask();
                write.write_all(&line(&reply)).await?;
                if reply.ok && events.is_none() {
                    return Ok(());
                }
            }
            Ok(Request::Watch {}) => {
                let (receiver, missed) = trigger.watch(number);
                events = Some(receiver);
                write.write_all(&line(&Reply::done())).await?;
                for event in missed {
                    write.write_all(&line(&event)).await?;
                }
            }
            Ok(Request::Ready {}) => {
                write.write_all(&line(&Reply::done())).await?;
                trigger.ready(number);
            }
            Err(error) => {
                let reply = Reply::refused(format!("the line does not parse: {error}"));
                write.write_all(&line(&reply)).await?;
            }
        }
        tokio::time::sleep(PACE).await;
    }
}

/// The next event, or nothing for ever where nobody watches.
async fn next(events: &mut Option<broadcast::Receiver<Event>>) -> Event {
    loop {
        match events {
            None => std::future::pending::<()>().await,
            Some(receiver) => match receiver.recv().await {
                Ok(event) => return event,
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => *events = None,
            },
        }
    }
}

/// A connection that the trigger knows of while it lasts.
struct Known<'a> {
    trigger: &'a Trigger,
    number: u64,
}

impl Drop for Known<'_> {
    fn drop(&mut self) {
        self.trigger.forget(self.number);
    }
}

struct Lines {
    read: OwnedReadHalf,
    buffer: Vec<u8>,
}

impl Lines {
    /// The next line without its end; `None` at the end. Nothing is lost when it is dropped.
    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let mut text: Vec<u8> = self.buffer.drain(..=end).collect();
                text.pop();
                return Ok(Some(text));
            }
            if self.buffer.len() > LONGEST_LINE {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if self.read.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Weak, time::Instant};

    use tokio::io::{AsyncBufReadExt, BufReader};

    use super::*;

    struct Client(BufReader<UnixStream>);

    impl Client {
        async fn connect(directory: &std::path::Path) -> io::Result<Self> {
            let stream = UnixStream::connect(directory.join("trigger.sock")).await?;
            Ok(Self(BufReader::new(stream)))
        }

        async fn send(&mut self, text: &str) {
            let text = format!("{text}\n");
            self.0.get_mut().write_all(text.as_bytes()).await.unwrap();
        }

        /// The next line; empty at the end.
        async fn line(&mut self) -> String {
            let mut text = String::new();
            // A reset is an end, too.
            let _ = self.0.read_line(&mut text).await;
            text.trim_end().to_owned()
        }
    }

    fn trigger(patience: Duration) -> (tempfile::TempDir, Arc<Trigger>) {
        let dir = tempfile::tempdir().unwrap();
        let trigger = Trigger::new(Weak::new(), dir.path().into(), patience);
        trigger.open().unwrap();
        (dir, trigger)
    }

    #[tokio::test]
    async fn one_that_watches_is_told_and_hung_up_on_and_told_again() {
        let (dir, trigger) = trigger(Duration::from_secs(20));
        let mut client = Client::connect(dir.path()).await.unwrap();
        client.send(r#"{"op":"watch"}"#).await;
        assert_eq!(client.line().await, r#"{"ok":true}"#);
        let begun = {
            let trigger = Arc::clone(&trigger);
            tokio::spawn(async move { trigger.begin("c1".into(), false).await })
        };
        assert_eq!(
            client.line().await,
            r#"{"event":"quiesce","checkpoint":"c1","timeout_ms":20000}"#
        );
        assert!(!begun.is_finished());
        client.send(r#"{"op":"ready"}"#).await;
        begun.await.unwrap();
        while !client.line().await.is_empty() {}
        assert!(Client::connect(dir.path()).await.is_err());
        assert_eq!(trigger.notice(), None);

        trigger.resume();
        let mut client = Client::connect(dir.path()).await.unwrap();
        client.send(r#"{"op":"watch"}"#).await;
        assert_eq!(client.line().await, r#"{"ok":true}"#);
        assert_eq!(
            client.line().await,
            r#"{"event":"resume","checkpoint":"c1","restored":false}"#
        );
        trigger.end(Err("no space".into()));
        assert_eq!(
            client.line().await,
            r#"{"event":"end","checkpoint":"c1","ok":false,"error":"no space"}"#
        );
        trigger.close().await;
    }

    #[tokio::test]
    async fn one_that_never_gets_ready_holds_nothing_up_and_is_noted() {
        let (dir, trigger) = trigger(Duration::from_millis(300));
        let mut client = Client::connect(dir.path()).await.unwrap();
        client.send(r#"{"op":"watch"}"#).await;
        client.line().await;
        let started = Instant::now();
        trigger.begin("c1".into(), false).await;
        assert!(started.elapsed() >= Duration::from_millis(300));
        assert!(trigger.notice().unwrap().contains("did not get ready"));
        trigger.end(Ok(None));

        // One that is frozen, and one that has gone, are not waited for.
        let mut client = Client::connect(dir.path()).await.unwrap();
        client.send(r#"{"op":"watch"}"#).await;
        client.line().await;
        let started = Instant::now();
        trigger.begin("c2".into(), true).await;
        assert_eq!(trigger.notice(), None);
        trigger.end(Ok(None));
        let client = Client::connect(dir.path()).await.unwrap();
        drop(client);
        trigger.begin("c3".into(), false).await;
        assert!(started.elapsed() < Duration::from_millis(250));
    }

    #[tokio::test]
    async fn nonsense_is_answered_and_floods_are_hung_up_on() {
        let (dir, trigger) = trigger(Duration::from_secs(1));
        let mut client = Client::connect(dir.path()).await.unwrap();
        client.send("nonsense").await;
        assert!(client.line().await.contains("does not parse"));
        client.send(r#"{"op":"checkpoint"}"#).await;
        assert!(client.line().await.contains("going away"));
        client.send(&"x".repeat(4000)).await;
        assert_eq!(client.line().await, "");
        // More connections than are served wait, and none of them keeps the socket open.
        let mut idle = Vec::new();
        for _ in 0..MOST + 3 {
            idle.push(Client::connect(dir.path()).await.unwrap());
        }
        trigger.shut().await;
        for client in &mut idle {
            assert_eq!(client.line().await, "");
        }
        // A checkpoint that ends after its container opens nothing.
        trigger.end(Err("gone".into()));
        assert!(Client::connect(dir.path()).await.is_err());
    }
}
