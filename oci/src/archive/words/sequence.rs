//! zstd's codes for literal lengths, match lengths and offsets (RFC 8878, 3.1.1.3.2.1.1).
//!
//! All lengths and distances are whole words.
//!
//! ```text
//! meta of a sequence: literal length code | match length code << 8 | offset code << 16 |
//!                     number of extra bits << 24
//! ```
//! The three parts' metas are added to get it.

use super::bits::Bits;

/// Most sequences of a block: each has a word of its own, and a run may take two.
const ROOM: usize = 16 << 10;
/// Lengths below this many words take their code from a table.
const SMALL: usize = 32;
/// Codes that can occur.
pub(super) const CODES: usize = 64;
/// The largest codes: literal lengths, offsets, match lengths.
const LAST: [usize; 3] = [35, 31, 52];
/// Where a sequence's meta has what.
const MATCH: u32 = 8;
const OFFSET: u32 = 16;
const BITS: u32 = 24;
/// Of more sequences than this only every fourth is counted.
const COUNT_ALL: usize = 1024;

/// A length's extra bits, and its part of the meta.
#[derive(Debug, Clone, Copy, Default)]
struct Code {
    extra: u32,
    meta: u32,
}

/// One sequence, coded.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sequence {
    extra: u64,
    meta: u32,
}

impl Sequence {
    pub(super) fn literal(&self) -> u8 {
        self.meta as u8
    }

    pub(super) fn matched(&self) -> u8 {
        (self.meta >> MATCH) as u8
    }

    pub(super) fn offset(&self) -> u8 {
        (self.meta >> OFFSET) as u8
    }

    /// Adds the extra bits after at most 26 others in `before`, and flushes.
    #[inline(always)]
    pub(super) fn put_extra(&self, bits: &mut Bits<'_>, before: u64, before_count: u32) {
        let count = self.meta >> BITS;
        if count <= 30 {
            bits.add(before | self.extra << before_count, before_count + count);
        } else {
            bits.add(before, before_count);
            bits.flush();
            bits.add(self.extra & 0x3FFF_FFFF, 30);
            bits.flush();
            bits.add(self.extra >> 30, count - 30);
        }
        bits.flush();
    }
}

/// Sequences of a block and how often each code occurs.
#[derive(Debug)]
pub(super) struct Sequences {
    list: Box<[Sequence; ROOM]>,
    added: Added,
    literal_counts: [u32; CODES],
    offset_counts: [u32; CODES],
    match_counts: [u32; CODES],
    small_literals: [Code; SMALL],
    small_matches: [Code; SMALL],
}

/// What was added to a block, or to the blocks of the frame before it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Added {
    count: usize,
    extra_bits: usize,
    /// All metas, or-ed.
    metas: u32,
    /// The newest distance, which has a short form.
    distance: u32,
}

impl Sequences {
    pub(super) fn new() -> Self {
        Self {
            list: match vec![Sequence::default(); ROOM]
                .into_boxed_slice()
                .try_into()
            {
                Ok(list) => list,
                Err(_) => unreachable!("the slice has the array's size"),
            },
            added: Added::default(),
            literal_counts: [0; CODES],
            offset_counts: [0; CODES],
            match_counts: [0; CODES],
            small_literals: std::array::from_fn(|words| literal_code(words as u32)),
            small_matches: std::array::from_fn(|words| match_code(words.max(1) as u32)),
        }
    }

    /// A frame begins: no distance is known. The decoder's three are 1, 4 and 8 bytes.
    pub(super) fn reset(&mut self) {
        self.added = Added::default();
    }

    /// What the newest distance was, to go back to.
    pub(super) fn distance(&self) -> u32 {
        self.added.distance
    }

    /// Goes back: the decoder does not see the block's sequences.
    pub(super) fn forget(&mut self, distance: u32) {
        self.added.distance = distance;
    }

