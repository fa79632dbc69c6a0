//! A zstd encoder for memory that is made of 8-byte words.
//!
//! Process memory repeats whole aligned words (pointers, counters, flags, zeros) between words
//! that repeat nowhere. Searching matches at every byte costs zstd most of its time there; this
//! encoder looks at aligned words only and has few branches that depend on the data: more than
//! twice zstd's speed at about the same size. What it writes is plain zstd:
//!
//! ```text
//! block = raw literals | number of sequences | tables | sequences, FSE coded (RFC 8878, 3.1.1.3)
//! ```
//! [`scan`](scan::Scan) finds literals and repeated words, [`sequence`] turns them into codes,
//! [`fse`] writes those with tables fitted to each block.

mod bits;
mod fse;
mod scan;
mod sequence;

use super::frame;
use bits::Bits;
use fse::Coder;
use scan::{BLOCK_WORDS, Scan};
use sequence::Sequences;

/// Most content of one block.
const BLOCK: usize = BLOCK_WORDS * 8;
/// Bytes that headers and tables of a block take at most.
const OVERHEAD: usize = 512;
const RAW: u32 = 0;
const COMPRESSED: u32 = 2;
/// Largest FSE table logs: literal lengths, offsets, match lengths.
const LOGS: [u32; 3] = [9, 8, 9];

/// Encodes frames; keeps its tables' memory.
#[derive(Debug)]
pub(super) struct Words {
    scan: Scan,
    sequences: Sequences,
}

impl Words {
    pub(super) fn new() -> Self {
        Self {
            scan: Scan::new(),
            sequences: Sequences::new(),
        }
    }

    /// Writes the frame of `content` to `output` and returns its size; `None` when it does not
    /// fit there.
    pub(super) fn encode(&mut self, content: &[u8], output: &mut [u8]) -> Option<usize> {
        let mut at = 0;
        put(output, &mut at, &frame::head(content.len()))?;
        let (words, _) = content.as_chunks::<8>();
        self.scan.reset(words.first());
        self.sequences.reset();
        let count = content.len().div_ceil(BLOCK);
        for (index, block) in content.chunks(BLOCK).enumerate() {
            let last = u32::from(index + 1 == count);
            let header_at = at;
            put(output, &mut at, &[0; 3])?;
            let before = self.sequences.distance();
            let first = index * BLOCK_WORDS;
            let (kind, size) = match self.block(&words[first..], first, block, output, at) {
                Some(end) if end - at < block.len() => {
                    let size = end - at;
                    at = end;
                    (COMPRESSED, size)
                }
                _ => {
                    // A raw block leaves the decoder's offset history alone.
                    self.sequences.forget(before);
                    put(output, &mut at, block)?;
                    (RAW, block.len())
                }
            };
            let header = (last | kind << 1 | (size as u32) << 3).to_le_bytes();
            output[header_at..header_at + 3].copy_from_slice(&header[..3]);
        }
        put(output, &mut at, &frame::checksum(content).to_le_bytes())?;
        Some(at)
    }

    /// Writes the compressed content of `block` at `at`; returns its end, or nothing when it would
    /// not be smaller or does not fit. `words` begins with its words, the first of which is
    /// word `first` of the frame.
    fn block(
        &mut self,
        words: &[[u8; 8]],
        first: usize,
        block: &[u8],
        output: &mut [u8],
        mut at: usize,
    ) -> Option<usize> {
        let tail = &block[block.len() / 8 * 8..];
        let words = &words[..block.len() / 8];
        let mut adder = self.sequences.adder();
        let count = self.scan.block(words, first as u32, &mut adder);
        let added = adder.added();
        self.sequences.set(added);
        let literals = self.scan.literals(count);
        let literal_bytes = literals.len() * 8 + tail.len();
        let bound = OVERHEAD + literal_bytes + self.sequences.bound();
        if bound > block.len() + OVERHEAD || output.len() - at < bound {
            return None;
        }
        // Literals: raw, size in 20 bits.
        let header = (0b1100 | (literal_bytes as u32) << 4).to_le_bytes();
        put(output, &mut at, &header[..3])?;
        let room = output.get_mut(at..at + literals.len() * 8)?;
        for (bytes, word) in room.as_chunks_mut::<8>().0.iter_mut().zip(literals) {
            *bytes = word.to_le_bytes();
        }
        at += literals.len() * 8;
        put(output, &mut at, tail)?;
        self.sequences(output, at)
    }

