//! Bits, lowest first, as zstd reads them backwards.

/// Appends bits to a slice.
#[derive(Debug)]
pub(super) struct Bits<'a> {
    output: &'a mut [u8],
    at: usize,
    held: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    /// Starts at byte `at` of `output`, which must have 8 bytes more than will be written.
    pub(super) fn new(output: &'a mut [u8], at: usize) -> Self {
        Self {
            output,
            at,
            held: 0,
            count: 0,
        }
    }

    /// Adds the low `count` bits of `value`, whose others are zero. At most 57 bits may be added
    /// between two calls of [`Bits::flush`].
    #[inline]
    pub(super) fn add(&mut self, value: u64, count: u32) {
        self.held |= value << self.count;
        self.count += count;
    }

    /// Moves whole bytes out.
    #[inline]
    pub(super) fn flush(&mut self) {
        self.output[self.at..self.at + 8].copy_from_slice(&self.held.to_le_bytes());
        let whole = self.count & !7;
        self.at += (whole / 8) as usize;
        // 64 bits can't be held after a flush, so the shift never is 64.
        self.held >>= whole;
        self.count &= 7;
    }

    /// Adds the mark that tells the reader where to start; returns the end.
    pub(super) fn close(mut self) -> usize {
        self.add(1, 1);
        self.flush();
        self.at + usize::from(self.count > 0)
    }

    /// Pads with zeros instead; returns the end.
    pub(super) fn pad(mut self) -> usize {
        self.flush();
        self.at + usize::from(self.count > 0)
    }
}
