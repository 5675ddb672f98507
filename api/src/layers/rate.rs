//! A rate limit that keeps one number: when, at the rate that is allowed, everything admitted so far would have come (GCRA,
//! the generic cell rate algorithm of ATM's traffic management).

use std::time::Duration;

use tokio::time::Instant;

/// How much may come at once: what the rate allows in this time.
const BURST: Duration = Duration::from_secs(1);

/// A bucket for one client. It is full when it is made.
#[derive(Debug)]
pub(super) struct Rate {
    interval: Duration,
    /// Never far in the past, and at most [`BURST`] in the future.
    theoretical: Instant,
}

impl Rate {
    /// `per_second` calls a second, at least one.
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        Self { interval: Duration::from_secs(1) / per_second.max(1), theoretical: now }
    }

    /// Admits one call, or says after which time one will be.
    pub(super) fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        let next = self.theoretical.max(now) + self.interval;
        let ahead = next.saturating_duration_since(now);
        if ahead > BURST {
            return Err(ahead.saturating_sub(BURST));
        }
        self.theoretical = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_s_worth_at_once_and_then_the_rate() {
        let start = Instant::now();
        let mut rate = Rate::new(10, start);
        let admitted = (0..100).filter(|_| rate.admit(start).is_ok()).count();
        assert_eq!(admitted, 10);
        assert_eq!(rate.admit(start), Err(Duration::from_millis(100)));
        assert_eq!(rate.admit(start + Duration::from_millis(99)), Err(Duration::from_millis(1)));
        assert_eq!(rate.admit(start + Duration::from_millis(100)), Ok(()));
        let later = start + Duration::from_mins(1);
        assert_eq!((0..100).filter(|_| rate.admit(later).is_ok()).count(), 10, "what was not used does not add up");
    }

    #[test]
    fn over_ten_seconds_no_more_than_the_rate_and_one_burst() {
        let start = Instant::now();
        let mut rate = Rate::new(100, start);
        let admitted = (0..10_000).filter(|ms| rate.admit(start + Duration::from_millis(*ms)).is_ok()).count();
        assert!((1_090..=1_100).contains(&admitted), "{admitted}");
    }
}
