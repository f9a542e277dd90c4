//! The expected error of any grid on a tensor, from its histogram.
//!
//! Numbers are taken to be spread evenly within each bin. Cumulative sums of `1`, `x` and `x²` over the bins then give the
//! squared error of a grid exactly, with one look-up for each of its points: at 8 bits a grid costs about a microsecond,
//! however many elements were seen. Behind a [`Reader`] `f` the same holds of `f(x)`, taken to be quadratic within each bin.

use super::Reader;
use crate::stats::{Histogram, TensorStats};
use fewbits_graph::QuantParams;

/// Cumulative moments of a tensor's distribution.
#[derive(Clone, Debug)]
pub struct Moments {
    inverse_width: f64,
    first: f64,
    bins: Vec<Bin>,
    sum_of_squares: f64,
    total: f64,
    reader: Reader,
}

#[derive(Clone, Copy, Debug)]
struct Bin {
    start: f64,
    /// 0 if all numbers of the bin are alike, such as the 6.0 of a ReLU6.
    width: f64,
    /// Its reciprocal, or a huge number.
    inverse_width: f64,
    count: f64,
    /// Mean of `f` over the bin.
    mean: f64,
    /// How many numbers lie in lower bins, and the sum of `f` over them.
    count_below: f64,
    sum_below: f64,
}

impl Moments {
    /// The moments of what was seen. Exact zeros only count towards the total: every grid holds them without error.
    pub fn new(stats: &TensorStats) -> Self {
        Self::behind(stats, &stats.histogram, Reader::Identity)
    }

    /// The moments of one of the histograms of `stats`, as `reader` makes it. It must map zero to zero unless no number is exactly zero.
    pub fn behind(stats: &TensorStats, histogram: &Histogram, reader: Reader) -> Self {
        // The outermost edges are the exact extremes.
        let edge = |k: usize| histogram.edge(k).clamp(f64::from(stats.min), f64::from(stats.max));
        let mut bins = Vec::with_capacity(histogram.counts.len());
        let (mut count_below, mut sum_below, mut sum_of_squares) = (0.0, 0.0, 0.0);
        for (k, &count) in histogram.counts.iter().enumerate() {
            let (start, end, count) = (edge(k), edge(k + 1), count as f64);
            let width = end - start;
            let inverse_width = if width > 0.0 { 1.0 / width } else { f64::MAX };
            let (low, middle, high) = (reader.value(start), reader.value(0.5 * (start + end)), reader.value(end));
            let mean = (low + 4.0 * middle + high) / 6.0;
            bins.push(Bin { start, width, inverse_width, count, mean, count_below, sum_below });
            count_below += count;
            sum_below += count * mean;
            sum_of_squares += count * mean_square(low, middle, high);
        }
        Moments {
            inverse_width: 1.0 / histogram.width(),
            first: histogram.first as f64,
            bins,
            sum_of_squares,
            total: histogram.total() as f64,
            reader,
        }
    }

    /// How many numbers lie below `x`, and the sum of `f` over them. There is at least one bin.
    fn below(&self, x: f64) -> (f64, f64) {
        let k = (x * self.inverse_width - self.first).max(0.0) as u32 as usize;
        let bin = &self.bins[k.min(self.bins.len() - 1)];
        let part = ((x - bin.start) * bin.inverse_width).clamp(0.0, 1.0);
        let inside = bin.count * part;
        // `f` at the middle of the part; within a bin a straight line will do.
        let mean = match self.reader {
            Reader::Identity => bin.start + 0.5 * part * bin.width,
            _ if part >= 1.0 => bin.mean,
            reader => reader.value(bin.start + 0.5 * part * bin.width),
        };
        (bin.count_below + inside, bin.sum_below + inside * mean)
    }

    /// Expected `(f(x) − f(dequantize(quantize(x))))²` on a per-tensor grid, rounding and clipping together.
    ///
    /// With `c_q` the number that code `q` stands for, `N_q` and `X_q` the count and the sum of the numbers nearest to it, this
    /// is `(Σx² + Σ_q (c_q²·N_q − 2·c_q·X_q)) / N`; behind a reader, `f` stands before every `x` and `c`.
    pub fn mean_squared_error(&self, params: &QuantParams) -> f64 {
        let (scale, zero_point) = (params.scale[0], params.zero_point[0]);
        self.error(scale, zero_point, params.grid.qmin(), params.grid.qmax()) / self.total.max(1.0)
    }

    /// Expected squared error times the number of elements.
    pub(super) fn error(&self, scale: f32, zero_point: i32, qmin: i32, qmax: i32) -> f64 {
        let (Some(lowest), Some(highest)) = (self.bins.first(), self.bins.last()) else { return 0.0 };
        let (scale, zero) = (f64::from(scale), f64::from(zero_point));
        // Codes beyond the data have no numbers.
        let code = |x: f64| (x / scale + zero).clamp(f64::from(qmin), f64::from(qmax));
        let (first, last) = (code(lowest.start).floor(), code(highest.start + highest.width).ceil());
        let mut error = self.sum_of_squares;
        let mut seen = (0.0, 0.0);
        let mut take = |q: f64, below: (f64, f64)| {
            let c = self.reader.value((q - zero) * scale);
            error += c * (c * (below.0 - seen.0) - 2.0 * (below.1 - seen.1));
            seen = below;
        };
        let mut q = first;
        while q < last {
            take(q, self.below((q + 0.5 - zero) * scale));
            q += 1.0;
        }
        take(last, self.below(f64::INFINITY));
        error.max(0.0)
    }
}

/// Mean over a bin of the square of the quadratic through its ends and middle (Simpson's rule on the squares, exact for straight lines).
fn mean_square(low: f64, middle: f64, high: f64) -> f64 {
    (low * low + 4.0 * middle * middle + high * high) / 6.0
}
