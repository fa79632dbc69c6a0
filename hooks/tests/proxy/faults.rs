//! Ends before the end, on every side.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use h2::Reason;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::Notify,
};

use crate::ends::{Between, FUTURE, ask, echo, head, ok, read, request, soon};

/// Tells when a call has ended, also with its connection.
struct Gone(Arc<Notify>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[tokio::test]
async fn what_a_client_takes_back_is_taken_back_from_containerd() {
    let between = Between::start();
    let (begun, reset) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (b, r) = (begun.clone(), reset.clone());
    between.containerd(move |request, mut respond| {
        let (b, gone) = (b.clone(), Gone(r.clone()));
        async move {
            let (_request, _gone) = (request, gone);
            b.notify_one();
            let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            assert_eq!(reason.unwrap(), Reason::CANCEL);
        }
    });
    let sender = between.connect().await;
    let mut ready = sender.ready().await.unwrap();
    let (response, mut stream) = ready.send_request(request(FUTURE), false).unwrap();
    stream.send_data(Bytes::from_static(b"x"), true).unwrap();
    soon(begun.notified()).await;
    stream.send_reset(Reason::CANCEL);
    drop(response);
    soon(reset.notified()).await;
    // When the client goes as a whole, so does its connection to containerd.
    let other = between.connect().await;
    let call = tokio::spawn(async move { ask(&other, FUTURE, b"x").await });
    soon(begun.notified()).await;
    call.abort();
    soon(reset.notified()).await;
}

#[tokio::test]
async fn a_stream_that_containerd_resets_is_reset_for_the_same_reason() {
    let between = Between::start();
    between.containerd(|request, mut respond| async move {
        if request.headers().contains_key("late") {
            let mut stream = head(&mut respond);
            stream
                .send_data(Bytes::from_static(b"some"), false)
                .unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            stream.send_reset(Reason::REFUSED_STREAM);
        } else {
            respond.send_reset(Reason::REFUSED_STREAM);
        }
    });
    let sender = between.connect().await;
    let error = ask(&sender, FUTURE, b"x").await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::REFUSED_STREAM), "{error}");
    let mut late = request(FUTURE);
    late.headers_mut().insert("late", "1".parse().unwrap());
    let mut ready = sender.ready().await.unwrap();
    let (response, _stream) = ready.send_request(late, true).unwrap();
    let mut body = soon(response).await.unwrap().into_body();
    let error = read(&mut body).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::REFUSED_STREAM), "{error}");
}

#[tokio::test]
async fn without_containerd_a_call_is_unavailable_and_with_it_works_again() {
    let between = Between::start();
    let sender = between.connect().await;
    let unavailable = |response: http::Response<h2::RecvStream>| {
        assert_eq!(response.headers()["grpc-status"], "14");
        response.headers()["grpc-message"]
            .to_str()
            .unwrap()
            .to_owned()
    };
    let text = unavailable(ask(&sender, FUTURE, b"x").await.unwrap());
    assert!(text.contains("containerd"), "{text}");
    for _ in 0..3 {
        let containerd = between.containerd(echo);
        let response = ask(&sender, FUTURE, b"here").await.unwrap();
        let (data, _) = read(&mut response.into_body()).await.unwrap();
        assert_eq!(data, b"here");
        containerd.abort();
        assert!(containerd.await.unwrap_err().is_cancelled());
        unavailable(ask(&sender, FUTURE, b"x").await.unwrap());
    }
    let text = between.metrics.text();
    assert!(
        text.contains("kybernate_cri_containerd_away_total 4"),
        "{text}"
    );
}

#[tokio::test]
async fn a_containerd_that_dies_during_a_call_makes_it_unavailable() {
    let between = Between::start();
    let begun = Arc::new(Notify::new());
    let b = begun.clone();
    let containerd = between.containerd(move |request, mut respond| {
        let b = b.clone();
        async move {
            let answered = request.headers().contains_key("late");
            let stream = answered.then(|| head(&mut respond));
            b.notify_one();
            std::future::pending::<()>().await;
            drop(stream);
        }
    });
    let sender = between.connect().await;
    let waiting = tokio::spawn({
        let sender = sender.clone();
        async move { ask(&sender, FUTURE, b"x").await }
    });
    soon(begun.notified()).await;
    let mut late = request(FUTURE);
    late.headers_mut().insert("late", "1".parse().unwrap());
    let mut ready = sender.ready().await.unwrap();
    let (response, _stream) = ready.send_request(late, true).unwrap();
    let mut streaming = soon(response).await.unwrap().into_body();
    containerd.abort();
    let response = soon(waiting).await.unwrap().unwrap();
    assert_eq!(response.headers()["grpc-status"], "14");
    let (_, trailers) = read(&mut streaming).await.unwrap();
    assert_eq!(trailers.unwrap()["grpc-status"], "14");
}