    /// Takes the sequences of the next block.
    #[inline(always)]
    pub(super) fn adder(&mut self) -> Adder<'_> {
        Adder {
            list: &mut self.list,
            literals: &self.small_literals,
            matches: &self.small_matches,
            added: Added {
                distance: self.added.distance,
                ..Added::default()
            },
        }
    }

    /// Ends the block that the adder took.
    pub(super) fn set(&mut self, added: Added) {
        self.added = added;
        let all = added.count <= COUNT_ALL;
        let (step, least) = if all { (1, 0) } else { (4, 1) };
        let metas = added.metas;
        let counts = [
            (&mut self.literal_counts, metas as u8),
            (&mut self.offset_counts, (metas >> OFFSET) as u8),
            (&mut self.match_counts, (metas >> MATCH) as u8),
        ];
        for ((counts, codes), last) in counts.into_iter().zip(LAST) {
            // Codes that occur are at most as large as all their bits together.
            let bound = (usize::from(codes) + 1).next_power_of_two() - 1;
            counts.fill(0);
            counts[..=bound.min(last)].fill(least);
        }
        for sequence in self.list[..added.count].iter().step_by(step) {
            self.literal_counts[usize::from(sequence.literal()) % CODES] += 1;
            self.offset_counts[usize::from(sequence.offset()) % CODES] += 1;
            self.match_counts[usize::from(sequence.matched()) % CODES] += 1;
        }
    }

    pub(super) fn list(&self) -> &[Sequence] {
        &self.list[..self.added.count]
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
        (self.added.extra_bits + self.added.count * states as usize) / 8
    }
}

/// Codes sequences.
#[derive(Debug)]
pub(super) struct Adder<'a> {
    list: &'a mut [Sequence; ROOM],
    literals: &'a [Code; SMALL],
    matches: &'a [Code; SMALL],
    added: Added,
}

impl Adder<'_> {
    /// Adds a copy of `length` words from `distance` words back, after so many literals.
    #[inline(always)]
    pub(super) fn add(&mut self, literals: u32, length: u32, distance: u32) {
        let literal = match self.literals.get(literals as usize) {
            Some(code) => *code,
            None => large(literal_code, literals),
        };
        let length = match self.matches.get(length as usize) {
            Some(code) => *code,
            None => large(match_code, length),
        };
        // Directly after a match the newest distance has no short form. The two older ones are
        // not worth their comparisons.
        let newest = (distance == self.added.distance) & (literals > 0);
        let value = std::hint::select_unpredictable(newest, 1, distance * 8 + 3);
        let offset = value.ilog2();
        let offset_extra = u64::from(value ^ (1 << offset));
        let lengths_extra = u64::from(length.extra) | offset_extra << (length.meta >> BITS);
        let meta = literal.meta + length.meta + offset * (1 << OFFSET | 1 << BITS);
        self.list[self.added.count % ROOM] = Sequence {
            extra: u64::from(literal.extra) | lengths_extra << (literal.meta >> BITS),
            meta,
        };
        self.added.count += 1;
        self.added.extra_bits += (meta >> BITS) as usize;
        self.added.metas |= meta;
        self.added.distance = distance;
    }

    /// What was added.
    pub(super) fn added(self) -> Added {
        self.added
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
        extra: bytes - base,
        meta: u32::from(code) | u32::from(bits) << BITS,
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
        extra: value - base,
        meta: u32::from(code) << MATCH | u32::from(bits) << BITS,
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
                (found.meta, found.extra),
                (code | bits << BITS, extra),
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
                (found.meta, found.extra),
                (code << MATCH | bits << BITS, extra),
                "{words}"
            );
        }
    }

    #[test]
    fn rare_codes_keep_a_share_though_only_some_are_counted() {
        let mut sequences = Sequences::new();
        let mut adder = sequences.adder();
        for at in 0..2000 {
            // Every kind once where the counting does not look.
            let kind = if at % 4 == 1 { at % 31 + 1 } else { 2 };
            adder.add(kind, kind, kind * 40);
        }
        let added = adder.added();
        sequences.set(added);
        for sequence in sequences.list() {
            let codes = [sequence.literal(), sequence.offset(), sequence.matched()];
            for (code, counts) in codes.into_iter().zip([
                sequences.literal_counts(),
                sequences.offset_counts(),
                sequences.match_counts(),
            ]) {
                assert!(counts[usize::from(code)] > 0);
            }
        }
    }
}
