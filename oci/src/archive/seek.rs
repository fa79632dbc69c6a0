//! The seek table (zstd, contrib/seekable_format/zstd_seekable_compression_format.md, v0.1.0).
//!
//! ```text
//! 0x184D2A5E u32 | size of what follows u32
//! per frame: stored size u32 | content size u32 | low half of XXH64(content) u32
//! frames u32 | descriptor u8 = 0x80 (checksums) | 0x8F92EAB1 u32
//! ```

const SKIPPABLE: u32 = 0x184D_2A5E;
const FOOTER: u32 = 0x8F92_EAB1;
const CHECKSUMS: u8 = 0x80;
/// Bytes of the skippable frame's header.
pub(super) const HEAD: usize = 8;
/// Bytes per frame.
pub(super) const ROW: usize = 12;
/// Bytes of the footer.
pub(super) const FOOT: usize = 9;
/// Most frames: 64 TiB in frames of 4 MiB. The size field has room for more, and a file with holes
/// could claim that many without having them.
pub(super) const ROWS_MAX: usize = 1 << 24;

/// One frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    /// Its bytes in the file.
    pub(super) stored: u32,
    /// Its bytes of tar.
    pub(super) content: u32,
    /// Its content's checksum.
    pub(super) checksum: u32,
}

/// Size of a table of `rows` frames in bytes.
pub(super) const fn size(rows: usize) -> usize {
    HEAD + rows * ROW + FOOT
}

/// The table as a skippable frame.
pub(super) fn encode(rows: &[Row]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size(rows.len()));
    bytes.extend(SKIPPABLE.to_le_bytes());
    bytes.extend(((rows.len() * ROW + FOOT) as u32).to_le_bytes());
    for row in rows {
        bytes.extend(row.stored.to_le_bytes());
        bytes.extend(row.content.to_le_bytes());
        bytes.extend(row.checksum.to_le_bytes());
    }
    bytes.extend((rows.len() as u32).to_le_bytes());
    bytes.push(CHECKSUMS);
    bytes.extend(FOOTER.to_le_bytes());
    bytes
}

/// How many frames the footer announces; `None` when these bytes are no footer of ours.
pub(super) fn rows(footer: &[u8; FOOT]) -> Option<usize> {
    let rows = u32::from_le_bytes([footer[0], footer[1], footer[2], footer[3]]) as usize;
    (footer[4] == CHECKSUMS && footer[5..] == FOOTER.to_le_bytes() && rows <= ROWS_MAX)
        .then_some(rows)
}

/// Reads a whole table; `None` when it is not exactly what [`encode`] writes.
pub(super) fn decode(table: &[u8]) -> Option<Vec<Row>> {
    let body = table.get(HEAD..table.len().checked_sub(FOOT)?)?;
    let word = |bytes: &[u8], at: usize| {
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    let rows: Vec<Row> = body
        .chunks_exact(ROW)
        .map(|row| Row {
            stored: word(row, 0),
            content: word(row, 4),
            checksum: word(row, 8),
        })
        .collect();
    (encode(&rows) == table).then_some(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_read_back_and_every_flipped_bit_of_the_frame_shows() {
        let rows: Vec<Row> = (0..5)
            .map(|at| Row {
                stored: at * 7 + 1,
                content: at * 11,
                checksum: !at,
            })
            .collect();
        let table = encode(&rows);
        assert_eq!(table.len(), size(rows.len()));
        let footer: &[u8; FOOT] = table.last_chunk().unwrap();
        assert_eq!(super::rows(footer), Some(5));
        assert_eq!(decode(&table), Some(rows.clone()));
        for at in 0..table.len() {
            for bit in 0..8 {
                let mut bad = table.clone();
                bad[at] ^= 1 << bit;
                assert_ne!(decode(&bad), Some(rows.clone()), "byte {at} bit {bit}");
            }
            assert_eq!(decode(&table[..at]), None);
        }
    }
}
