//! zstd's codes for literal lengths, match lengths and offsets (RFC 8878, 3.1.1.3.2.1.1).
//!
//! All lengths and distances are whole words.

use super::bits::Bits;
use super::scan::{BLOCK_WORDS, Scan};

/// Lengths below this many words take their code from a table.
const SMALL: usize = 32;
/// Codes that can occur.
pub(super) const CODES: usize = 64;

/// Code, number of extra bits, and their value.
#[derive(Debug, Clone, Copy, Default)]
struct Code {
    code: u8,
    bits: u8,
    extra: u32,
}

/// One sequence, coded.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sequence {
    extra: u64,
    extra_bits: u8,
    pub(super) literal: u8,
    pub(super) matched: u8,
    pub(super) offset: u8,
}

impl Sequence {
    /// Adds the extra bits after at most 26 others, and flushes.
    #[inline(always)]
    pub(super) fn put_extra(&self, bits: &mut Bits<'_>) {
        let count = u32::from(self.extra_bits);
        if count <= 30 {
            bits.add(self.extra, count);
        } else {
            bits.flush();
            bits.add(self.extra & 0x3FFF_FFFF, 30);
            bits.flush();
            bits.add(self.extra >> 30, count - 30);
        }
        bits.flush();
    }
}

/// The three offsets that a decoder remembers, in words; 0 for those that words can't reach.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offsets([u32; 3]);

impl Offsets {
    /// What a frame begins with: 1, 4 and 8 bytes.
    pub(super) fn new() -> Self {
        Self([0, 0, 1])
    }

    /// The offset value for `distance` after literals or directly after a match.
    #[inline]
    fn value(&mut self, distance: u32, literals: bool) -> u32 {
        let [first, second, third] = self.0;
        let (is_first, is_second, is_third) = (
            (distance == first) & literals,
            distance == second,
            distance == third,
        );
        let known = if is_first {
            0
        } else if is_second {
            1
        } else {
            2
        };
        let value = if is_first | is_second | is_third {
            known + u32::from(literals)
        } else {
            distance * 8 + 3
        };
        self.0 = [
            distance,
            if is_first { second } else { first },
            if is_first | is_second { third } else { second },
        ];
        value
    }
}

/// Sequences of a block and how often each code occurs.
#[derive(Debug)]
pub(super) struct Sequences {
    list: Vec<Sequence>,
    literal_counts: [u32; CODES],
    offset_counts: [u32; CODES],
    match_counts: [u32; CODES],
    extra_bits: usize,
    small_literals: [Code; SMALL],
    small_matches: [Code; SMALL],
}

impl Sequences {
    pub(super) fn new() -> Self {
        Self {
            list: Vec::with_capacity(BLOCK_WORDS),
            literal_counts: [0; CODES],
            offset_counts: [0; CODES],
            match_counts: [0; CODES],
            extra_bits: 0,
            small_literals: std::array::from_fn(|words| literal_code(words as u32)),
            small_matches: std::array::from_fn(|words| match_code(words.max(1) as u32)),
        }
    }

    /// Codes the matches of `scan`.
    pub(super) fn plan(&mut self, scan: &Scan, offsets: &mut Offsets) {
        self.list.clear();
        self.literal_counts.fill(0);
        self.offset_counts.fill(0);
        self.match_counts.fill(0);
        let mut extra_bits = 0;
        for found in scan.matches() {
            let literal = match self.small_literals.get(found.literals as usize) {
                Some(code) => *code,
                None => large(literal_code, found.literals),
            };
            let length = match self.small_matches.get(found.length as usize) {
                Some(code) => *code,
                None => large(match_code, found.length),
            };
            let value = offsets.value(found.distance, found.literals > 0);
            let offset = value.ilog2();
            let bits = u32::from(literal.bits) + u32::from(length.bits) + offset;
            let extra = u64::from(literal.extra)
                | u64::from(length.extra) << literal.bits
                | u64::from(value - (1 << offset)) << (literal.bits + length.bits);
            self.literal_counts[usize::from(literal.code) % CODES] += 1;
            self.match_counts[usize::from(length.code) % CODES] += 1;
            self.offset_counts[offset as usize % CODES] += 1;
            extra_bits += bits as usize;
            self.list.push(Sequence {
                extra,
                extra_bits: bits as u8,
                literal: literal.code,
                matched: length.code,
                offset: offset as u8,
            });
        }
        self.extra_bits = extra_bits;
    }

