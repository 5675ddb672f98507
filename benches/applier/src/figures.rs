//! Medians, quantiles, and numbers for printing.

use std::time::Duration;

/// The middle one.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// The figure that this share of all does not exceed.
pub(crate) fn quantile(figures: &[f64], share: f64) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "for printing")]
    let index = (count(sorted.len() as u64) * share) as usize;
    sorted[index.min(sorted.len() - 1)]
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub(crate) fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// A count for printing.
#[allow(clippy::cast_precision_loss, reason = "for printing")]
pub(crate) fn count(number: u64) -> f64 {
    number as f64
}