#[tokio::test]
async fn a_drain_lets_calls_end_and_cuts_streams_that_do_not() {
    let between = Between::start();
    let finish = Arc::new(Notify::new());
    let f = finish.clone();
    between.containerd(move |request, mut respond| {
        let f = f.clone();
        async move {
            if request.headers().contains_key("endless") {
                let _stream = head(&mut respond);
                std::future::pending::<()>().await;
            }
            f.notified().await;
            echo(request, respond).await;
        }
    });
    let sender = between.connect().await;
    let mut endless = request(FUTURE);
    endless
        .headers_mut()
        .insert("endless", "1".parse().unwrap());
    let mut ready = sender.clone().ready().await.unwrap();
    let (response, _stream) = ready.send_request(endless, true).unwrap();
    let mut events = soon(response).await.unwrap().into_body();
    let waiting = tokio::spawn({
        let sender = sender.clone();
        async move { ask(&sender, FUTURE, b"last").await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    between.drain.cancel();
    tokio::time::sleep(Duration::from_millis(50)).await;
    finish.notify_one();
    let response = soon(waiting).await.unwrap().unwrap();
    let (data, _) = read(&mut response.into_body()).await.unwrap();
    assert_eq!(data, b"last");
    between.cut.cancel();
    let (_, trailers) = read(&mut events).await.unwrap();
    assert_eq!(trailers.unwrap()["grpc-status"], "14");
    // The connection was told to go, and takes no more.
    assert!(ask(&sender, FUTURE, b"x").await.is_err());
}

#[tokio::test]
async fn who_has_just_connected_makes_a_call_also_during_a_drain() {
    let between = Between::start();
    between.containerd(echo);
    let sender = between.connect().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    between.drain.cancel();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let response = ask(&sender, FUTURE, b"first").await.unwrap();
    let (data, _) = read(&mut response.into_body()).await.unwrap();
    assert_eq!(data, b"first");
    assert!(ask(&sender, FUTURE, b"second").await.is_err());
}

/// As long as it goes on: between an answer's head and its end there may be a moment.
#[tokio::test]
async fn an_answer_that_has_begun_is_not_cut_short() {
    let between = Between::start();
    between.containerd(|_, mut respond| async move {
        let mut stream = head(&mut respond);
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let _ = stream.send_data(Bytes::from_static(b"part"), false);
        }
        let _ = stream.send_trailers(ok());
    });
    let sender = between.connect().await;
    let response = ask(&sender, FUTURE, b"x").await.unwrap();
    between.drain.cancel();
    between.cut.cancel();
    let (data, trailers) = read(&mut response.into_body()).await.unwrap();
    assert_eq!(data, b"partpartpartpart");
    assert_eq!(trailers, Some(ok()));
}

#[tokio::test]
async fn nonsense_ends_its_own_connection_alone() {
    let between = Between::start();
    between.containerd(echo);
    let sender = between.connect().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let cases: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        // A frame longer than allowed; DATA on a stream that does not exist; broken HPACK.
        &[preface.as_slice(), &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat(),
        &[preface.as_slice(), &[0, 0, 1, 0, 0, 0, 0, 0, 1, 7]].concat(),
        &[preface.as_slice(), &[0, 0, 2, 1, 5, 0, 0, 0, 1, 0xff, 0xff]].concat(),
    ];
    for nonsense in cases {
        let mut stream = UnixStream::connect(between.dir.path().join("cri"))
            .await
            .unwrap();
        stream.write_all(nonsense).await.unwrap();
        let mut rest = Vec::new();
        soon(stream.read_to_end(&mut rest)).await.ok();
    }
    // One that says nothing, and one that stops in the middle of the preface.
    let _silent = UnixStream::connect(between.dir.path().join("cri"))
        .await
        .unwrap();
    let mut half = UnixStream::connect(between.dir.path().join("cri"))
        .await
        .unwrap();
    half.write_all(&preface[..9]).await.unwrap();
    half.shutdown().await.unwrap();
    let mut rest = Vec::new();
    soon(half.read_to_end(&mut rest)).await.unwrap();
    let response = ask(&sender, FUTURE, b"well").await.unwrap();
    let (data, _) = read(&mut response.into_body()).await.unwrap();
    assert_eq!(data, b"well");
}

#[tokio::test]
async fn what_can_be_no_checkpoint_request_is_refused_here() {
    let between = Between::start();
    between.containerd(echo);
    let sender = between.connect().await;
    const PATH: &str = "/runtime.v1.RuntimeService/CheckpointContainer";
    let cases: [(&[u8], &str); 4] = [
        (b"", "3"),
        (b"\x01\0\0\0\0", "12"),
        (b"\0\0\0\0\x02\xff\xff", "3"),
        (&[0; 100_000], "3"),
    ];
    for (body, code) in cases {
        let response = ask(&sender, PATH, body).await.unwrap();
        assert_eq!(
            response.headers()["grpc-status"],
            code,
            "{:?}",
            response.headers()
        );
    }
}
