//! How long to wait before the next attempt.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
/// A connection to a socket where nobody listens costs nothing, and containers that are created
/// before the plugin is back are created without it.
const ABSENT: Duration = Duration::from_secs(1);
/// A runtime that refuses the plugin writes that into its log every time.
const REFUSED: Duration = Duration::from_secs(30);

/// Waiting times that double.
#[derive(Debug, Default)]
pub(super) struct Backoff(u32);

impl Backoff {
    /// Whether nothing has failed yet.
    pub(super) fn is_first(&self) -> bool {
        self.0 == 0
    }

    /// The next waiting time. `absent`: no runtime was there.
    pub(super) fn next(&mut self, absent: bool) -> Duration {
        let pause = FIRST.saturating_mul(1 << self.0.min(16));
        self.0 += 1;
        pause.min(if absent { ABSENT } else { REFUSED })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_runtime_is_looked_for_every_second_and_a_refusing_one_less_often() {
        let mut backoff = Backoff::default();
        assert!(backoff.is_first());
        assert_eq!(backoff.next(true), FIRST);
        assert!(!backoff.is_first());
        for _ in 0..100 {
            assert!(backoff.next(true) <= ABSENT);
        }
        assert_eq!(backoff.next(true), ABSENT);
        assert_eq!(backoff.next(false), REFUSED);
    }
}
