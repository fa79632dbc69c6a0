//! Reads and decodes single frames.

use twox_hash::XxHash3_64;
use zstd::zstd_safe::{self, DCtx};

use super::error::ReadError;
use super::frame;
use super::seek::Row;
use super::source::Source;

/// A frame and where it lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Located {
    /// In the file.
    pub(super) offset: u64,
    /// Of its content in the tar.
    pub(super) start: u64,
    pub(super) row: Row,
}

/// Why a frame is not usable.
#[derive(Debug)]
pub(super) enum Broken {
    Io(std::io::Error),
    Frame(&'static str),
}

impl Broken {
    /// The error for `frame`, number `number`, in the words of [`ReadError`].
    pub(super) fn at(self, frame: &Located, number: usize, entry: &str) -> ReadError {
        match self {
            Self::Io(source) => ReadError::io(frame.offset, source),
            Self::Frame(reason) => ReadError::Entry {
                name: entry.to_owned(),
                fault: super::error::EntryFault::Frame {
                    frame: number,
                    offset: frame.offset,
                    reason,
                },
            },
        }
    }
}

/// Decodes frames; keeps its memory from one to the next.
pub(super) struct Decoder {
    context: DCtx<'static>,
    stored: Vec<u8>,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self {
            context: DCtx::create(),
            stored: Vec::new(),
        }
    }

    /// The stored bytes of the last frame.
    pub(super) fn stored(&self) -> &[u8] {
        &self.stored
    }

    /// Reads `frame` from `source` and decodes it into `content`, which has the size that the
    /// table gives; returns the digest of its stored bytes.
    pub(super) fn decode(
        &mut self,
        source: &Source,
        frame: &Located,
        content: &mut [u8],
    ) -> Result<u64, Broken> {
        self.stored.resize(frame.row.stored as usize, 0);
        source
            .read_exact_at(&mut self.stored, frame.offset)
            .map_err(Broken::Io)?;
        let stored = self.stored.as_slice();
        if stored.get(..4) != Some(&frame::MAGIC.to_le_bytes()) {
            return Err(Broken::Frame("it does not begin as a zstd frame"));
        }
        match zstd_safe::get_frame_content_size(stored) {
            Ok(Some(size)) if size == content.len() as u64 => {}
            _ => {
                return Err(Broken::Frame(
                    "its size and that in the seek table are not the same",
                ));
            }
        }
        if zstd_safe::find_frame_compressed_size(stored) != Ok(stored.len()) {
            return Err(Broken::Frame("it does not end where the next one begins"));
        }
        if stored.last_chunk() != Some(&frame.row.checksum.to_le_bytes()) {
            return Err(Broken::Frame("its checksum is not that in the seek table"));
        }
        match self.context.decompress(content, stored) {
            Ok(size) if size == content.len() => Ok(XxHash3_64::oneshot(stored)),
            Ok(_) => Err(Broken::Frame("it holds less than it announces")),
            Err(code) => Err(Broken::Frame(zstd_safe::get_error_name(code))),
        }
    }
}
