//! The clipping threshold with the least relative entropy (TensorRT's calibration).
//!
//! *When it helps*: 8-bit classifiers with long tails. *When it fails*: low bits and depthwise networks.
//!
//! For each candidate threshold of `i` bins of `|x|`, P is the histogram below it with the mass above added to its last bin, and
//! Q is the histogram below it (without that mass) merged into as many groups as the grid has levels (the remainder goes to the last
//! group), each spread evenly over its non-empty bins. The threshold with the least `Σ P ln(P/Q)` wins.
//! Source: NVIDIA, "8-bit inference with TensorRT", 2017; details as in MXNet. *Departures*: the bins are those of the
//! histogram; exact zeros are left out, as every grid holds them; an empty bin has [`EPSILON`] in Q, and nothing in P; at most
//! [`CANDIDATES`] thresholds are tried, none below [`LEAST_SHARE`] of the range, where few levels would make Q equal to P and
//! nearly everything an outlier. The threshold bounds both sides of a signed tensor.

use super::Range;
use crate::stats::TensorStats;
use fewbits_graph::Grid;

/// What an empty bin holds in Q, in counts.
const EPSILON: f64 = 1e-4;
const CANDIDATES: usize = 512;
/// The least threshold, as bins per bin kept: TensorRT's 128 of 2048 bins.
const LEAST_SHARE: usize = 16;

pub(super) fn range(stats: &TensorStats, grid: Grid) -> Range {
    let histogram = &stats.histogram;
    let mut counts: Vec<f64> = Vec::new();
    for (k, &count) in histogram.counts.iter().enumerate() {
        let index = histogram.first + k as i64;
        // |x| of bin −1 is that of bin 0.
        let index = (if index < 0 { -1 - index } else { index }) as usize;
        if index >= counts.len() {
            counts.resize(index + 1, 0.0);
        }
        counts[index] += count as f64;
    }
    let levels = 1 << if stats.min < 0.0 || grid.signed { grid.bits - 1 } else { grid.bits };
    let threshold = best_bins(&counts, levels) as f64 * histogram.width();
    Range { lo: -threshold, hi: threshold }
}

/// How many of the first bins to keep.
fn best_bins(counts: &[f64], levels: usize) -> usize {
    let bins = counts.len();
    // Sums over the bins before each: counts, non-empty bins, and c·ln c.
    let mut before = vec![(0.0, 0.0, 0.0)];
    for &c in counts {
        let (sum, used, log) = before[before.len() - 1];
        before.push(if c > 0.0 { (sum + c, used + 1.0, log + c * c.ln()) } else { (sum, used, log) });
    }
    let divergence = |kept: usize| {
        let all = before[bins].0;
        let (kept_sum, _, kept_log) = before[kept];
        let outliers = all - kept_sum;
        // Σ p ln p − Σ p ln q in counts, with the last bin apart.
        let last = counts[kept - 1];
        let x_ln_x = |x: f64| if x > 0.0 { x * x.ln() } else { 0.0 };
        let mut sum = kept_log - x_ln_x(last) + x_ln_x(last + outliers);
        let size = kept / levels;
        let mut last_q = EPSILON;
        for group in 0..levels {
            let (start, end) = (group * size, if group + 1 == levels { kept } else { (group + 1) * size });
            let (mass, used) = (before[end].0 - before[start].0, before[end].1 - before[start].1);
            if used > 0.0 {
                let q = mass / used;
                sum -= mass * q.ln();
                if group + 1 == levels && last > 0.0 {
                    last_q = q;
                }
            }
        }
        sum -= outliers * last_q.ln();
        // Both normalised: P sums to `all`, Q to `kept_sum`.
        sum / all + (kept_sum.max(EPSILON) / all).ln()
    };
    let least = levels.max(bins / LEAST_SHARE);
    let step = bins.div_ceil(CANDIDATES).max(1);
    // From the widest down, so that ties clip less.
    let candidates = (0..).map(|i| bins.saturating_sub(i * step)).take_while(|&kept| kept >= least);
    candidates
        .map(|kept| (divergence(kept), kept))
        .fold((f64::INFINITY, bins), |best, c| if c.0 < best.0 { c } else { best })
        .1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    /// The divergence as the published algorithm computes it, on whole arrays.
    fn plain(counts: &[f64], levels: usize, kept: usize) -> f64 {
        let mut p = counts[..kept].to_vec();
        p[kept - 1] += counts[kept..].iter().sum::<f64>();
        let mut q = vec![0.0; kept];
        let size = kept / levels;
        for group in 0..levels {
            let bins = group * size..if group + 1 == levels { kept } else { (group + 1) * size };
            let used = counts[bins.clone()].iter().filter(|&&c| c > 0.0).count();
            let mass: f64 = counts[bins.clone()].iter().sum();
            for k in bins.filter(|&k| counts[k] > 0.0) {
                q[k] = mass / used as f64;
            }
        }
        let total: (f64, f64) = (p.iter().sum(), q.iter().sum());
        let term = |(&p, &q): (&f64, &f64)| {
            let (p, q) = (p / total.0, q.max(EPSILON) / total.1);
            if p > 0.0 { p * (p / q).ln() } else { 0.0 }
        };
        p.iter().zip(&q).map(term).sum()
    }

    #[test]
    fn the_threshold_is_that_of_the_published_algorithm() {
        let mut random = Random::new(3);
        for (levels, tail) in [(128, 1.0f32), (8, 1.0), (128, 6.0), (256, 12.0), (2, 3.0)] {
            let mut counts = vec![0.0; 500];
            for _ in 0..60_000 {
                let x = random.laplace().abs() * if random.uniform() < 0.01 { tail } else { 1.0 };
                counts[((x * 20.0) as usize).min(499)] += 1.0;
            }
            let best = (levels.max(500 / LEAST_SHARE)..=500)
                .map(|kept| (plain(&counts, levels, kept), kept))
                .min_by(|a, b| a.0.total_cmp(&b.0));
            let found = best_bins(&counts, levels);
            let (least, bins) = best.unwrap();
            assert!((plain(&counts, levels, found) - least).abs() < 1e-9, "{levels}: {found} instead of {bins}");
        }
    }

    #[test]
    fn fewer_bins_than_levels_clip_nothing() {
        assert_eq!(best_bins(&[5.0, 0.0, 1.0], 128), 3);
        assert_eq!(best_bins(&[], 128), 0);
    }
}
