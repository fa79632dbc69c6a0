//! zstd frames that hold their content stored or as runs of zeros (RFC 8878, 3.1.1).
//!
//! ```text
//! magic u32 | descriptor u8 | content size u32 | blocks … | low half of XXH64(content)
//! block: u24 = last | kind << 1 | size << 3, then the bytes, or the one repeated byte
//! ```
//! The descriptor says: single segment (no window), content size in 4 bytes, checksum.

use std::ops::Range;

use twox_hash::XxHash64;

/// First bytes of a zstd frame.
pub(super) const MAGIC: u32 = 0xFD2F_B528;
/// Bytes before the first block.
pub(super) const HEAD: usize = 9;
/// Most content of one block.
const BLOCK_MAX: usize = 128 << 10;
const DESCRIPTOR: u8 = 0b1010_0100;
const RAW: u32 = 0;
const RUN: u32 = 1;
/// Zeros are looked for in pieces of this size.
const GRAIN: usize = 4 << 10;

/// A stretch of a frame's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// Content as it is.
    Raw(Range<usize>),
    /// That many zeros.
    Zeros(usize),
}

/// What XXH64 leaves in a frame and in the seek table.
pub(super) fn checksum(content: &[u8]) -> u32 {
    XxHash64::oneshot(0, content) as u32
}

/// The bytes of a frame before its first block.
pub(super) fn head(content: usize) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..4].copy_from_slice(&MAGIC.to_le_bytes());
    head[4] = DESCRIPTOR;
    head[5..].copy_from_slice(&(content as u32).to_le_bytes());
    head
}

/// Splits `content` into runs of zero pages and everything else.
pub(super) fn pieces(content: &[u8]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut at = 0;
    for grain in content.chunks(GRAIN) {
        let end = at + grain.len();
        let zero = is_zero(grain);
        match pieces.last_mut() {
            Some(Piece::Zeros(size)) if zero => *size += grain.len(),
            Some(Piece::Raw(range)) if !zero => range.end = end,
            _ if zero => pieces.push(Piece::Zeros(grain.len())),
            _ => pieces.push(Piece::Raw(at..end)),
        }
        at = end;
    }
    pieces
}

/// Is every byte zero?
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    // Most pages show in their first bytes that they are not.
    let (first, rest) = bytes.split_at(bytes.len().min(64));
    first.iter().all(|byte| *byte == 0)
        && rest
            .chunks(256)
            .all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Calls `put` with the bytes of the frame of `content`, in order.
pub(super) fn emit<E>(
    content: &[u8],
    pieces: &[Piece],
    checksum: u32,
    mut put: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    put(&head(content.len()))?;
    let mut left = content.len();
    let mut header = |kind: u32, size: usize| {
        left -= size;
        let word = u32::from(left == 0) | kind << 1 | (size as u32) << 3;
        let bytes = word.to_le_bytes();
        [bytes[0], bytes[1], bytes[2]]
    };
    for piece in pieces {
        match piece {
            Piece::Raw(range) => {
                for block in content[range.clone()].chunks(BLOCK_MAX) {
                    put(&header(RAW, block.len()))?;
                    put(block)?;
                }
            }
            Piece::Zeros(size) => {
                let mut rest = *size;
                while rest > 0 {
                    let size = rest.min(BLOCK_MAX);
                    let [a, b, c] = header(RUN, size);
                    put(&[a, b, c, 0])?;
                    rest -= size;
                }
            }
        }
    }
    put(&checksum.to_le_bytes())
}

/// The frame of `content` with raw blocks only.
pub(super) fn stored(content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(content.len() + content.len() / BLOCK_MAX * 3 + 32);
    let whole = [Piece::Raw(0..content.len())];
    let done: Result<(), std::convert::Infallible> =
        emit(content, &whole, checksum(content), |part| {
            bytes.extend_from_slice(part);
            Ok(())
        });
    match done {
        Ok(()) => bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assembled(content: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        emit(content, &pieces(content), checksum(content), |part| {
            bytes.extend_from_slice(part);
            Ok::<(), ()>(())
        })
        .unwrap();
        bytes
    }

    #[test]
    fn zstd_decodes_every_mix() {
        for size in [1, 511, 4095, 4096, 4097, 131_071, 131_072, 131_073, 700_000] {
            let zeros = vec![0; size];
            let mut mixed = zeros.clone();
            for (at, byte) in mixed.iter_mut().enumerate() {
                if at / 20_000 % 2 == 1 {
                    *byte = (at % 251) as u8;
                }
            }
            mixed[size - 1] = 7;
            for content in [zeros, mixed] {
                for frame in [assembled(&content), stored(&content)] {
                    assert_eq!(zstd::bulk::decompress(&frame, size).unwrap(), content);
                    let end = frame.len() - 4;
                    assert_eq!(frame[end..], checksum(&content).to_le_bytes());
                }
            }
        }
    }

    #[test]
    fn zero_pages_take_almost_nothing() {
        assert!(assembled(&vec![0; 4 << 20]).len() < 200);
    }
}
