use std::{
    fs::File,
    io::{Read, Write},
    net::Shutdown,
};

use super::{super::wire::tests::header, fuzzing::Memory, socket::IDLE, *};

fn page(byte: u8, count: usize) -> Vec<u8> {
    vec![byte; count * 4096]
}

fn serve(send: impl FnOnce(TcpStream) + Send + 'static) -> (Result<Received, String>, Memory) {
    let server = PageServer::bind().unwrap();
    let address = server.address();
    let client = std::thread::spawn(move || send(TcpStream::connect(address).unwrap()));
    let mut images = Memory::default();
    let result = server.serve(std::process::id(), None, &mut images);
    client.join().unwrap();
    (result.map_err(|e| e.to_string()), images)
}

#[test]
fn two_processes_and_a_segment_arrive_whole_in_both_layouts() {
    for wide in [false, true] {
        let (received, images) = serve(move |mut s| {
            let mut answer = [9; 1];
            for (dst, byte) in [(1 << 8 | 1, 1_u8), (2 << 8 | 1, 2), (7 << 8 | 2, 3)] {
                s.write_all(&header(wide, 4, 0, 0, dst)).unwrap();
                s.read_exact(&mut answer).unwrap();
                assert_eq!(answer, [0]);
                for (vaddr, count) in [(0x1000, 1), (0x9000, 7)] {
                    s.write_all(&header(wide, 4 << 16 | 6, count, vaddr, dst))
                        .unwrap();
                    s.write_all(&page(byte, count as usize)).unwrap();
                }
                // A run without data: lazily restored memory, flagged but absent.
                s.write_all(&header(wide, 2 << 16 | 6, 3, 0x90000, dst))
                    .unwrap();
            }
            s.write_all(&header(wide, 0x1023, 0, 0, 0)).unwrap();
            let mut status = [9; 4];
            s.read_exact(&mut status).unwrap();
            assert_eq!(status, [0; 4]);
        });
        let received = received.unwrap();
        let names: Vec<_> = received.pagemaps.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(
            names,
            ["pagemap-1.img", "pagemap-2.img", "pagemap-shmem-7.img"]
        );
        assert_eq!(received.bytes, 3 * 8 * 4096);
        let expected: Vec<_> = (1..=3)
            .map(|n| (format!("pages-{n}.img"), page(n as u8, 8)))
            .collect();
        assert_eq!(images.0, expected);
    }
}

#[test]
fn a_connection_that_ends_early_is_an_incomplete_dump() {
    let (received, _) = serve(|mut s| {
        s.write_all(&header(true, 4, 0, 0, 257)).unwrap();
        s.write_all(&header(true, 4 << 16 | 6, 2, 0, 257)).unwrap();
        s.write_all(&page(1, 1)).unwrap();
        s.shutdown(Shutdown::Write).unwrap();
        let _ = s.read(&mut [0; 8]);
    });
    assert!(
        received
            .unwrap_err()
            .contains("before the dump was complete")
    );
}

#[test]
fn a_store_that_fails_ends_the_connection() {
    struct Full;
    impl PageImages for Full {
        fn pages(&mut self, _: &str) -> io::Result<Box<dyn Pages + '_>> {
            Err(io::ErrorKind::StorageFull.into())
        }
    }
    let server = PageServer::bind().unwrap();
    let address = server.address();
    let client = std::thread::spawn(move || {
        let mut s = TcpStream::connect(address).unwrap();
        s.write_all(&header(true, 4, 0, 0, 257)).unwrap();
        s.read_exact(&mut [0]).unwrap();
        s.write_all(&header(true, 4 << 16 | 6, 1 << 20, 0, 257))
            .unwrap();
        // More than any socket buffer holds: it must fail, not wait for a reader.
        (0..1 << 14).any(|_| s.write_all(&page(1, 1)).is_err())
    });
    let result = server.serve(std::process::id(), None, &mut Full);
    assert!(
        matches!(result, Err(PageServerError::Store(_))),
        "{result:?}"
    );
    assert!(client.join().unwrap());
}

#[test]
fn cancelling_closes_the_connection_under_the_client() {
    let server = PageServer::bind().unwrap();
    let (address, line) = (server.address(), server.line());
    let client = std::thread::spawn(move || {
        let mut s = TcpStream::connect(address).unwrap();
        s.write_all(&header(false, 4, 0, 0, 257)).unwrap();
        s.read_exact(&mut [0]).unwrap();
        line.cancel();
        s.read(&mut [0]).unwrap_or(0)
    });
    let result = server.serve(std::process::id(), None, &mut Memory::default());
    assert!(
        matches!(result, Err(PageServerError::Cancelled)),
        "{result:?}"
    );
    assert_eq!(client.join().unwrap(), 0);
}

#[test]
fn the_answer_to_a_corked_farewell_goes_out_when_the_log_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("dump.log");
    let server = PageServer::bind().unwrap();
    let (address, written) = (server.address(), log.clone());
    let client = std::thread::spawn(move || {
        let mut s = TcpStream::connect(address).unwrap();
        s.write_all(&header(true, 4, 0, 0, 257)).unwrap();
        s.read_exact(&mut [0]).unwrap();
        std::fs::write(&written, "(00.1) Disconnect from the ").unwrap();
        std::thread::sleep(IDLE * 5);
        let mut log = File::options().append(true).open(&written).unwrap();
        log.write_all(b"page server\n").unwrap();
        // The command is held back until the answer is here, as cork does.
        s.read_exact(&mut [0; 4]).unwrap();
        s.write_all(&header(true, 0x1023, 0, 0, 0)).unwrap();
        s.shutdown(Shutdown::Write).unwrap();
        s.read(&mut [0; 8]).unwrap()
    });
    let result = server.serve(std::process::id(), Some(log), &mut Memory::default());
    assert!(result.is_ok(), "{result:?}");
    assert_eq!(client.join().unwrap(), 0, "one answer, not two");
}

#[test]
fn an_early_answer_does_not_make_a_dump_complete() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("dump.log");
    std::fs::write(&log, "Disconnect from the page server").unwrap();
    let server = PageServer::bind().unwrap();
    let address = server.address();
    let client = std::thread::spawn(move || {
        let mut s = TcpStream::connect(address).unwrap();
        s.write_all(&header(true, 4, 0, 0, 257)).unwrap();
        s.read_exact(&mut [0; 5]).unwrap();
    });
    let result = server.serve(std::process::id(), Some(log), &mut Memory::default());
    assert!(
        matches!(result, Err(PageServerError::Incomplete)),
        "{result:?}"
    );
    client.join().unwrap();
}

#[test]
fn a_process_of_somebody_else_is_not_accepted() {
    let server = PageServer::bind().unwrap();
    let (address, line) = (server.address(), server.line());
    let client = std::thread::spawn(move || {
        let mut s = TcpStream::connect(address).unwrap();
        let n = s.read(&mut [0]).unwrap_or(0); // closed by the server
        line.cancel();
        n
    });
    // Nothing descends from this test's own child-less thread group but itself: name a
    // pid that is not an ancestor of the client.
    let result = server.serve(u32::MAX, None, &mut Memory::default());
    assert!(
        matches!(result, Err(PageServerError::Cancelled)),
        "{result:?}"
    );
    assert_eq!(client.join().unwrap(), 0);
}
