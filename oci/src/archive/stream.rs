//! Entries that are filled in place.

use std::io::{self, Write};

use super::error::WriteError;
use super::writer::Writer;

/// An entry whose size is known at its end.
#[derive(Debug)]
pub struct EntryStream<'a> {
    writer: &'a mut Writer,
    size: u64,
    /// Number of the frame that holds the header, where that has to be patched.
    header: Option<u64>,
}

impl<'a> EntryStream<'a> {
    pub(super) fn new(writer: &'a mut Writer, header: Option<u64>) -> Self {
        Self {
            writer,
            size: 0,
            header,
        }
    }

    /// Bytes of content so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The free rest of the current frame, never empty; waits while the writer's memory is used
    /// up.
    ///
    /// # Errors
    /// Whatever stopped the writer.
    pub fn space(&mut self) -> Result<&mut [u8], WriteError> {
        self.writer.space()
    }

    /// Says that the first `count` bytes of [`EntryStream::space`] are content now.
    ///
    /// # Panics
    /// When that is more than the space.
    pub fn filled(&mut self, count: usize) {
        self.writer.grew(count, true);
        self.size += count as u64;
    }

    /// Ends the entry and returns its size in bytes.
    ///
    /// # Errors
    /// Whatever stopped the writer.
    pub fn finish(self) -> Result<u64, WriteError> {
        self.writer.end_entry(self.size, self.header)?;
        Ok(self.size)
    }
}

impl Write for EntryStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let space = self.space()?;
        let size = space.len().min(bytes.len());
        space[..size].copy_from_slice(&bytes[..size]);
        self.filled(size);
        Ok(size)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
