//! What goes in comes out.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};

use crate::ends::{Between, FUTURE, ask, echo, head, ok, read, request, send, soon};

#[tokio::test]
async fn heads_bodies_and_trailers_pass_as_they_are() {
    let between = Between::start();
    let seen = Arc::new(Mutex::new(None));
    let keep = seen.clone();
    between.containerd(move |request, respond| {
        let (parts, body) = request.into_parts();
        *keep.lock().unwrap() = Some((
            parts.method.clone(),
            parts.uri.clone(),
            parts.headers.clone(),
        ));
        echo(Request::from_parts(parts, body), respond)
    });
    let sender = between.connect().await;
    let response = ask(&sender, FUTURE, b"\0\0\0\0\x03abc").await.unwrap();
    let (parts, mut body) = response.into_parts();
    let (data, trailers) = read(&mut body).await.unwrap();
    assert_eq!(data, b"\0\0\0\0\x03abc");
    assert_eq!(trailers, Some(ok()));
    // Neither a date nor a length was added, on either side.
    let names: Vec<_> = parts.headers.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["content-type", "x-of-containerd"]);
    let (method, uri, headers) = seen.lock().unwrap().take().unwrap();
    let sent = request(FUTURE);
    assert_eq!((&method, uri.path()), (sent.method(), FUTURE));
    assert_eq!(uri.authority().unwrap(), "localhost");
    assert_eq!(&headers, sent.headers());
}

#[tokio::test]
async fn an_error_without_a_body_stays_one() {
    let between = Between::start();
    between.containerd(|_, mut respond| async move {
        let head = Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", "12")
            .header("grpc-message", "unknown method CheckpointPod");
        respond.send_response(head.body(()).unwrap(), true).unwrap();
    });
    let sender = between.connect().await;
    let response = ask(&sender, FUTURE, b"").await.unwrap();
    let (parts, body) = response.into_parts();
    assert!(body.is_end_stream(), "headers alone");
    assert_eq!(parts.headers["grpc-status"], "12");
    assert_eq!(
        parts.headers["grpc-message"],
        "unknown method CheckpointPod"
    );
    assert_eq!(parts.headers.len(), 3);
    let text = between.metrics.text();
    let counted = r#"kybernate_cri_calls_total{method="other",code="UNIMPLEMENTED"} 1"#;
    soon(async {
        while !between.metrics.text().contains(counted) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(!text.contains("CheckpointPod"));
}

#[tokio::test]
async fn sixteen_mebibytes_pass_both_ways() {
    let between = Between::start();
    between.containerd(echo);
    let sender = between.connect().await;
    let mut sender = sender.ready().await.unwrap();
    let (response, mut stream) = sender.send_request(request(FUTURE), false).unwrap();
    let data: Bytes = (0..17u32 << 20)
        .map(|n| (n / 7) as u8)
        .collect::<Vec<_>>()
        .into();
    let sent = data.clone();
    tokio::spawn(async move {
        send(&mut stream, sent).await;
        let _ = stream.send_data(Bytes::new(), true);
    });
    let mut body = soon(response).await.unwrap().into_body();
    let (back, trailers) = read(&mut body).await.unwrap();
    assert!(back == data, "{} bytes of {}", back.len(), data.len());
    assert_eq!(trailers, Some(ok()));
}

#[tokio::test]
async fn both_sides_of_a_stream_go_on_by_themselves() {
    let between = Between::start();
    between.containerd(echo);
    let sender = between.connect().await;
    let mut sender = sender.ready().await.unwrap();
    let (response, mut stream) = sender.send_request(request(FUTURE), false).unwrap();
    let mut body = soon(response).await.unwrap().into_body();
    for round in 0..3u8 {
        stream
            .send_data(Bytes::from(vec![round; 9]), false)
            .unwrap();
        let data = soon(body.data()).await.unwrap().unwrap();
        assert_eq!(data, vec![round; 9]);
    }
    // Our half ends; the other's does when it has heard of it.
    stream.send_data(Bytes::new(), true).unwrap();
    assert_eq!(read(&mut body).await.unwrap(), (vec![], Some(ok())));
}

#[tokio::test]
async fn an_answer_may_come_before_the_end_of_the_request() {
    let between = Between::start();
    between.containerd(|request, mut respond| async move {
        let mut stream = head(&mut respond);
        stream.send_trailers(ok()).unwrap();
        drop(request);
    });
    let sender = between.connect().await;
    let mut sender = sender.ready().await.unwrap();
    let (response, _stream) = sender.send_request(request(FUTURE), false).unwrap();
    let mut body = soon(response).await.unwrap().into_body();
    assert_eq!(read(&mut body).await.unwrap(), (vec![], Some(ok())));
}

#[tokio::test]
async fn thousands_of_calls_at_once_all_pass() {
    let between = Between::start();
    between.containerd(echo);
    let sender = between.connect().await;
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..4000u32 {
        let sender = sender.clone();
        calls.spawn(async move {
            let response = ask(&sender, FUTURE, &n.to_be_bytes()).await.unwrap();
            let (data, trailers) = read(&mut response.into_body()).await.unwrap();
            assert_eq!(data, n.to_be_bytes());
            assert_eq!(trailers, Some(ok()));
        });
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn slow_readers_hold_up_nobody_else() {
    let between = Between::start();
    between.containerd(echo);
    let slow = between.connect().await;
    let mut ready = slow.clone().ready().await.unwrap();
    // It sends much and reads nothing.
    let (_response, mut stream) = ready.send_request(request(FUTURE), false).unwrap();
    tokio::spawn(async move { send(&mut stream, vec![1; 8 << 20].into()).await });
    for sender in [slow, between.connect().await] {
        let response = ask(&sender, FUTURE, b"quick").await.unwrap();
        let (data, _) = read(&mut response.into_body()).await.unwrap();
        assert_eq!(data, b"quick");
    }
}
