//! Quantiles of the histogram.
//!
//! *When it helps*: a few outliers stretch the range. *When it fails*: the outliers matter, as in EfficientNet's squeeze blocks.

use super::Range;
use crate::stats::TensorStats;

/// The quantiles `1 − p` and `p`, with numbers spread evenly within each bin.
pub(super) fn range(stats: &TensorStats, p: f64) -> Range {
    Range::of(quantile(stats, 1.0 - p), quantile(stats, p))
}

fn quantile(stats: &TensorStats, p: f64) -> f64 {
    let histogram = &stats.histogram;
    let mut left = p * histogram.total() as f64;
    let mut zeros = histogram.zeros as f64;
    for (k, &count) in histogram.counts.iter().enumerate() {
        if histogram.first + k as i64 >= 0 {
            // Zeros lie between the bins −1 and 0.
            left -= zeros;
            zeros = 0.0;
            if left <= 0.0 {
                return 0.0;
            }
        }
        let count = count as f64;
        if left <= count && count > 0.0 {
            return histogram.edge(k) + left / count * histogram.width();
        }
        left -= count;
    }
    // Whatever rounding or trailing zeros leave.
    f64::from(stats.max)
}
