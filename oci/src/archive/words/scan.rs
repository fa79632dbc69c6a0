//! Finds words that occurred before.

use std::hint::select_unpredictable;
use std::ops::Range;

/// Words of the largest block that zstd allows.
pub(super) const BLOCK_WORDS: usize = 16 << 10;
/// The table of known words stays in a processor's first-level cache.
const LOG: u32 = 11;
const SLOTS: usize = 1 << LOG;
/// One more than can be used: the loop writes first and counts afterwards.
const ROOM: usize = BLOCK_WORDS + 1;
const PRIME: u64 = 0x9E37_79B9_7F4A_7C15;

/// Words that all repeat those at one distance, and how many literals come before.
///
/// Packed into 64 bits, because one is written for every word: distance in words, index of the
/// first word in the block, number of literals in the block so far.
#[derive(Debug, Clone, Copy, Default)]
struct Run(u64);

impl Run {
    fn new(distance: u32, start: usize, literals: usize) -> Self {
        Self(u64::from(distance) | (start as u64) << 32 | (literals as u64) << 48)
    }

    fn distance(self) -> u32 {
        self.0 as u32
    }

    fn start(self) -> u32 {
        (self.0 >> 32) as u32 & 0xFFFF
    }

    fn literals(self) -> u32 {
        (self.0 >> 48) as u32
    }
}

/// A match as zstd describes it, in words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Match {
    /// Literals since the match before.
    pub(super) literals: u32,
    pub(super) length: u32,
    pub(super) distance: u32,
}

/// Literals and runs of one block.
#[derive(Debug)]
pub(super) struct Scan {
    /// Where in the frame a word with this hash was last.
    slots: Box<[u32; SLOTS]>,
    literals: Box<[u64; ROOM]>,
    literal_count: usize,
    runs: Box<[Run; ROOM]>,
    run_count: usize,
}

impl Scan {
    pub(super) fn new() -> Self {
        Self {
            slots: boxed(0),
            literals: boxed(0),
            literal_count: 0,
            runs: boxed(Run::default()),
            run_count: 0,
        }
    }

    /// Forgets all words: a frame begins.
    pub(super) fn reset(&mut self) {
        self.slots.fill(0);
    }

    /// Scans block `range` of a frame whose whole words are `words`.
    pub(super) fn block(&mut self, words: &[[u8; 8]], range: Range<usize>) {
        let base = range.start as u32;
        let block = &words[range];
        let block = &block[..block.len().min(BLOCK_WORDS)];
        let (mut literals, mut runs, mut previous) = (0, 0, 0);
        for (index, bytes) in block.iter().enumerate() {
            let word = u64::from_le_bytes(*bytes);
            let at = base + index as u32;
            let slot = &mut self.slots[(word.wrapping_mul(PRIME) >> (64 - LOG)) as usize];
            let known = u64::from_le_bytes(words[*slot as usize]) == word;
            // No branches: half of them would be mispredicted. The frame's first word finds
            // itself, at distance 0, which means unknown.
            let distance = select_unpredictable(known, at - *slot, 0);
            *slot = at;
            self.runs[runs] = Run::new(distance, index, literals);
            runs += usize::from((distance != 0) & (distance != previous));
            self.literals[literals] = word;
            literals += usize::from(distance == 0);
            previous = distance;
        }
        self.runs[runs] = Run::new(0, block.len(), literals);
        self.literal_count = literals;
        self.run_count = runs;
    }

    /// The words that repeat nothing.
    pub(super) fn literals(&self) -> &[u64] {
        &self.literals[..self.literal_count]
    }

    /// The matches, in order.
    pub(super) fn matches(&self) -> impl Iterator<Item = Match> + '_ {
        let mut before = 0;
        self.runs[..=self.run_count].windows(2).map(move |pair| {
            let [run, next] = [pair[0], pair[1]];
            let literals = run.literals() - before;
            before = run.literals();
            Match {
                literals,
                length: next.start() - run.start() - (next.literals() - run.literals()),
                distance: run.distance(),
            }
        })
    }
}

/// An array that never was on the stack.
fn boxed<T: Copy + std::fmt::Debug, const N: usize>(value: T) -> Box<[T; N]> {
    match vec![value; N].into_boxed_slice().try_into() {
        Ok(array) => array,
        Err(_) => unreachable!("the slice has the array's size"),
    }
}