    fn sequences(&self, output: &mut [u8], mut at: usize) -> Option<usize> {
        let count = self.sequences.list().len();
        match count {
            0..128 => put(output, &mut at, &[count as u8])?,
            128..0x7F00 => put(output, &mut at, &[(count >> 8) as u8 + 128, count as u8])?,
            _ => {
                let rest = ((count - 0x7F00) as u16).to_le_bytes();
                put(output, &mut at, &[255, rest[0], rest[1]])?;
            }
        }
        if count == 0 {
            return Some(at);
        }
        let modes_at = at;
        put(output, &mut at, &[0])?;
        let mut modes = 0;
        let [mut literal, mut offset, mut length] =
            [Coder::empty(), Coder::empty(), Coder::empty()];
        let tables = [
            (&mut literal, self.sequences.literal_counts(), 6),
            (&mut offset, self.sequences.offset_counts(), 4),
            (&mut length, self.sequences.match_counts(), 2),
        ];
        for ((coder, counts, shift), log) in tables.into_iter().zip(LOGS) {
            let (mode, end) = coder.fit(counts, log, output, at)?;
            modes |= mode << shift;
            at = end;
        }
        output[modes_at] = modes;
        let mut bits = Bits::new(output, at);
        let mut list = self.sequences.list().iter().rev();
        let last = list.next()?;
        let mut literal_state = literal.start(last.literal());
        let mut offset_state = offset.start(last.offset());
        let mut match_state = length.start(last.matched());
        last.put_extra(&mut bits, 0, 0);
        for sequence in list {
            let (a, a_count) = offset.step(&mut offset_state, sequence.offset());
            let (b, b_count) = length.step(&mut match_state, sequence.matched());
            let (c, c_count) = literal.step(&mut literal_state, sequence.literal());
            let states = a | b << a_count | c << (a_count + b_count);
            sequence.put_extra(&mut bits, states, a_count + b_count + c_count);
        }
        length.finish(match_state, &mut bits);
        offset.finish(offset_state, &mut bits);
        literal.finish(literal_state, &mut bits);
        Some(bits.close())
    }
}

fn put(output: &mut [u8], at: &mut usize, bytes: &[u8]) -> Option<()> {
    output
        .get_mut(*at..*at + bytes.len())?
        .copy_from_slice(bytes);
    *at += bytes.len();
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(content: &[u8]) -> usize {
        let mut output = vec![0; content.len() + content.len() / BLOCK * 3 + 1024];
        let size = Words::new().encode(content, &mut output).unwrap();
        let back = zstd::bulk::decompress(&output[..size], content.len()).unwrap();
        assert!(back == content);
        size
    }

    /// Words drawn from `kinds`: 0 is fresh noise, others repeat.
    fn words(seed: u64, count: usize, kinds: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut bytes = Vec::new();
        for index in 0..count {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let word = match state % (kinds + 1) {
                0 => state.wrapping_mul(0x2545_F491_4F6C_DD1D),
                kind => kind * 0x1000 + (index as u64 >> 12),
            };
            bytes.extend(word.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn zstd_decodes_what_this_encodes() {
        for kinds in [0, 1, 2, 5, 40, 3000] {
            for count in [1, 2, 127, 128, 129, 16_383, 16_384, 16_385, 100_000] {
                round_trip(&words(count as u64, count, kinds));
            }
        }
        for size in [1, 7, 8, 9, 4096, 131_071, 131_072, 131_073, 1 << 20] {
            round_trip(&vec![0; size]);
            round_trip(&vec![7; size]);
        }
        // Every word known, at all distances.
        let cycle: Vec<u8> = (0..60_000_u64)
            .flat_map(|at| (at % 700).to_le_bytes())
            .collect();
        round_trip(&cycle);
    }

    #[test]
    fn half_random_words_take_little_more_than_half() {
        let content = words(9, 512 << 10, 1);
        let size = round_trip(&content);
        assert!(
            size * 1000 < content.len() * 575,
            "{size} of {}",
            content.len()
        );
    }

    #[test]
    fn too_little_room_is_no_panic() {
        let content = words(9, 40_000, 1);
        let needed = round_trip(&content);
        for room in [0, 5, 100, needed / 2, needed - 1] {
            assert_eq!(Words::new().encode(&content, &mut vec![0; room]), None);
        }
    }

    proptest! {
        #[test]
        fn any_mix_of_words(
            parts in prop::collection::vec((any::<u64>(), 1usize..30_000, 0u64..60), 1..6),
            tail in 0usize..8,
        ) {
            let mut content: Vec<u8> = parts
                .iter()
                .flat_map(|(seed, count, kinds)| words(*seed, *count, *kinds))
                .collect();
            content.truncate(content.len() - tail);
            round_trip(&content);
        }

        #[test]
        fn any_bytes(content in prop::collection::vec(0u8..3, 1..5000)) {
            round_trip(&content);
        }
    }
}
