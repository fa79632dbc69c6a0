//! Flow control from end to end: whoever does not read holds up the one that writes, and between
//! them there is never more than HTTP/2's windows hold.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::SendStream;

use crate::ends::{Between, FUTURE, ask, echo, head, read, request, soon};

/// Nobody has made a step for so long: everything is full.
const STILL: Duration = Duration::from_millis(300);
const CHUNK: usize = 16 << 10;
/// A stream's window at the proxy.
const STREAM: usize = 256 << 10;
/// A connection's window at the proxy.
const CONNECTION: usize = 4 << 20;
/// A stream's window at the client of these tests.
const CLIENT: usize = 1 << 20;
/// The window of a connection where nobody has asked for more.
const DEFAULT: usize = 65_535;

/// Writes up to `limit` bytes, as many as the other side takes, and counts them.
async fn pour(mut stream: SendStream<Bytes>, limit: usize, poured: Arc<AtomicUsize>) {
    let mut left = limit;
    while left > 0 {
        stream.reserve_capacity(CHUNK.min(left));
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
        let Some(Ok(room)) = room else { return };
        let size = room.min(left);
        if stream.send_data(vec![7; size].into(), false).is_err() {
            return;
        }
        left -= size;
        poured.fetch_add(size, Ordering::Relaxed);
    }
    pending().await
}

/// How much was poured when nothing moves any more.
async fn still(poured: &AtomicUsize) -> usize {
    soon(async {
        let mut before = 0;
        loop {
            tokio::time::sleep(STILL).await;
            let now = poured.load(Ordering::Relaxed);
            if now > 0 && now == before {
                return now;
            }
            before = now;
        }
    })
    .await
}

#[tokio::test]
async fn a_request_that_containerd_does_not_read_stops_its_client() {
    let between = Between::start();
    between.containerd(|request, respond| async move {
        let _unread = (request, respond);
        pending().await
    });
    let sender = between.connect().await;
    let mut ready = sender.ready().await.unwrap();
    let (_response, stream) = ready.send_request(request(FUTURE), false).unwrap();
    let poured = Arc::new(AtomicUsize::new(0));
    tokio::spawn(pour(stream, 64 << 20, poured.clone()));
    let taken = still(&poured).await;
    assert!(taken <= STREAM + DEFAULT + 2 * CHUNK, "{taken} bytes");
}

#[tokio::test]
async fn an_answer_that_its_client_does_not_read_stops_containerd() {
    let between = Between::start();
    let poured = Arc::new(AtomicUsize::new(0));
    let count = poured.clone();
    between.containerd(move |_, mut respond| {
        let stream = head(&mut respond);
        pour(stream, 64 << 20, count.clone())
    });
    let sender = between.connect().await;
    let response = ask(&sender, FUTURE, b"x").await.unwrap();
    let taken = still(&poured).await;
    assert!(taken <= CLIENT + STREAM + 2 * CHUNK, "{taken} bytes");
    drop(response);
}

#[tokio::test]
async fn a_thousand_streams_that_nobody_reads_share_the_connections_window() {
    const STREAMS: usize = 1000;
    const EACH: usize = 1 << 20;
    let between = Between::start();
    let poured = Arc::new(AtomicUsize::new(0));
    between.containerd(|request, respond| async move {
        let _unread = (request, respond);
        pending().await
    });
    let sender = between.connect().await;
    let mut responses = Vec::new();
    for _ in 0..STREAMS {
        let mut ready = sender.clone().ready().await.unwrap();
        let (response, stream) = ready.send_request(request(FUTURE), false).unwrap();
        responses.push(response);
        tokio::spawn(pour(stream, EACH, poured.clone()));
    }
    let taken = still(&poured).await;
    // Beside the windows a stream has one frame in hand.
    let most = CONNECTION + DEFAULT + STREAMS * CHUNK;
    assert!(taken <= most, "{taken} bytes of {}", STREAMS * EACH);
}

/// Empty frames count for no window. Before they heap up, the connection that sends them ends.
#[tokio::test]
async fn a_flood_of_empty_frames_ends_its_own_connection_alone() {
    let between = Between::start();
    between.containerd(echo);
    let flood = between.connect().await;
    let mut ready = flood.ready().await.unwrap();
    let (response, mut stream) = ready.send_request(request(FUTURE), false).unwrap();
    for _ in 0..1000 {
        stream.send_data(Bytes::new(), false).unwrap();
    }
    assert!(soon(response).await.is_err());
    let other = between.connect().await;
    let response = ask(&other, FUTURE, b"well").await.unwrap();
    let (data, _) = read(&mut response.into_body()).await.unwrap();
    assert_eq!(data, b"well");
}
