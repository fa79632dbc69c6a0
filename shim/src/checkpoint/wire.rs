//! The page server's wire format, as CRIU sends it (criu/page-xfer.c, 4.1.1 and 4.2).
//!
//! ```text
//! u32 cmd                    low 16 bits the command, high 16 bits PE_* flags
//! u32 nr_pages               up to CRIU 4.1: header of 24 bytes
//!   or  u32 pad, u64 nr_pages  from CRIU 4.2: header of 32 bytes
//! u64 vaddr
//! u64 dst_id                 type in the low 8 bits (1 pid, 2 shmem), id above
//! [nr_pages * 4096 bytes]    after ADD and ADD_F with PE_PRESENT
//! ```
//!
//! Nothing announces the width. The first command opens an image: its `nr_pages` and `vaddr`
//! are 0 and its `dst_id` is not, so bytes 16..24 are the id in the narrow form and 0 in the
//! wide one.
//!
//! Answers: one byte to OPEN2 (is there a parent image?), an i32 to PARENT and to CLOSE.

use crate::criu::pagemap::PageCount;

/// Bytes in a page, the only size that CRIU knows on x86-64.
pub const PAGE_SIZE: u64 = 4096;
/// The longest header.
pub const MAX_HEADER: usize = 32;

const NARROW: usize = 24;
const PE_PARENT: u32 = 1;
const PE_PRESENT: u32 = 4;
/// More than any x86-64 address space holds: 2^47 bytes.
const MAX_PAGES: u64 = 1 << 35;

/// One command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Start the image of an address space; with an answer if `wants_answer`.
    Open {
        /// Which.
        image: ImageId,
        /// OPEN2 wants to hear whether a parent image exists, OPEN does not.
        wants_answer: bool,
    },
    /// Is there a parent image?
    Parent,
    /// A run of pages; the bytes follow if `present`.
    Add {
        /// The image the run belongs to.
        image: ImageId,
        /// Address of the first page.
        vaddr: u64,
        /// Number of pages.
        pages: u64,
        /// `PE_*` bits, as they go into the pagemap.
        flags: u32,
        /// Whether page data follows.
        present: bool,
    },
    /// The dump is complete; wants an answer.
    Close,
}

/// Which address space an image belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageId {
    /// A process, by its pid in the container.
    Process(u64),
    /// A shared memory segment.
    Shared(u64),
}

impl ImageId {
    /// Name of its pagemap image.
    #[must_use]
    pub fn pagemap_name(self) -> String {
        match self {
            Self::Process(pid) => format!("pagemap-{pid}.img"),
            Self::Shared(id) => format!("pagemap-shmem-{id}.img"),
        }
    }
}

/// Why bytes are no command.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A command this build does not know.
    #[error("CRIU sent page-server command {0:#x}, which this version does not know")]
    Command(u32),
    /// The first command is no OPEN, so the header's width is unknown.
    #[error("CRIU's first page-server command is {0:#x}, not an open")]
    First(u32),
    /// An image type this build does not know.
    #[error("CRIU sent pages for image type {0}, which this version does not know")]
    ImageType(u8),
    /// A page count beyond any address space.
    #[error("CRIU announced {0} pages at once, more than an address space holds")]
    Pages(u64),
    /// Pages that lie in a parent image, which no checkpoint of ours has.
    #[error("CRIU refers to a parent image at address {0:#x}, but there is none")]
    InParent(u64),
}

/// Header layout of the CRIU at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Width of the page count.
    pub count: PageCount,
}

impl Layout {
    /// Bytes of a first command that must be read to tell the layouts apart.
    pub const PROBE: usize = NARROW;

    /// Tells the layout from the first [`Self::PROBE`] bytes of a connection.
    pub fn probe(first: &[u8; NARROW]) -> Result<Self, WireError> {
        let cmd = u32_at(first, 0) & 0xffff;
        if !matches!(cmd, 3..=5) {
            return Err(WireError::First(cmd));
        }
        let count = if u64_at(first, 16) == 0 {
            PageCount::Wide
        } else {
            PageCount::Narrow
        };
        Ok(Self { count })
    }

