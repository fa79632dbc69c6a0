//! Frames against a raw trunk, and ttrpc's messages against the runtime's reading rule.

use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    runtime::Runtime,
};

use super::*;

/// Size of the buffer through which ttrpc for Go reads (`bufio.NewReader`).
const GO_BUFFER: usize = 4096;
/// Length of a ttrpc message header.
const MESSAGE_HEADER: usize = 10;

/// Its clock moves only when nothing else can: a deadline never cuts off a write.
fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().unwrap()
}

/// Everything that is written to the trunk, as frames.
async fn frames(mut trunk: DuplexStream) -> Vec<(u32, Vec<u8>)> {
    let mut bytes = Vec::new();
    trunk.read_to_end(&mut bytes).await.unwrap();
    let mut frames = Vec::new();
    let mut rest = &bytes[..];
    while let Some((header, after)) = rest.split_first_chunk::<{ frame::HEADER }>() {
        let (id, length) = frame::decode(*header);
        frames.push((id, after[..length].to_vec()));
        rest = &after[length..];
    }
    assert!(rest.is_empty(), "{} bytes after the last frame", rest.len());
    frames
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// Reads messages as ttrpc for Go does, through the rule of its mux: a read takes one frame
/// whole, or fails when the frame is larger than the buffer of the read.
struct GoReader<'a> {
    frames: std::slice::Iter<'a, Vec<u8>>,
    buffered: Vec<u8>,
}

impl GoReader<'_> {
    fn conn_read(&mut self, capacity: usize) -> Result<Option<Vec<u8>>, String> {
        match self.frames.next() {
            None => Ok(None),
            Some(frame) if frame.len() > capacity => Err(format!(
                "ENOMEM: a frame of {} bytes, room for {capacity}",
                frame.len()
            )),
            Some(frame) => Ok(Some(frame.clone())),
        }
    }

    /// `io.ReadFull` on a `bufio.Reader`: None at the end of the stream.
    fn read_full(&mut self, length: usize) -> Result<Option<Vec<u8>>, String> {
        let mut read = Vec::new();
        while read.len() < length {
            let missing = length - read.len();
            if !self.buffered.is_empty() {
                let count = missing.min(self.buffered.len());
                read.extend(self.buffered.drain(..count));
            } else if missing >= GO_BUFFER {
                match self.conn_read(missing)? {
                    Some(frame) => read.extend(frame),
                    None => return Ok(None),
                }
            } else {
                match self.conn_read(GO_BUFFER)? {
                    Some(frame) => self.buffered = frame,
                    None => return Ok(None),
                }
            }
        }
        Ok(Some(read))
    }

    /// Lengths of the payloads of all messages.
    fn messages(&mut self) -> Result<Vec<usize>, String> {
        let mut lengths = Vec::new();
        while let Some(header) = self.read_full(MESSAGE_HEADER)? {
            let length = u32::from_be_bytes(header[..4].try_into().unwrap()) as usize;
            self.read_full(length)?
                .ok_or("the stream ends within a message")?;
            lengths.push(length);
        }
        Ok(lengths)
    }
}

/// What a ttrpc client writes for requests with payloads of these lengths.
async fn client_frames(lengths: &[usize]) -> Vec<Vec<u8>> {
    let mut mux = Mux::new();
    let conn = mux.open(RUNTIME_SERVICE);
    let (trunk, peer) = tokio::io::duplex(1 << 20);
    let mut trunk = mux.start(trunk);
    let seen = tokio::spawn(frames(peer));
    let client =
        ttrpc::asynchronous::Client::new(ttrpc::asynchronous::transport::Socket::new(conn));
    for length in lengths {
        let request = ttrpc::Request {
            service: "s".into(),
            method: "m".into(),
            payload: pattern(*length),
            timeout_nano: 1_000_000_000,
            ..Default::default()
        };
        // Nobody answers; the request is written all the same.
        let _ = client.request(request).await;
    }
    drop(client);
    trunk.closed().await.unwrap();
    drop(trunk);
    let frames = seen.await.unwrap();
    assert!(frames.iter().all(|(id, _)| *id == RUNTIME_SERVICE));
    frames.into_iter().map(|(_, payload)| payload).collect()
}

