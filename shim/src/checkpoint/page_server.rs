//! The shim as CRIU's page server: memory goes from the dumped processes through one local
//! socket straight into the frames of the archive, and is never an image on disk.
//!
//! One connection is accepted, from a process that this checkpoint's runc started. Cancelling
//! closes it; CRIU then fails in its ordinary way, which removes its parasite from every
//! process and leaves them running. Killing CRIU would not.
//!
//! CRIU corks the socket, so its last command, a few bytes, would arrive only when the kernel's
//! timer of 200 ms has passed, with every process still frozen. CRIU's log says when that
//! command was sent ([`Farewell`]): the answer goes out then, CRIU closes the socket, and that
//! flushes the command. Nothing is taken on trust: the dump counts only if the command arrives.

use std::{
    fs::File,
    io::{self, IoSliceMut, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{
    peer,
    wire::{Command, ImageId, Layout, MAX_HEADER, PAGE_SIZE, WireError},
};
use crate::criu::pagemap::Pagemap;

/// How long CRIU may take from its start to its connection. It freezes and collects the
/// process tree after connecting, so this covers process start alone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
const ACCEPT_POLL: Duration = Duration::from_millis(1);
/// How long to wait for bytes before looking whether CRIU has said its last.
const IDLE: Duration = Duration::from_millis(2);
/// What CRIU logs before its last command (criu/page-xfer.c, disconnect_from_page_server).
const FAREWELL: &[u8] = b"Disconnect from the page server";
/// The answer to the last command: all is well.
const ALL_RECEIVED: [u8; 4] = 0_i32.to_le_bytes();

/// Where the content of `pages-N.img` goes.
pub trait Pages {
    /// Room for the next bytes; never empty.
    fn space(&mut self) -> io::Result<&mut [u8]>;
    /// Says that `n` bytes of [`Self::space`] are filled.
    fn filled(&mut self, n: usize);
    /// Ends the image.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// Opens [`Pages`], one after the other.
pub trait PageImages {
    /// Starts an image of that name.
    fn pages(&mut self, name: &str) -> io::Result<Box<dyn Pages + '_>>;
}

/// Why no complete dump arrived.
#[derive(Debug, thiserror::Error)]
pub enum PageServerError {
    /// No port to listen on.
    #[error("cannot listen on 127.0.0.1 for CRIU's pages: {0}")]
    Listen(#[source] io::Error),
    /// CRIU never came.
    #[error("CRIU did not connect to the page server within {} s", CONNECT_TIMEOUT.as_secs())]
    NoConnection,
    /// The checkpoint was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// CRIU closed the connection before the end.
    #[error("CRIU closed the page connection before the dump was complete")]
    Incomplete,
    /// Bytes that are no command.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The socket failed.
    #[error("reading CRIU's pages: {0}")]
    Socket(#[source] io::Error),
    /// The other side failed: the archive, or the directory.
    #[error("storing CRIU's pages: {0}")]
    Store(#[source] io::Error),
}

/// What arrived.
#[derive(Debug, Default)]
pub struct Received {
    /// `pagemap-*.img` files: name and content.
    pub pagemaps: Vec<(String, Vec<u8>)>,
    /// Bytes of pages.
    pub bytes: u64,
}

/// A listening page server.
#[derive(Debug)]
pub struct PageServer {
    listener: TcpListener,
    address: SocketAddr,
    line: Line,
}

/// Cancels a [`PageServer`] from another thread.
#[derive(Debug, Clone, Default)]
pub struct Line(Arc<Mutex<LineState>>);

#[derive(Debug, Default)]
struct LineState {
    cancelled: bool,
    stream: Option<TcpStream>,
}

impl Line {
    /// Closes the connection, now or as soon as there is one.
    pub fn cancel(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .cancelled = true;
        self.hang_up();
    }

    fn hang_up(&self) {
        let stream = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .stream
            .take();
        if let Some(stream) = stream {
            // An error means that the peer is gone already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn is_cancelled(&self) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .cancelled
    }

    fn hold(&self, stream: &TcpStream) -> io::Result<()> {
        let clone = stream.try_clone()?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).stream = Some(clone);
        Ok(())
    }
}

impl PageServer {
    /// Listens on a free port of the loopback interface.
    pub fn bind() -> Result<Self, PageServerError> {
        let bind = || {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, address) = bind().map_err(PageServerError::Listen)?;
        Ok(Self {
            listener,
            address,
            line: Line::default(),
        })
    }

    /// Where CRIU connects.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A handle that cancels [`Self::serve`].
    #[must_use]
    pub fn line(&self) -> Line {
        self.line.clone()
    }

    /// Receives one dump from a descendant of the process `ancestor`. Blocks; call it on a
    /// thread of its own. `log` is where CRIU writes its log, for an early farewell; a dump that
    /// ends its processes must go without, so that CRIU kills nothing before all is received.
    pub fn serve(
        self,
        ancestor: u32,
        log: Option<PathBuf>,
        images: &mut dyn PageImages,
    ) -> Result<Received, PageServerError> {
        let stream = self.accept(ancestor)?;
        drop(self.listener);
        let line = self.line;
        let peer = Peer {
            stream,
            farewell: log.map(Farewell::new),
            answered: false,
        };
        let result = Session::new(peer, images).and_then(Session::run);
        // The line's own handle would keep the connection open, and CRIU sending into it.
        line.hang_up();
        match result {
            Err(_) if line.is_cancelled() => Err(PageServerError::Cancelled),
            other => other,
        }
    }

    fn accept(&self, ancestor: u32) -> Result<TcpStream, PageServerError> {
        let start = Instant::now();
        loop {
            if self.line.is_cancelled() {
                return Err(PageServerError::Cancelled);
            }
            match self.listener.accept() {
                Ok((stream, from)) => {
                    if peer::belongs_to(from, self.address, ancestor) {
                        stream
                            .set_nonblocking(false)
                            .map_err(PageServerError::Socket)?;
                        self.line.hold(&stream).map_err(PageServerError::Socket)?;
                        return Ok(stream);
                    }
                    tracing::warn!(%from, "a stranger connected to the page server; closed");
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if start.elapsed() > CONNECT_TIMEOUT {
                        return Err(PageServerError::NoConnection);
                    }
                    std::thread::sleep(ACCEPT_POLL);
                }
                Err(e) => return Err(PageServerError::Socket(e)),
            }
        }
    }
}

/// The socket, with an eye on CRIU's log while nothing arrives.
struct Peer {
    stream: TcpStream,
    farewell: Option<Farewell>,
    answered: bool,
}

impl Peer {
    fn read(&mut self, parts: &mut [IoSliceMut<'_>]) -> Result<usize, PageServerError> {
        loop {
            match self.stream.read_vectored(parts) {
                Ok(0) => return Err(PageServerError::Incomplete),
                Ok(n) => return Ok(n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if !self.answered && self.farewell.as_mut().is_some_and(Farewell::is_said) {
                        self.answer(&ALL_RECEIVED)?;
                        self.answered = true;
                    }
                }
                Err(e) => return Err(PageServerError::Socket(e)),
            }
        }
    }

    fn read_exact(&mut self, mut bytes: &mut [u8]) -> Result<(), PageServerError> {
        while !bytes.is_empty() {
            let n = self.read(&mut [IoSliceMut::new(bytes)])?;
            bytes = &mut bytes[n..];
        }
        Ok(())
    }

    fn answer(&mut self, bytes: &[u8]) -> Result<(), PageServerError> {
        self.stream
            .write_all(bytes)
            .map_err(PageServerError::Socket)
    }
}

/// Looks for [`FAREWELL`] in CRIU's log as it grows.
struct Farewell {
    path: PathBuf,
    file: Option<File>,
    /// The end of what was read so far, where the text may have begun.
    tail: Vec<u8>,
}

impl Farewell {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            tail: Vec::new(),
        }
    }

    fn is_said(&mut self) -> bool {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let Some(file) = &mut self.file else {
            return false;
        };
        // A log that can't be read costs the early answer, nothing else.
        let _ = file.read_to_end(&mut self.tail);
        let said = self
            .tail
            .windows(FAREWELL.len())
            .any(|window| window == FAREWELL);
        let keep = self.tail.len().min(FAREWELL.len());
        self.tail.drain(..self.tail.len() - keep);
        said
    }
}

/// One connection: the state between two commands.
struct Session<'a> {
    peer: Peer,
    images: &'a mut dyn PageImages,
    layout: Layout,
    /// The command that comes next, read ahead with the data before it.
    header: [u8; MAX_HEADER],
    received: Received,
}

impl<'a> Session<'a> {
    fn new(mut peer: Peer, images: &'a mut dyn PageImages) -> Result<Self, PageServerError> {
        let stream = &peer.stream;
        stream.set_nodelay(true).map_err(PageServerError::Socket)?;
        stream
            .set_read_timeout(Some(IDLE))
            .map_err(PageServerError::Socket)?;
        let mut header = [0; MAX_HEADER];
        let probe = &mut header[..Layout::PROBE];
        peer.read_exact(probe)?;
        let layout = Layout::probe((&*probe).try_into().expect("PROBE bytes"))?;
        peer.read_exact(&mut header[Layout::PROBE..layout.header_len()])?;
        Ok(Self {
            peer,
            images,
            layout,
            header,
            received: Received::default(),
        })
    }

    fn run(mut self) -> Result<Received, PageServerError> {
        loop {
            match self.command()? {
                Command::Open {
                    image,
                    wants_answer,
                } => {
                    if wants_answer {
                        self.peer.answer(&[0])?;
                    }
                    self.read_header()?;
                    self.receive_image(image)?;
                }
                Command::Parent => {
                    self.peer.answer(&0_i32.to_le_bytes())?;
                    self.read_header()?;
                }
                Command::Add { image, .. } => self.receive_image(image)?,
                Command::Close => {
                    if !self.peer.answered {
                        self.peer.answer(&ALL_RECEIVED)?;
                    }
                    return Ok(self.received);
                }
            }
        }
    }

    /// Takes the runs of one image. Returns at the first command that is not one of its runs,
    /// which is then in `header`.
    fn receive_image(&mut self, image: ImageId) -> Result<(), PageServerError> {
        let id = u32::try_from(self.received.pagemaps.len() + 1).expect("fewer than 2^32 images");
        let mut pagemap = Pagemap::new(id, self.layout.count);
        let mut pages = self
            .images
            .pages(&format!("pages-{id}.img"))
            .map_err(PageServerError::Store)?;
        while let Command::Add {
            image: of,
            vaddr,
            pages: count,
            flags,
            present,
        } = self
            .layout
            .parse(&self.header[..self.layout.header_len()])?
        {
            if of != image {
                break;
            }
            pagemap.push(vaddr, count, flags);
            let bytes = if present { count * PAGE_SIZE } else { 0 };
            let header = &mut self.header[..self.layout.header_len()];
            receive(&mut self.peer, &mut *pages, bytes, header)?;
            self.received.bytes += bytes;
        }
        pages.finish().map_err(PageServerError::Store)?;
        self.received
            .pagemaps
            .push((image.pagemap_name(), pagemap.into_bytes()));
        Ok(())
    }

    fn command(&self) -> Result<Command, PageServerError> {
        Ok(self
            .layout
            .parse(&self.header[..self.layout.header_len()])?)
    }

    fn read_header(&mut self) -> Result<(), PageServerError> {
        let header = &mut self.header[..self.layout.header_len()];
        self.peer.read_exact(header)
    }
}

/// Reads `left` bytes of page data and the header behind them, with one system call where the
/// data fits the frame: memory in small runs would otherwise cost two calls per page.
fn receive(
    peer: &mut Peer,
    pages: &mut dyn Pages,
    mut left: u64,
    header: &mut [u8],
) -> Result<(), PageServerError> {
    let mut in_header = 0;
    while left > 0 {
        let space = pages.space().map_err(PageServerError::Store)?;
        let fits = usize::try_from(left).map_or(space.len(), |left| left.min(space.len()));
        let (data, rest) = (&mut space[..fits], &mut *header);
        let n = if fits as u64 == left {
            peer.read(&mut [IoSliceMut::new(data), IoSliceMut::new(rest)])?
        } else {
            peer.read(&mut [IoSliceMut::new(data)])?
        };
        let taken = n.min(fits);
        pages.filled(taken);
        left -= taken as u64;
        in_header = n - taken;
    }
    peer.read_exact(&mut header[in_header..])
}

#[cfg(test)]
mod tests {
    use super::{super::wire::tests::header, *};

    /// Images kept in memory, with frames of 5000 bytes so that runs cross them.
    #[derive(Default)]
    struct Memory(Vec<(String, Vec<u8>)>);

    struct MemoryPages<'a> {
        out: &'a mut Vec<u8>,
        frame: Vec<u8>,
        used: usize,
    }

    impl PageImages for Memory {
        fn pages(&mut self, name: &str) -> io::Result<Box<dyn Pages + '_>> {
            self.0.push((name.into(), Vec::new()));
            let out = &mut self.0.last_mut().expect("just pushed").1;
            Ok(Box::new(MemoryPages {
                out,
                frame: vec![0; 5000],
                used: 0,
            }))
        }
    }

    impl Pages for MemoryPages<'_> {
        fn space(&mut self) -> io::Result<&mut [u8]> {
            if self.used == self.frame.len() {
                self.out.extend_from_slice(&self.frame);
                self.used = 0;
            }
            Ok(&mut self.frame[self.used..])
        }
        fn filled(&mut self, n: usize) {
            self.used += n;
        }
        fn finish(self: Box<Self>) -> io::Result<()> {
            self.out.extend_from_slice(&self.frame[..self.used]);
            Ok(())
        }
    }

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
}
