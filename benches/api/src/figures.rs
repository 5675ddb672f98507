//! Medians, quantiles, and numbers for printing.

use std::time::Duration;

/// One round's outcome.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    /// Transactions a second.
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

impl Round {
    /// Of what each transaction took, in all of `elapsed`.
    pub(crate) fn of(mut times: Vec<Duration>, elapsed: Duration) -> Self {
        times.sort_unstable();
        assert!(!times.is_empty(), "a round is long enough for a transaction");
        let quantile = |share: f64| times[index(times.len(), share)].as_secs_f64() * 1e6;
        Self {
            per_second: count(times.len() as u64) / elapsed.as_secs_f64(),
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
        }
    }

    /// The middle one of several rounds, figure by figure.
    pub(crate) fn median(rounds: &[Self]) -> Self {
        let middle = |figure: fn(&Self) -> f64| {
            let mut figures: Vec<f64> = rounds.iter().map(figure).collect();
            figures.sort_unstable_by(f64::total_cmp);
            figures[figures.len() / 2]
        };
        Self {
            per_second: middle(|round| round.per_second),
            p50_us: middle(|round| round.p50_us),
            p99_us: middle(|round| round.p99_us),
        }
    }
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "for printing")]
fn index(length: usize, share: f64) -> usize {
    ((length as f64 * share) as usize).min(length - 1)
}

/// A count for printing.
#[allow(clippy::cast_precision_loss, reason = "for printing")]
pub(crate) fn count(number: u64) -> f64 {
    number as f64
}