    pub(super) fn list(&self) -> &[Sequence] {
        &self.list
    }

    pub(super) fn literal_counts(&self) -> &[u32; CODES] {
        &self.literal_counts
    }

    pub(super) fn offset_counts(&self) -> &[u32; CODES] {
        &self.offset_counts
    }

    pub(super) fn match_counts(&self) -> &[u32; CODES] {
        &self.match_counts
    }

    /// Bytes that the sequences take at most, without tables.
    pub(super) fn bound(&self) -> usize {
        let states: u32 = super::LOGS.iter().sum();
        (self.extra_bits + self.list.len() * states as usize) / 8
    }
}

/// Keeps the rare case out of the loop.
#[cold]
#[inline(never)]
fn large(code: fn(u32) -> Code, words: u32) -> Code {
    code(words)
}

fn literal_code(words: u32) -> Code {
    let bytes = words * 8;
    let (code, base, bits) = match bytes {
        0..16 => (bytes as u8, bytes, 0),
        16..24 => (16 + ((bytes - 16) / 2) as u8, bytes & !1, 1),
        24..32 => (20 + ((bytes - 24) / 4) as u8, bytes & !3, 2),
        32..48 => (22 + ((bytes - 32) / 8) as u8, bytes & !7, 3),
        48..64 => (24, 48, 4),
        _ => {
            let log = bytes.ilog2();
            (log as u8 + 19, 1 << log, log as u8)
        }
    };
    Code {
        code,
        bits,
        extra: bytes - base,
    }
}

fn match_code(words: u32) -> Code {
    let value = words * 8 - 3;
    let (code, base, bits) = match value {
        0..32 => (value as u8, value, 0),
        32..40 => (32 + ((value - 32) / 2) as u8, value & !1, 1),
        40..48 => (36 + ((value - 40) / 4) as u8, value & !3, 2),
        48..64 => (38 + ((value - 48) / 8) as u8, value & !7, 3),
        64..96 => (40 + ((value - 64) / 16) as u8, value & !15, 4),
        96..128 => (42, 96, 5),
        _ => {
            let log = value.ilog2();
            (log as u8 + 36, 1 << log, log as u8)
        }
    };
    Code {
        code,
        bits,
        extra: value - base,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_as_in_the_specification() {
        for (words, code, bits, extra) in [
            (0, 0, 0, 0),
            (1, 8, 0, 0),
            (2, 16, 1, 0),
            (3, 20, 2, 0),
            (4, 22, 3, 0),
            (5, 23, 3, 0),
            (7, 24, 4, 8),
            (8, 25, 6, 0),
            (16_383, 35, 16, 65_528),
        ] {
            let found = literal_code(words);
            assert_eq!(
                (found.code, found.bits, found.extra),
                (code, bits, extra),
                "{words}"
            );
        }
        for (words, code, bits, extra) in [
            (1, 5, 0, 0),
            (4, 29, 0, 0),
            (5, 34, 1, 1),
            (6, 37, 2, 1),
            (7, 38, 3, 5),
            (8, 39, 3, 5),
            (9, 40, 4, 5),
            (12, 41, 4, 13),
            (13, 42, 5, 5),
            (17, 43, 7, 5),
            (16_384, 52, 16, 65_533),
        ] {
            let found = match_code(words);
            assert_eq!(
                (found.code, found.bits, found.extra),
                (code, bits, extra),
                "{words}"
            );
        }
    }

    #[test]
    fn repeated_offsets_take_their_places() {
        let mut offsets = Offsets::new();
        assert_eq!(offsets.value(1, true), 3);
        assert_eq!(offsets.value(1, true), 1);
        assert_eq!(offsets.value(5, true), 43);
        assert_eq!(offsets.value(1, false), 1);
        assert_eq!(offsets.value(5, true), 2);
        // The newest offset has no short form directly after a match.
        assert_eq!(offsets.value(5, false), 43);
    }
}
