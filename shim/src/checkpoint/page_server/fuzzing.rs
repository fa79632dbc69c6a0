//! What somebody sends who is taken for CRIU.

use std::{cell::RefCell, net::Shutdown};

use nix::sys::socket::{setsockopt, sockopt::Linger};
use protobuf::CodedInputStream;

use super::*;
use crate::checkpoint::wire::{Command, Layout, PAGE_SIZE};

/// What a socket takes before anybody reads it.
const LONGEST: usize = 64 << 10;
const PE_PRESENT: u32 = 4;

/// Images kept in memory, with frames of 5000 bytes so that runs cross them.
#[derive(Default)]
pub(super) struct Memory(pub(super) Vec<(String, Vec<u8>)>);

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

/// Everything that came is in one image, in order, and its pagemap says how much; or the dump
/// counts as failed.
pub(crate) fn page_server(data: &[u8]) {
    let data = &data[..data.len().min(LONGEST)];
    let mut images = Memory::default();
    let received = receive(data, &mut images);
    let stored: usize = images.0.iter().map(|(_, content)| content.len()).sum();
    assert!(stored <= data.len());
    let Ok(received) = received else {
        return;
    };
    assert_eq!(received.bytes, stored as u64);
    assert_eq!(received.pagemaps.len(), images.0.len());
    for (number, ((name, content), (_, pagemap))) in
        images.0.iter().zip(&received.pagemaps).enumerate()
    {
        assert_eq!(*name, format!("pages-{}.img", number + 1));
        let (id, pages) = read_pagemap(pagemap);
        assert_eq!(id as usize, number + 1);
        assert_eq!(pages * PAGE_SIZE, content.len() as u64);
    }
    let all: Vec<u8> = images
        .0
        .into_iter()
        .flat_map(|(_, content)| content)
        .collect();
    assert!(all == pages_of(data), "pages got lost or mixed up");
}

fn receive(data: &[u8], images: &mut Memory) -> Result<Received, PageServerError> {
    thread_local! {
        static LISTENER: RefCell<TcpListener> =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port").into();
    }
    let (mut client, server) = LISTENER.with_borrow(|listener| {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    });
    // Ends without a state that keeps the port for a minute.
    let at_once = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    for stream in [&client, &server] {
        setsockopt(stream, Linger, &at_once).unwrap();
    }
    io::Write::write_all(&mut client, data).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    Session::new(Peer::new(server, None), images).and_then(Session::run)
}

/// The pages of a stream that is a whole dump, read the plain way.
fn pages_of(data: &[u8]) -> Vec<u8> {
    let layout = Layout::probe(data.first_chunk().unwrap()).unwrap();
    let mut pages = Vec::new();
    let mut rest = data;
    loop {
        let (header, behind) = rest.split_at(layout.header_len());
        rest = behind;
        match layout.parse(header).unwrap() {
            Command::Close => return pages,
            Command::Add {
                pages: count,
                present: true,
                ..
            } => {
                let (data, behind) = rest.split_at((count * PAGE_SIZE) as usize);
                pages.extend_from_slice(data);
                rest = behind;
            }
            _ => {}
        }
    }
}

/// Id of the pages image and number of pages in it, as CRIU reads them.
fn read_pagemap(image: &[u8]) -> (u32, u64) {
    let (mut id, mut present) = (0, 0);
    let mut rest = &image[8..];
    let mut first = true;
    while !rest.is_empty() {
        let (length, behind) = rest.split_first_chunk().unwrap();
        let (record, behind) = behind.split_at(u32::from_le_bytes(*length) as usize);
        rest = behind;
        let mut fields = [0_u64; 6];
        let mut input = CodedInputStream::from_bytes(record);
        while let Some(tag) = input.read_raw_tag_or_eof().unwrap() {
            fields[(tag >> 3) as usize] = input.read_raw_varint64().unwrap();
        }
        if first {
            id = fields[1] as u32;
        } else if fields[4] as u32 & PE_PRESENT != 0 {
            present += fields[2] + fields[5];
        }
        first = false;
    }
    (id, present)
}

pub(crate) fn dumps() -> Vec<Vec<u8>> {
    let header = |wide: bool, cmd: u32, pages: u64, vaddr: u64, dst: u64| {
        let mut out = cmd.to_le_bytes().to_vec();
        if wide {
            out.extend([0xaa; 4]);
            out.extend(pages.to_le_bytes());
        } else {
            out.extend((pages as u32).to_le_bytes());
        }
        out.extend(vaddr.to_le_bytes());
        out.extend(dst.to_le_bytes());
        out
    };
    [false, true]
        .into_iter()
        .map(|wide| {
            let mut dump = header(wide, 5, 0, 0, 1 << 8 | 1);
            for (dst, byte) in [(1 << 8 | 1, 1), (7 << 8 | 2, 3)] {
                dump.extend(header(wide, 4, 0, 0, dst));
                for count in [1, 2] {
                    let vaddr = 0x1000 << count;
                    dump.extend(header(wide, PE_PRESENT << 16 | 6, count, vaddr, dst));
                    dump.extend(vec![byte; (count * PAGE_SIZE) as usize]);
                }
                dump.extend(header(wide, 2 << 16 | 6, 3, 0x9_0000, dst));
            }
            dump.extend(header(wide, 1, 1, 0x1000, 9 << 8 | 1));
            dump.extend(vec![9; PAGE_SIZE as usize]);
            dump.extend(header(wide, 0x1023, 0, 0, 0));
            dump
        })
        .collect()
}
