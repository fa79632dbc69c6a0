//! How long a checkpoint may take so that its caller still hears how it went.

use std::time::Duration;

use tokio::time::Instant;

/// Of the caller's time, this part is kept for rolling back.
const SHARE: u32 = 10;
/// The least and the most that is kept.
const MARGIN: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(10));

/// When a checkpoint has to be done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    /// When the call came.
    received: Instant,
    /// What the caller gave it.
    pub(super) given: Duration,
}

impl Deadline {
    /// The least of the call's deadline, the request's timeout in seconds (0 for none), and the
    /// administrator's limit.
    pub(super) fn of(
        received: Instant,
        call: Option<Duration>,
        request_s: i64,
        limit_s: u64,
    ) -> Self {
        let request = u64::try_from(request_s).ok().filter(|s| *s > 0);
        let given = [call, request.map(Duration::from_secs)]
            .into_iter()
            .flatten()
            .fold(Duration::from_secs(limit_s), Duration::min);
        Self { received, given }
    }

    /// What is left for the work, when rolling back gets its share.
    pub(super) fn left(&self) -> Duration {
        let margin = (self.given / SHARE).clamp(MARGIN.0, MARGIN.1);
        let work = self.given.saturating_sub(margin).max(self.given / 2);
        (self.received + work).saturating_duration_since(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(call: Option<u64>, request: i64, limit: u64) -> u64 {
        let call = call.map(Duration::from_secs);
        Deadline::of(Instant::now(), call, request, limit)
            .given
            .as_secs()
    }

    #[test]
    fn the_least_of_all_limits_counts() {
        assert_eq!(given(Some(120), 120, 3600), 120);
        assert_eq!(given(Some(120), 30, 3600), 30);
        assert_eq!(given(Some(20), 30, 3600), 20);
        assert_eq!(given(None, 0, 3600), 3600);
        assert_eq!(given(None, -5, 3600), 3600);
        assert_eq!(given(Some(7200), 0, 3600), 3600);
    }

    #[test]
    fn rolling_back_gets_its_share() {
        let work = |given: u64| {
            let deadline = Deadline {
                received: Instant::now(),
                given: Duration::from_millis(given),
            };
            deadline.left().as_millis()
        };
        let about = |left: u128, is: u128| left <= is && left + 50 >= is;
        assert!(about(work(120_000), 110_000));
        assert!(about(work(20_000), 18_000));
        assert!(about(work(1000), 700));
        assert!(about(work(100), 50));
        let past = Deadline {
            received: Instant::now() - Duration::from_secs(2),
            given: Duration::from_secs(1),
        };
        assert_eq!(past.left(), Duration::ZERO);
    }
}
