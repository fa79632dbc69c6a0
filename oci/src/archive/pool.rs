//! Buffers that are mapped when first needed, used again, and unmapped together.

use std::io;

use memmap2::{Advice, MmapMut};

/// At most `limit` buffers of `size` bytes.
#[derive(Debug)]
pub(super) struct Pool {
    size: usize,
    limit: usize,
    mapped: usize,
    free: Vec<MmapMut>,
}

impl Pool {
    pub(super) fn new(size: usize, limit: usize) -> Self {
        Self {
            size,
            limit,
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
        let buffer = map(self.size)?;
        self.mapped += 1;
        Ok(Some(buffer))
    }

    pub(super) fn put(&mut self, buffer: MmapMut) {
        self.free.push(buffer);
    }

    /// Unmaps what lies here and keeps the rest from being reused.
    pub(super) fn clear(&mut self) {
        self.free = Vec::new();
    }
}

/// Has the kernel put memory behind a buffer now, rather than at its first use.
pub(super) fn populate(buffer: &MmapMut) {
    // Only earlier: kernels before 5.14 refuse.
    let _ = buffer.advise(Advice::PopulateWrite);
}

/// Anonymous memory in huge pages where the system gives them.
pub(super) fn map(size: usize) -> io::Result<MmapMut> {
    let buffer = MmapMut::map_anon(size)?;
    // Only faster: a kernel without huge pages refuses.
    let _ = buffer.advise(Advice::HugePage);
    Ok(buffer)
}
