//! A fuzz target, as several crates have them, and its short run among the ordinary tests.
//!
//! Every crate includes this file by its path: what is fuzzed is private, so that the targets
//! stand beside it, and none of this is in a build without `cfg(test)` or `cfg(fuzzing)`.
#![allow(
    missing_docs,
    missing_debug_implementations,
    reason = "no part of any interface"
)]

use std::path::Path;

pub struct Target {
    pub name: &'static str,
    /// Panics when something does not hold. May use the directory, which is empty before and after.
    pub run: fn(&[u8], &Path),
    /// Inputs that get far.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// How many changed seeds the short run tries.
    pub rounds: u32,
}

/// The short run: every seed, every input that once was a finding, and `rounds` changed seeds,
/// the same ones each time.
#[cfg(test)]
pub fn hold(targets: &[Target]) {
    let findings = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|dir| dir.join("fuzz/regressions"))
        .find(|dir| dir.is_dir())
        .expect("fuzz/regressions, above this crate");
    for target in targets {
        let scratch = tempfile::tempdir().unwrap();
        let run = |input: &[u8]| {
            let _tell = Tell(target.name, input);
            (target.run)(input, scratch.path());
        };
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{} has no seeds", target.name);
        seeds.iter().for_each(|seed| run(seed));
        let found = std::fs::read_dir(findings.join(target.name));
        for file in found.into_iter().flatten().flatten() {
            run(&std::fs::read(file.path()).unwrap());
        }
        let mut chance = Chance(0x9E37_79B9_7F4A_7C15);
        for _ in 0..target.rounds {
            run(&chance.changed(&seeds));
        }
        let left = std::fs::read_dir(scratch.path()).unwrap().count();
        assert_eq!(left, 0, "{} leaves files behind", target.name);
    }
}

/// Says which input it was when it panics.
#[cfg(test)]
struct Tell<'a>(&'static str, &'a [u8]);

#[cfg(test)]
impl Drop for Tell<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} on b\"{}\"", self.0, self.1.escape_ascii());
        }
    }
}

/// xorshift64*.
#[cfg(test)]
struct Chance(u64);

#[cfg(test)]
impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit.max(1)
    }

    /// A seed with up to six changes of the kinds that fuzzers make.
    fn changed(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        const NUMBERS: [u64; 8] = [
            0,
            1,
            0x7f,
            0xff,
            0xffff,
            0x7fff_ffff,
            u32::MAX as u64,
            u64::MAX,
        ];
        let mut bytes = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(6) {
            let at = self.below(bytes.len());
            let end = (at + 1 + self.below(40)).min(bytes.len());
            match self.below(7) {
                _ if bytes.is_empty() => bytes.push(self.next() as u8),
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = self.next() as u8,
                2 => bytes.truncate(at),
                3 => drop(bytes.drain(at..end)),
                4 => {
                    let piece = bytes[at..end].to_vec();
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, piece);
                }
                5 => {
                    let number = NUMBERS[self.below(NUMBERS.len())];
                    let width = 1 << self.below(4);
                    for (to, byte) in bytes[at..].iter_mut().zip(&number.to_le_bytes()[..width]) {
                        *to = *byte;
                    }
                }
                _ => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len());
                    let piece = &other[from..(from + 64).min(other.len())];
                    bytes.splice(at..at, piece.iter().copied());
                }
            }
        }
        bytes
    }
}
