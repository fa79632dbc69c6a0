//! FSE coding with a table fitted to the symbols of one block (RFC 8878, 4.1).

use super::bits::Bits;
use super::put;
use super::sequence::CODES;

/// Largest table.
const SIZE_MAX: usize = 1 << 9;
const LOG_MIN: u32 = 5;
/// Compression modes of the sequences section.
const RLE: u8 = 1;
const FSE: u8 = 2;

/// How a symbol moves the state: `bits = (state + base) >> 16` go out, then the next state is
/// `next[(state >> bits) + first]`.
#[derive(Debug, Clone, Copy, Default)]
struct Step {
    base: u32,
    first: i32,
}

/// Writes symbols of one kind.
#[derive(Debug)]
pub(super) struct Coder {
    log: u32,
    next: [u16; SIZE_MAX],
    steps: [Step; CODES],
}

impl Coder {
    pub(super) fn empty() -> Self {
        Self {
            log: 0,
            next: [0; SIZE_MAX],
            steps: [Step::default(); CODES],
        }
    }

    /// Fits the table to `counts`, writes its description to `output` at `at`, and returns its
    /// mode and end.
    pub(super) fn fit(
        &mut self,
        counts: &[u32; CODES],
        log_max: u32,
        output: &mut [u8],
        mut at: usize,
    ) -> Option<(u8, usize)> {
        let total: u32 = counts.iter().sum();
        let symbols = counts.iter().filter(|count| **count > 0).count();
        if symbols == 1 {
            let symbol = counts.iter().position(|count| *count > 0)?;
            put(output, &mut at, &[symbol as u8])?;
            // One state, and no bits to tell it.
            self.log = 0;
            self.next[0] = 0;
            self.steps[symbol] = Step::default();
            return Some((RLE, at));
        }
        // A finer table than there are symbols to count gains nothing.
        let wanted = total.max(2).ilog2().clamp(LOG_MIN, log_max);
        self.log = wanted
            .max(symbols.next_power_of_two().ilog2() + 1)
            .min(log_max);
        let shares = shares(counts, u64::from(total), 1 << self.log);
        self.build(&shares);
        Some((FSE, describe(&shares, self.log, output, at)?))
    }

    /// Lays the states out as the decoder does.
    fn build(&mut self, shares: &[u32; CODES]) {
        let size = 1_usize << self.log;
        let mut symbols = [0_u8; SIZE_MAX];
        let stride = (size >> 1) + (size >> 3) + 3;
        let mut place = 0;
        for (symbol, share) in shares.iter().enumerate() {
            for _ in 0..*share {
                symbols[place] = symbol as u8;
                place = (place + stride) & (size - 1);
            }
        }
        let mut first = 0;
        let mut free = [0_u32; CODES];
        for (symbol, share) in shares.iter().enumerate().filter(|(_, share)| **share > 0) {
            free[symbol] = first;
            // States from `share << bits` on send `bits` bits, those before it one less.
            let bits = self.log - (*share - 1).checked_ilog2().unwrap_or(0);
            self.steps[symbol] = Step {
                base: (bits << 16) - (*share << bits),
                first: first as i32 - *share as i32,
            };
            first += share;
        }
        for (state, symbol) in symbols[..size].iter().enumerate() {
            let free = &mut free[usize::from(*symbol)];
            self.next[*free as usize] = (size + state) as u16;
            *free += 1;
        }
    }

    /// The state that ends in `symbol`, for the last one.
    pub(super) fn start(&self, symbol: u8) -> u32 {
        let step = self.steps[usize::from(symbol)];
        let bits = step.base.wrapping_add(1 << 15) >> 16;
        let state = (bits << 16).wrapping_sub(step.base);
        self.next(state >> bits, step)
    }

    /// The bits that add `symbol` before those added so far, and their number.
    #[inline(always)]
    pub(super) fn step(&self, state: &mut u32, symbol: u8) -> (u64, u32) {
        let step = self.steps[usize::from(symbol) % CODES];
        let count = state.wrapping_add(step.base) >> 16;
        let bits = u64::from(*state & ((1 << count) - 1));
        *state = self.next(*state >> count, step);
        (bits, count)
    }

    #[inline]
    fn next(&self, index: u32, step: Step) -> u32 {
        let index = (index as i32 + step.first) as usize % SIZE_MAX;
        u32::from(self.next[index])
    }

    /// Tells the decoder where to start.
    pub(super) fn finish(&self, state: u32, bits: &mut Bits<'_>) {
        bits.add(u64::from(state & ((1 << self.log) - 1)), self.log);
        bits.flush();
    }
}

/// Shares of a table of `size` states for every symbol that occurs, at least one each.
fn shares(counts: &[u32; CODES], total: u64, size: u32) -> [u32; CODES] {
    let mut shares = [0; CODES];
    for (share, count) in shares
        .iter_mut()
        .zip(counts)
        .filter(|(_, count)| **count > 0)
    {
        *share = ((u64::from(*count) * u64::from(size) + total / 2) / total).max(1) as u32;
    }
    let mut sum: u32 = shares.iter().sum();
    while sum != size {
        // The largest share feels a change least.
        let largest = shares.iter_mut().max();
        let Some(largest) = largest else { break };
        if sum < size {
            *largest += size - sum;
            sum = size;
        } else {
            let less = (sum - size).min(*largest / 2).max(1);
            *largest -= less;
            sum -= less;
        }
    }
    shares
}

/// Writes the shares as RFC 8878, 4.1.1 has them; returns the end.
fn describe(shares: &[u32; CODES], log: u32, output: &mut [u8], at: usize) -> Option<usize> {
    if output.len() < at + 256 {
        return None;
    }
    let mut bits = Bits::new(output, at);
    bits.add(u64::from(log - LOG_MIN), 4);
    // One more than what is left to share out, as the specification counts.
    let mut left = (1 << log) + 1;
    let mut symbol = 0;
    while left > 1 {
        let value = shares[symbol] + 1;
        // `value` is at most `left`: those up to `short` take one bit less.
        let wide = u32::ilog2(left) + 1;
        let threshold = 1 << (wide - 1);
        let short = 2 * threshold - 1 - left;
        let (code, count) = if value < short {
            (value, wide - 1)
        } else if value < threshold {
            (value, wide)
        } else {
            (value + short, wide)
        };
        bits.add(u64::from(code), count);
        bits.flush();
        left -= shares[symbol];
        symbol += 1;
        if value == 1 {
            // Zeros after a zero: threes, then what remains.
            let mut zeros = shares[symbol..]
                .iter()
                .take_while(|share| **share == 0)
                .count();
            symbol += zeros;
            while zeros >= 3 {
                bits.add(3, 2);
                bits.flush();
                zeros -= 3;
            }
            bits.add(zeros as u64, 2);
            bits.flush();
        }
    }
    Some(bits.pad())
}
