//! The protocol's state: images one after the other, their runs, their end.

use std::io::IoSliceMut;

use super::{PageImages, PageServerError, Pages, Received, socket::Peer};
use crate::{
    checkpoint::wire::{Command, ImageId, Layout, MAX_HEADER, PAGE_SIZE},
    criu::pagemap::Pagemap,
};

/// One connection: the state between two commands.
pub(super) struct Session<'a> {
    peer: Peer,
    images: &'a mut dyn PageImages,
    layout: Layout,
    /// The command that comes next, read ahead with the data before it.
    header: [u8; MAX_HEADER],
    received: Received,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        mut peer: Peer,
        images: &'a mut dyn PageImages,
    ) -> Result<Self, PageServerError> {
        peer.prepare()?;
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

    pub(super) fn run(mut self) -> Result<Received, PageServerError> {
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
                    self.peer.farewell()?;
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
