//! Finds words that occurred before.
//!
//! Two kinds of matches, looked for in groups of 64 words:
//! - runs of the *popular* word, the one that currently repeats most: one comparison per word
//!   makes a bit mask, and the edges of the mask are the runs. A run copies an earlier, long
//!   enough run of the same word.
//! - any other word that a small hash table knows. Where that finds nothing, most groups are
//!   not looked up: words that never repeat would cost as much as those that do.

use std::hint::select_unpredictable;

use super::sequence::Adder;

/// Words of the largest block that zstd allows.
pub(super) const BLOCK_WORDS: usize = 16 << 10;
/// The table of known words stays in a processor's first-level cache.
const LOG: u32 = 11;
const SLOTS: usize = 1 << LOG;
/// One more than can be used: the loops write first and count afterwards.
const ROOM: usize = BLOCK_WORDS + 1;
/// Edges are written eight at a time.
const EDGES: usize = BLOCK_WORDS + GROUP;
const PRIME: u64 = 0x9E37_79B9_7F4A_7C15;
/// Words whose comparisons fit one mask.
const GROUP: usize = 64;
/// A word with fewer occurrences in a group is not popular there.
const COMMON: u32 = 16;
/// Words that the table must find in a group for the next one to be looked up.
const WORTH: u32 = 3;
/// Most groups in sequence that are not looked up.
const SKIP_MAX: u32 = 8;
/// Runs further away than this, in words, are given up for newer ones: short distances take
/// fewer bits.
const WINDOW: u32 = 256;

/// A run of one word: where in the frame it starts, and its length in words.
#[derive(Debug, Clone, Copy)]
struct Run {
    start: u32,
    length: u32,
}

/// What was found in the block so far.
#[derive(Debug, Default)]
struct Found {
    literals: usize,
    /// Edges of runs of the popular word: starts, ends, and how many of both have become sequences.
    starts: usize,
    ends: usize,
    done: usize,
    /// End of the last sequence, in the block.
    end: u32,
}

/// Literals and matches of one block.
#[derive(Debug)]
pub(super) struct Scan {
    /// The word that a hash stood for last, and where in the frame that was.
    known: Box<[u64; SLOTS]>,
    places: Box<[u32; SLOTS]>,
    literals: Box<[u64; ROOM]>,
    starts: Box<[u16; EDGES]>,
    ends: Box<[u16; EDGES]>,
    popular: u64,
    /// The run of the popular word that others copy.
    source: Run,
    was_common: bool,
    /// Groups that are not looked up: in all after the last one that was, and still.
    skip: u32,
    wait: u32,
}

impl Scan {
    pub(super) fn new() -> Self {
        Self {
            known: boxed(0),
            places: boxed(0),
            literals: boxed(0),
            starts: boxed(0),
            ends: boxed(0),
            popular: 0,
            source: Run {
                start: 0,
                length: 1,
            },
            was_common: false,
            skip: 0,
            wait: 0,
        }
    }

    /// Forgets all words: a frame begins, with the word `first`.
    pub(super) fn reset(&mut self, first: Option<&[u8; 8]>) {
        self.known.fill(0);
        // No word stands where it does not belong: 0 belongs to slot 0, 1 does not.
        self.known[0] = 1;
        self.places.fill(0);
        self.popular = first.map_or(0, |bytes| u64::from_le_bytes(*bytes));
        self.source = Run {
            start: 0,
            length: 1,
        };
        self.was_common = false;
        self.skip = 0;
        self.wait = 0;
    }

    /// Scans the words of a block that starts `base` words into its frame, and adds its
    /// sequences to `out`. Returns the number of literals.
    pub(super) fn block(&mut self, block: &[[u8; 8]], base: u32, out: &mut Adder<'_>) -> usize {
        let block = &block[..block.len().min(BLOCK_WORDS)];
        let mut found = Found::default();
        // Whether the word before the group was the popular one.
        let mut carry = 0;
        for (index, group) in block.chunks(GROUP).enumerate() {
            let first = index * GROUP;
            let (mut mask, mut literals) = self.compare(group, found.literals);
            if base == 0 && index == 0 {
                // The frame's first word has no source but itself.
                mask &= !1;
                self.literals.copy_within(..literals, 1);
                self.literals[0] = self.popular;
                literals += 1;
            }
            let common = mask.count_ones() >= COMMON;
            let lookup = self.wait == 0 || (self.was_common && !common);
            self.was_common = common;
            let before = mask << 1 | carry;
            carry = mask >> 63;
            let inside = u64::MAX >> (GROUP - group.len());
            let (starts, ends) = (mask & !before, before & !mask & inside);
            if !lookup {
                self.wait -= 1;
                found.literals = literals;
                found.starts = positions(starts, first, &mut self.starts, found.starts);
                found.ends = positions(ends, first, &mut self.ends, found.ends);
                continue;
            }
            self.runs(&mut found, base, out);
            found.starts = positions(starts, first, &mut self.starts, found.starts);
            let known = self.lookup(group, base, first, (mask, ends), &mut found, out);
            let count = known.count_ones();
            self.skip = match count {
                WORTH.. => 0,
                _ => (self.skip * 2 + 1).min(SKIP_MAX),
            };
            self.wait = self.skip;
            if !common && count >= WORTH {
                // A run that is open is one of the old word.
                if found.starts > found.ends {
                    self.end_run(first + group.len(), &mut found, base, out);
                    carry = 0;
                }
                self.prefer(group, base + first as u32, 63 - known.leading_zeros());
            }
        }
        if found.starts > found.ends {
            self.end_run(block.len(), &mut found, base, out);
        }
        self.runs(&mut found, base, out);
        found.literals
    }

