//! A histogram over signed numbers whose bins widen as the data do.
//!
//! What enters: finite numbers, a batch at a time. What leaves: counts over bins `[i·w, (i+1)·w)` whose width `w` is a power of
//! two. Doubling the width merges bins `2j` and `2j+1` into `j`, so the counts are exactly those that the final width would
//! have given from the start, whatever the order of the data.

use serde::{Deserialize, Serialize};

/// Most bins of a histogram. The bins in use number between half of this and all of it, so a grid of 256 points has at least
/// eight bins to a step.
pub const MAX_BINS: usize = 4096;

/// Counts of numbers. Exact zeros are counted apart: they are half of what a ReLU leaves, and every grid holds them exactly.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Base-2 logarithm of the bin width.
    pub log2_width: i32,
    /// Index of the first bin: `counts[k]` covers `[(first + k)·w, (first + k + 1)·w)`.
    pub first: i64,
    /// Numbers other than zero, by bin.
    pub counts: Vec<u64>,
    /// Numbers equal to zero.
    pub zeros: u64,
}

impl Histogram {
    /// Width of a bin.
    pub fn width(&self) -> f64 {
        2f64.powi(self.log2_width)
    }

    /// Lower edge of bin `k`; `edge(counts.len())` is the upper edge of the last one.
    pub fn edge(&self, k: usize) -> f64 {
        (self.first + k as i64) as f64 * self.width()
    }

    /// How many numbers were counted.
    pub fn total(&self) -> u64 {
        self.zeros + self.counts.iter().sum::<u64>()
    }

    /// Counts `values`, which lie within `lo..=hi`; infinities and NaN are left out.
    pub fn add(&mut self, values: &[f32], lo: f32, hi: f32) {
        if lo == 0.0 && hi == 0.0 {
            self.zeros += values.iter().filter(|&&x| x == 0.0).count() as u64;
            return;
        }
        self.cover(lo, hi);
        let (inverse, first) = (1.0 / self.width(), self.first as i32);
        for &x in values.iter().filter(|x| x.is_finite()) {
            // A zero adds 0 to its bin: half of what follows a ReLU is zero, at places that no branch predictor foresees.
            let zero = u64::from(x == 0.0);
            self.zeros += zero;
            self.counts[(floor(f64::from(x) * inverse) - first) as usize] += 1 - zero;
        }
    }

    /// Counts each of `values` as often as the number beside it in `weights` says; nothing if there are no weights.
    pub fn add_weighted(&mut self, values: &[f32], weights: &[u32], lo: f32, hi: f32) {
        if weights.is_empty() {
            return;
        }
        let pairs = || values.iter().zip(weights).filter(|(x, _)| x.is_finite());
        if lo == 0.0 && hi == 0.0 {
            self.zeros += pairs().filter(|(x, _)| **x == 0.0).map(|(_, &w)| u64::from(w)).sum::<u64>();
            return;
        }
        self.cover(lo, hi);
        let (inverse, first) = (1.0 / self.width(), self.first as i32);
        for (&x, &w) in pairs() {
            let zero = u64::from(x == 0.0) * u64::from(w);
            self.zeros += zero;
            self.counts[(floor(f64::from(x) * inverse) - first) as usize] += u64::from(w) - zero;
        }
    }

    /// Widens and extends the bins until they hold `lo..=hi`.
    fn cover(&mut self, lo: f32, hi: f32) {
        if self.counts.is_empty() {
            // Too fine by construction: the loop below doubles it to the finest width that fits.
            let largest = f64::from(lo.abs().max(hi.abs()));
            let exponent = (largest.to_bits() >> 52) as i32 - 1023;
            self.log2_width = exponent - MAX_BINS.ilog2() as i32;
            self.first = i64::from(floor(f64::from(lo) / self.width()));
        }
        loop {
            let index = |x: f32| i64::from(floor(f64::from(x) / self.width()));
            let old_end = self.first + self.counts.len() as i64;
            let (start, end) = (self.first.min(index(lo)), old_end.max(index(hi) + 1));
            if end - start <= MAX_BINS as i64 {
                self.counts.splice(0..0, std::iter::repeat_n(0, (self.first - start) as usize));
                self.counts.resize((end - start) as usize, 0);
                self.first = start;
                return;
            }
            self.merge_pairs();
        }
    }

