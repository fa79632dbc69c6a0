//! Buffers that are mapped when first needed, used again, and unmapped together.

use std::io;

use memmap2::MmapMut;

use crate::memory;

/// At most `limit` buffers of `size` bytes.
#[derive(Debug)]
pub(super) struct Pool {
    size: usize,
    limit: usize,
    huge: bool,
    mapped: usize,
    free: Vec<MmapMut>,
}

impl Pool {
    /// `huge` says whether in huge pages.
    pub(super) fn new(size: usize, limit: usize, huge: bool) -> Self {
        Self {
            size,
            limit,
            huge,
            mapped: 0,
            free: Vec::with_capacity(limit),
        }
    }

    /// A buffer, if one is left.
    pub(super) fn take(&mut self) -> io::Result<Option<MmapMut>> {
        // The one given back last is the one that the caches still hold.
        if let Some(buffer) = self.free.pop() {
            return Ok(Some(buffer));
        }
        self.grow()
    }

    /// A buffer that was never handed out, if the limit allows one more.
    pub(super) fn grow(&mut self) -> io::Result<Option<MmapMut>> {
        if self.mapped == self.limit {
            return Ok(None);
        }
        let buffer = memory::map(self.size, self.huge)?;
        self.mapped += 1;
        Ok(Some(buffer))
    }

    /// Maps what it will map in small pages.
    pub(super) fn leave_huge_pages(&mut self) {
        self.huge = false;
    }

    pub(super) fn put(&mut self, buffer: MmapMut) {
        self.free.push(buffer);
    }

    /// Unmaps what lies here and keeps the rest from being reused.
    pub(super) fn clear(&mut self) {
        self.free = Vec::new();
    }
}