#[test]
fn the_runtime_can_read_ttrpc_messages_of_every_size() {
    runtime().block_on(async {
        let lengths = [
            0,
            1,
            4000,
            4070,
            4086,
            4096,
            4097,
            8192,
            100_000,
            (4 << 20) - 100,
        ];
        let frames = client_frames(&lengths).await;
        let read = GoReader {
            frames: frames.iter(),
            buffered: Vec::new(),
        }
        .messages()
        .unwrap();
        assert_eq!(read.len(), lengths.len());
        for (read, sent) in read.iter().zip(lengths) {
            assert!((sent..sent + 40).contains(read), "{read} for {sent}");
        }
    });
}

#[test]
fn the_reading_rule_catches_a_message_in_one_large_frame() {
    let mut message = 5000_u32.to_be_bytes().to_vec();
    message.resize(MESSAGE_HEADER + 5000, 0);
    let whole = [message.clone()];
    let read = |frames: &[Vec<u8>]| {
        GoReader {
            frames: frames.iter(),
            buffered: Vec::new(),
        }
        .messages()
    };
    assert!(read(&whole).unwrap_err().contains("ENOMEM"));
    let split = [message[..GO_BUFFER].to_vec(), message[GO_BUFFER..].to_vec()];
    assert_eq!(read(&split), Ok(vec![5000]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn the_runtime_can_read_any_sequence_of_ttrpc_messages(
        lengths in prop::collection::vec(prop_oneof![0..200_usize, 3900..4300_usize, 0..300_000_usize], 1..6)
    ) {
        let read = runtime().block_on(async {
            let frames = client_frames(&lengths).await;
            GoReader { frames: frames.iter(), buffered: Vec::new() }.messages()
        });
        prop_assert_eq!(read.map(|messages| messages.len()), Ok(lengths.len()));
    }

    #[test]
    fn every_write_is_one_frame(
        writes in prop::collection::vec((0..3_usize, prop_oneof![1..10_usize, 4090..4100_usize, 1..200_000_usize]), 0..20)
    ) {
        let expected: Vec<_> =
            writes.iter().map(|(conn, length)| (*conn as u32 + 1, pattern(*length))).collect();
        let seen = runtime().block_on(async {
            let mut mux = Mux::new();
            let mut conns = [mux.open(1), mux.open(2), mux.open(3)];
            let (trunk, peer) = tokio::io::duplex(777);
            let mut trunk = mux.start(trunk);
            let seen = tokio::spawn(frames(peer));
            for (conn, length) in &writes {
                let written = conns[*conn].write(&pattern(*length)).await.unwrap();
                assert_eq!(written, *length);
            }
            drop(conns);
            trunk.closed().await.unwrap();
            drop(trunk);
            seen.await.unwrap()
        });
        prop_assert!(seen == expected);
    }

    #[test]
    fn frames_of_any_size_in_pieces_of_any_size_are_streams(
        sent in prop::collection::vec((0..5_u32, prop_oneof![0..10_usize, 0..9000_usize, 0..300_000_usize]), 0..12),
        piece in 1..20_000_usize,
        room in 1..100_000_usize,
    ) {
        let streams = runtime().block_on(async {
            let mut mux = Mux::new();
            let (one, two) = (mux.open(1), mux.open(2));
            let (trunk, mut peer) = tokio::io::duplex(room);
            let mut trunk = mux.start(trunk);
            let read = |mut conn: Conn| tokio::spawn(async move {
                let mut all = Vec::new();
                conn.read_to_end(&mut all).await.unwrap();
                all
            });
            let (one, two) = (read(one), read(two));
            let bytes: Vec<u8> =
                sent.iter().flat_map(|(id, length)| frame::encode(*id, &pattern(*length))).collect();
            for part in bytes.chunks(piece) {
                peer.write_all(part).await.unwrap();
            }
            drop(peer);
            trunk.closed().await.unwrap();
            [one.await.unwrap(), two.await.unwrap()]
        });
        for (stream, id) in streams.iter().zip(1..) {
            let expected: Vec<u8> = sent
                .iter()
                .filter(|(to, _)| *to == id)
                .flat_map(|(_, length)| pattern(*length))
                .collect();
            prop_assert!(*stream == expected, "connection {}", id);
        }
    }
}

#[test]
fn messages_over_four_mebibytes_spread_over_frames_arrive_whole() {
    runtime().block_on(async {
        let mut mux = Mux::new();
        let mut conn = mux.open(PLUGIN_SERVICE);
        let (trunk, mut peer) = tokio::io::duplex(1 << 16);
        let _trunk = mux.start(trunk);
        let message = pattern(9 << 20);
        let sent = message.clone();
        tokio::spawn(async move {
            for part in sent.chunks(MAX_PAYLOAD) {
                peer.write_all(&frame::encode(PLUGIN_SERVICE, part))
                    .await
                    .unwrap();
            }
            peer
        });
        let mut read = vec![0; message.len()];
        conn.read_exact(&mut read).await.unwrap();
        assert!(read == message);
    });
}

#[test]
fn what_nobody_reads_is_bounded_and_what_nobody_opened_is_dropped() {
    runtime().block_on(async {
        let mut mux = Mux::new();
        let (mut read, unread) = (mux.open(1), mux.open(2));
        let (trunk, mut peer) = tokio::io::duplex(1024);
        let _trunk = mux.start(trunk);
        // A frame that claims 4 GiB for nobody takes no memory and blocks nobody after it.
        drop(unread);
        peer.write_all(&[0, 0, 0, 2, 0, 1, 0, 0]).await.unwrap();
        peer.write_all(&pattern(1 << 16)).await.unwrap();
        peer.write_all(&frame::encode(7, &pattern(100_000)))
            .await
            .unwrap();
        peer.write_all(&frame::encode(1, b"here")).await.unwrap();
        let mut got = [0; 4];
        read.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"here");
        // Nobody reads now: the sender is held back long before its 64 MiB are in memory.
        let flood = async {
            for _ in 0..64 {
                peer.write_all(&frame::encode(1, &pattern(1 << 20)))
                    .await
                    .unwrap();
            }
        };
        let limit = std::time::Duration::from_millis(300);
        assert!(tokio::time::timeout(limit, flood).await.is_err());
    });
}

#[test]
fn a_trunk_that_ends_within_a_frame_says_what_is_missing() {
    runtime().block_on(async {
        let mut mux = Mux::new();
        let mut conn = mux.open(1);
        let (trunk, mut peer) = tokio::io::duplex(1024);
        let mut trunk = mux.start(trunk);
        peer.write_all(&frame::encode(1, b"whole")[..10])
            .await
            .unwrap();
        drop(peer);
        let error = trunk.closed().await.unwrap_err();
        assert!(
            matches!(error, MuxError::Truncated { id: 1, missing: 3 }),
            "{error}"
        );
        let mut read = Vec::new();
        conn.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"wh");
    });
}

#[test]
fn a_write_that_no_frame_takes_is_refused_and_the_rest_goes_on() {
    runtime().block_on(async {
        let mut mux = Mux::new();
        let mut conn = mux.open(1);
        let (trunk, peer) = tokio::io::duplex(1024);
        let mut trunk = mux.start(trunk);
        let seen = tokio::spawn(frames(peer));
        let error = conn.write(&vec![0; MAX_PAYLOAD + 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        conn.write_all(&pattern(MAX_PAYLOAD)).await.unwrap();
        drop(conn);
        trunk.closed().await.unwrap();
        drop(trunk);
        assert_eq!(seen.await.unwrap().len(), 1);
    });
}