    /// Doubles the bin width.
    fn merge_pairs(&mut self) {
        let first = self.first >> 1;
        let mut merged = vec![0; self.counts.len() / 2 + 1];
        for (k, count) in self.counts.iter().enumerate() {
            merged[(((self.first + k as i64) >> 1) - first) as usize] += count;
        }
        let used = merged.iter().rposition(|&c| c > 0).map_or(0, |last| last + 1);
        merged.truncate(used);
        *self = Histogram { log2_width: self.log2_width + 1, first, counts: merged, zeros: self.zeros };
    }
}

/// `x` rounded down; saturates.
fn floor(x: f64) -> i32 {
    let truncated = x as i32;
    truncated.saturating_sub(i32::from(f64::from(truncated) > x))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of both signs whose magnitude grows from 1e-6 to 1e3, and some zeros.
    fn growing() -> Vec<f32> {
        let wave = |i: i32| (i as f32 * 0.7).sin() * 10f32.powf(i as f32 / 400.0 - 6.0);
        (0..3600).map(|i| if i % 7 == 0 { 0.0 } else { wave(i) }).collect()
    }

    fn add(histogram: &mut Histogram, batch: &[f32]) {
        let [lo, hi] = [f32::min, f32::max].map(|pick| batch.iter().copied().reduce(pick).unwrap());
        histogram.add(batch, lo, hi);
    }

    #[test]
    fn growing_bins_end_as_if_the_final_width_had_been_there_from_the_start() {
        let values = growing();
        let mut histogram = Histogram::default();
        values.chunks(100).for_each(|batch| add(&mut histogram, batch));
        let width = histogram.width();
        let mut counts = vec![0; histogram.counts.len()];
        for &x in values.iter().filter(|&&x| x != 0.0) {
            counts[((f64::from(x) / width).floor() as i64 - histogram.first) as usize] += 1;
        }
        assert_eq!(histogram.counts, counts);
        assert_eq!(histogram.total(), values.len() as u64);
        assert_eq!(histogram.zeros, values.iter().filter(|&&x| x == 0.0).count() as u64);
        assert!(histogram.counts.len() > MAX_BINS / 2 - 2 && histogram.counts.len() <= MAX_BINS);
    }

    #[test]
    fn neither_order_nor_batches_matter() {
        let mut values = growing();
        let mut forward = Histogram::default();
        add(&mut forward, &values);
        values.reverse();
        let mut backward = Histogram::default();
        values.chunks(13).for_each(|batch| add(&mut backward, batch));
        assert_eq!(forward.log2_width, backward.log2_width);
        // Bins at either end may be empty in one and absent in the other.
        let list = |h: &Histogram| -> Vec<(i64, u64)> {
            let bins = h.counts.iter().enumerate().filter(|(_, c)| **c > 0);
            bins.map(|(k, &c)| (h.first + k as i64, c)).collect()
        };
        assert_eq!(list(&forward), list(&backward));
    }

    #[test]
    fn extremes_are_counted() {
        let mut histogram = Histogram::default();
        histogram.add(&[], 0.0, 0.0);
        histogram.add(&[0.0, -0.0, f32::NAN, f32::INFINITY], 0.0, 0.0);
        assert_eq!((histogram.total(), histogram.counts.len()), (2, 0));
        let least = f32::from_bits(1);
        histogram.add(&[least, -least], -least, least);
        histogram.add(&[f32::MAX, f32::MIN, f32::NAN], f32::MIN, f32::MAX);
        assert_eq!(histogram.total(), 6);
        assert!(
            histogram.edge(0) <= f64::from(f32::MIN) && histogram.edge(histogram.counts.len()) > f64::from(f32::MAX)
        );
        let mut single = Histogram::default();
        single.add(&[6.0; 10], 6.0, 6.0);
        assert_eq!(single.counts, [10]);
        assert_eq!(single.edge(0), 6.0);
    }
}
