//! `pagemap-*.img`: which pages of an address space lie in `pages-N.img`, and in what order.
//!
//! ```text
//! u32 0x54564319  u32 0x56084025        magics (criu/include/magic.h), little endian
//! u32 length      pagemap_head          { pages_id = 1 }
//! u32 length      pagemap_entry         { vaddr = 1, nr_pages = 2, flags = 4, nr_pages64 = 5 }
//! …
//! ```
//!
//! Source: images/pagemap.proto of CRIU 4.1.1 and 4.2. CRIU that counts pages in 64 bits
//! (4.2) keeps field 2 only as a required relic and reads field 5.

use protobuf::CodedOutputStream;

const IMG_COMMON_MAGIC: u32 = 0x5456_4319;
const PAGEMAP_MAGIC: u32 = 0x5608_4025;

/// How a CRIU version counts the pages of one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageCount {
    /// Field 2, 32 bits: up to CRIU 4.1.
    Narrow,
    /// Field 5, 64 bits: CRIU 4.2 and later.
    Wide,
}

/// A pagemap image that grows in memory: some 20 bytes per run of pages.
#[derive(Debug)]
pub struct Pagemap {
    image: Vec<u8>,
    count: PageCount,
}

impl Pagemap {
    /// An image that refers to `pages-{pages_id}.img`.
    #[must_use]
    pub fn new(pages_id: u32, count: PageCount) -> Self {
        let mut image = Vec::with_capacity(256);
        image.extend_from_slice(&IMG_COMMON_MAGIC.to_le_bytes());
        image.extend_from_slice(&PAGEMAP_MAGIC.to_le_bytes());
        let mut pagemap = Self { image, count };
        pagemap.record(|out| out.write_uint32(1, pages_id));
        pagemap
    }

    /// Adds a run of `pages` pages at `vaddr`. `flags` are CRIU's `PE_*` bits.
    pub fn push(&mut self, vaddr: u64, pages: u64, flags: u32) {
        let count = self.count;
        self.record(|out| {
            out.write_uint64(1, vaddr)?;
            match count {
                PageCount::Narrow => {
                    let pages = u32::try_from(pages).expect("a 32-bit header carried the count");
                    out.write_uint32(2, pages)?;
                    out.write_uint32(4, flags)
                }
                PageCount::Wide => {
                    out.write_uint32(2, 0)?;
                    out.write_uint32(4, flags)?;
                    out.write_uint64(5, pages)
                }
            }
        });
    }

    /// The finished image.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.image
    }

    fn record(&mut self, fill: impl FnOnce(&mut CodedOutputStream<'_>) -> protobuf::Result<()>) {
        let start = self.image.len();
        self.image.extend_from_slice(&[0; 4]);
        let mut out = CodedOutputStream::vec(&mut self.image);
        fill(&mut out)
            .and_then(|()| out.flush())
            .expect("writing to a Vec does not fail");
        drop(out);
        let length = u32::try_from(self.image.len() - start - 4).expect("a few fields");
        self.image[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_image_is_what_criu_4_1_writes() {
        let mut map = Pagemap::new(1, PageCount::Narrow);
        map.push(0x400000, 3, 4);
        assert_eq!(
            map.into_bytes(),
            [
                0x19, 0x43, 0x56, 0x54, 0x25, 0x40, 0x08, 0x56, // magics
                2, 0, 0, 0, 0x08, 1, // head: pages_id 1
                9, 0, 0, 0, 0x08, 0x80, 0x80, 0x80, 0x02, 0x10, 3, 0x20, 4,
            ]
        );
    }

    #[test]
    fn wide_image_carries_the_count_in_field_5_too_large_for_32_bits() {
        let mut map = Pagemap::new(7, PageCount::Wide);
        map.push(0, 1 << 33, 4);
        assert_eq!(
            &map.into_bytes()[14..],
            [
                12, 0, 0, 0, 0x08, 0, 0x10, 0, 0x20, 4, 0x28, 0x80, 0x80, 0x80, 0x80, 0x20
            ]
        );
    }
}