    /// Length of a header.
    #[must_use]
    pub fn header_len(self) -> usize {
        match self.count {
            PageCount::Narrow => NARROW,
            PageCount::Wide => MAX_HEADER,
        }
    }

    /// Parses a header of [`Self::header_len`] bytes.
    pub fn parse(self, header: &[u8]) -> Result<Command, WireError> {
        let (pages, rest) = match self.count {
            PageCount::Narrow => (u64::from(u32_at(header, 4)), 8),
            PageCount::Wide => (u64_at(header, 8), 16),
        };
        let (vaddr, dst) = (u64_at(header, rest), u64_at(header, rest + 8));
        let word = u32_at(header, 0);
        let (cmd, flags) = (word & 0xffff, word >> 16);
        match cmd {
            1 | 2 | 6 => {
                let flags = match cmd {
                    1 => PE_PRESENT,
                    2 => PE_PARENT,
                    _ => flags,
                };
                if pages > MAX_PAGES {
                    return Err(WireError::Pages(pages));
                }
                if flags & PE_PARENT != 0 {
                    return Err(WireError::InParent(vaddr));
                }
                let present = flags & PE_PRESENT != 0;
                Ok(Command::Add {
                    image: image(dst)?,
                    vaddr,
                    pages,
                    flags,
                    present,
                })
            }
            3 | 4 => Ok(Command::Open {
                image: image(dst)?,
                wants_answer: cmd == 4,
            }),
            5 => Ok(Command::Parent),
            0x1023 | 0x1024 => Ok(Command::Close),
            _ => Err(WireError::Command(word)),
        }
    }
}

fn image(dst: u64) -> Result<ImageId, WireError> {
    match dst as u8 {
        1 => Ok(ImageId::Process(dst >> 8)),
        2 => Ok(ImageId::Shared(dst >> 8)),
        other => Err(WireError::ImageType(other)),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A header as CRIU lays it out.
    pub(crate) fn header(wide: bool, cmd: u32, pages: u64, vaddr: u64, dst: u64) -> Vec<u8> {
        let mut out = cmd.to_le_bytes().to_vec();
        if wide {
            out.extend([0xaa; 4]); // padding that nobody clears
            out.extend(pages.to_le_bytes());
        } else {
            out.extend((pages as u32).to_le_bytes());
        }
        out.extend(vaddr.to_le_bytes());
        out.extend(dst.to_le_bytes());
        out
    }

    #[test]
    fn both_layouts_are_told_apart_and_parsed() {
        for wide in [false, true] {
            let open = header(wide, 4, 0, 0, 17 << 8 | 1);
            let layout = Layout::probe(open[..24].try_into().unwrap()).unwrap();
            assert_eq!(layout.header_len(), open.len());
            assert_eq!(
                layout.parse(&open),
                Ok(Command::Open {
                    image: ImageId::Process(17),
                    wants_answer: true
                })
            );
            let add = header(wide, 4 << 16 | 6, 9, 0x7f00_0000, 3 << 8 | 2);
            assert_eq!(
                layout.parse(&add),
                Ok(Command::Add {
                    image: ImageId::Shared(3),
                    vaddr: 0x7f00_0000,
                    pages: 9,
                    flags: 4,
                    present: true
                })
            );
            assert_eq!(
                layout.parse(&header(wide, 0x1023, 0, 0, 0)),
                Ok(Command::Close)
            );
        }
    }

    #[test]
    fn what_is_no_command_is_refused() {
        let layout = Layout {
            count: PageCount::Wide,
        };
        let cases = [
            (header(true, 99, 0, 0, 257), WireError::Command(99)),
            (header(true, 4, 0, 0, 9), WireError::ImageType(9)),
            (
                header(true, 4 << 16 | 6, 1 << 40, 0, 257),
                WireError::Pages(1 << 40),
            ),
            (
                header(true, 1 << 16 | 6, 1, 0x1000, 257),
                WireError::InParent(0x1000),
            ),
        ];
        for (bytes, error) in cases {
            assert_eq!(layout.parse(&bytes), Err(error));
        }
        let first = header(false, 6, 1, 0, 257);
        assert_eq!(
            Layout::probe(first[..24].try_into().unwrap()),
            Err(WireError::First(6))
        );
    }
}