    /// Which words of the group are the popular one; the others become literals after `count`
    /// others. Returns a bit for each word, and the new count.
    #[inline(always)]
    fn compare(&mut self, group: &[[u8; 8]], mut count: usize) -> (u64, usize) {
        let popular = self.popular;
        let mut mask = 0;
        for (index, bytes) in group.iter().enumerate() {
            let word = u64::from_le_bytes(*bytes);
            let same = word == popular;
            // No branches: half of them would be mispredicted.
            self.literals[count] = word;
            count += usize::from(!same);
            mask |= u64::from(same) << index;
        }
        (mask, count)
    }

    /// Looks up every word of the group, and adds sequences for those that are known and for the
    /// runs of the popular word that end here. Returns a bit for each that is known and not popular.
    fn lookup(
        &mut self,
        group: &[[u8; 8]],
        base: u32,
        first: usize,
        (popular, ends): (u64, u64),
        found: &mut Found,
        out: &mut Adder<'_>,
    ) -> u64 {
        let mut distances = [0; GROUP];
        let mut known = 0;
        for (index, (bytes, distance)) in group.iter().zip(&mut distances).enumerate() {
            let word = u64::from_le_bytes(*bytes);
            let at = base + (first + index) as u32;
            let slot = hash(word);
            // A distance of 0 means unknown.
            *distance = select_unpredictable(self.known[slot] == word, at - self.places[slot], 0);
            self.known[slot] = word;
            self.places[slot] = at;
            let other = popular >> index & 1 == 0;
            self.literals[found.literals] = word;
            found.literals += usize::from(other & (*distance == 0));
            known |= u64::from(other & (*distance != 0)) << index;
        }
        // The sequence that grows while words follow at the same distance.
        let (mut literals, mut length, mut distance) = (0, 0, 0);
        let mut left = ends | known;
        while left != 0 {
            let index = left.trailing_zeros();
            left &= left - 1;
            let at = first as u32 + index;
            if ends >> index & 1 == 1 {
                if length > 0 {
                    out.add(literals, length, distance);
                    length = 0;
                }
                self.end_run(at as usize, found, base, out);
            }
            if known >> index & 1 == 1 {
                let between = at - found.end;
                let back = distances[index as usize];
                found.end = at + 1;
                if length > 0 && between == 0 && back == distance {
                    length += 1;
                    continue;
                }
                if length > 0 {
                    out.add(literals, length, distance);
                }
                (literals, length, distance) = (between, 1, back);
            }
        }
        if length > 0 {
            out.add(literals, length, distance);
        }
        known
    }

    /// Makes word `index` of the group at `at` the popular one.
    fn prefer(&mut self, group: &[[u8; 8]], at: u32, index: u32) {
        let slot = hash(self.popular);
        self.known[slot] = self.popular;
        self.places[slot] = self.source.start;
        self.popular = u64::from_le_bytes(group[index as usize]);
        self.source = Run {
            start: at + index,
            length: 1,
        };
        self.was_common = true;
        self.wait = 0;
    }

    /// The run of the popular word that is open ends before word `at` of the block.
    fn end_run(&mut self, at: usize, found: &mut Found, base: u32, out: &mut Adder<'_>) {
        self.ends[found.ends] = at as u16;
        found.ends += 1;
        self.runs(found, base, out);
    }

    /// Adds sequences for all runs that have ended.
    #[inline(always)]
    fn runs(&mut self, found: &mut Found, base: u32, out: &mut Adder<'_>) {
        let new = found.done..found.ends;
        let mut source = self.source;
        for (start, end) in self.starts[new.clone()].iter().zip(&self.ends[new]) {
            let (start, end) = (u32::from(*start), u32::from(*end));
            let literals = start - found.end;
            found.end = end;
            let run = Run {
                start: base + start,
                length: end - start,
            };
            let distance = run.start - source.start;
            if run.length > source.length {
                // The source, and the rest from the word before.
                out.add(literals, source.length, distance);
                out.add(0, run.length - source.length, 1);
                source = run;
            } else {
                out.add(literals, run.length, distance);
                source = select_unpredictable(distance >= WINDOW, run, source);
            }
        }
        self.source = source;
        found.done = found.ends;
    }

    /// The words that repeat nothing.
    pub(super) fn literals(&self, count: usize) -> &[u64] {
        &self.literals[..count]
    }
}

#[inline(always)]
fn hash(word: u64) -> usize {
    (word.wrapping_mul(PRIME) >> (64 - LOG)) as usize
}

/// Writes the positions of the bits in `mask`, counted from `first`, to `out` from `at` on;
/// returns their end.
#[inline(always)]
fn positions(mut mask: u64, first: usize, out: &mut [u16; EDGES], mut at: usize) -> usize {
    let end = at + mask.count_ones() as usize;
    while at < end {
        // Eight at a time, wanted or not: one branch that is nearly always predicted.
        for place in &mut out[at..at + 8] {
            *place = (first as u32 + mask.trailing_zeros()) as u16;
            mask &= mask.wrapping_sub(1);
        }
        at += 8;
    }
    end
}

/// An array that never was on the stack.
fn boxed<T: Copy + std::fmt::Debug, const N: usize>(value: T) -> Box<[T; N]> {
    match vec![value; N].into_boxed_slice().try_into() {
        Ok(array) => array,
        Err(_) => unreachable!("the slice has the array's size"),
    }
}
