//! Clipping: rules that say how far the grid of a group of weights reaches.
//!
//! # What it does
//! A symmetric grid of `bits` bits that reaches to `α` has the scale `α / (2^(bits−1) − 1)`; what lies beyond is clipped. Each [`Clip`] is
//! a pure function from weights and bits to `α`, never beyond the largest magnitude. The methods that choose scales are made of them.
//!
//! # When it helps
//! At five bits and fewer, where a few large weights make the steps of all others coarse.
//!
//! # When it fails
//! A rule that supposes a distribution says little about nine weights. Rows of fewer than [`LEAST_WEIGHTS`] weights are divided by their
//! root mean square and taken together; the clip of the whole, times its root mean square, is each row's.
//!
//! # Cost
//! [`Clip::Lp`] rounds each weight about 90 times; the others read it once or twice.
//!
//! # Config
//! None.
//!
//! # Source
//! Migacz, "8-bit inference with TensorRT" (2017); Banner et al., "Post training 4-bit quantization of convolutional networks for
//! rapid-deployment" (NeurIPS 2019); Nahshan et al., "Loss Aware Post-training Quantization" (2019) for `p = 2.4`; Bhalgat et al.,
//! "LSQ+" (CVPRW 2020) for three deviations; Choi et al., "Accurate and efficient 2-bit quantized neural networks" (MLSys 2019).
//!
//! # Departures
//! The rules are one-sided where weights are not centred: `|mean| + α`. Few weights are taken together as above.

mod weights;

use fewbits_graph::Grid;
use fewbits_kernels::Threads;
pub use fewbits_quant::weights::largest;
use fewbits_quant::{
    Mapping, RangeRule, TensorStats,
    ranges::{self, Prior},
    stats::SAMPLES_PER_IMAGE,
    weights::nearest,
};
use fewbits_train::quantizers::{Deployable, Sawb};
use std::fmt;
pub(crate) use weights::with_scales;
pub use weights::{Rounded, Weights, round_layers};

/// Weights from which a row has statistics of its own.
pub const LEAST_WEIGHTS: usize = 64;

/// A rule for the clip of a group of weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Clip {
    /// `max`: nothing is clipped.
    Max,
    /// `kl`: the least relative entropy of a histogram.
    Kl,
    /// `aciq-laplace`, `aciq-gauss`: the least expected squared error under a prior.
    Aciq(Prior),
    /// `l2`, `l2.4`: the least `Σ |w − ŵ|^p`.
    Lp(f32),
    /// `percentile:P`: the quantile `P/100` of the magnitudes.
    Percentile(f64),
    /// `sigmas:k`: `|mean| + k σ`.
    Sigmas(f64),
    /// `sawb`: `c₁ √E[w²] + c₂ E|w|`, at most five bits.
    Sawb,
}

/// The candidates of [`crate::mixed_clipping`].
pub const CLIPS: [Clip; 10] = [
    Clip::Max,
    Clip::Kl,
    Clip::Aciq(Prior::Laplace),
    Clip::Aciq(Prior::Gauss),
    Clip::Lp(2.0),
    Clip::Lp(2.4),
    Clip::Percentile(99.9),
    Clip::Percentile(99.99),
    Clip::Sigmas(3.0),
    Clip::Sawb,
];

impl fmt::Display for Clip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Clip::Max => f.write_str("max"),
            Clip::Kl => f.write_str("kl"),
            Clip::Aciq(Prior::Laplace) => f.write_str("aciq-laplace"),
            Clip::Aciq(Prior::Gauss) => f.write_str("aciq-gauss"),
            Clip::Lp(p) => write!(f, "l{p}"),
            Clip::Percentile(percent) => write!(f, "percentile:{percent}"),
            Clip::Sigmas(k) => write!(f, "sigmas:{k}"),
            Clip::Sawb => f.write_str("sawb"),
        }
    }
}

impl Clip {
    /// `α` for `values`, at most their largest magnitude; `None` where the rule has no answer: nothing but zeros, or SAWB beyond five bits.
    pub fn magnitude(self, values: &[f32], bits: u8) -> Option<f32> {
        let most = largest(values);
        let found = match self {
            Clip::Max => most,
            Clip::Kl => kl(values, bits),
            Clip::Aciq(prior) => {
                let (mean, width) = mean_and_width(values, prior);
                (mean.abs() + ranges::optimum(prior, bits) * width) as f32
            }
            Clip::Lp(p) => lp(values, bits, p),
            Clip::Percentile(percent) => quantile(values, percent / 100.0),
            Clip::Sigmas(k) => {
                let (mean, sigma) = mean_and_width(values, Prior::Gauss);
                (mean.abs() + k * sigma) as f32
            }
            Clip::Sawb => *Sawb::new(bits).ok().filter(|_| bits <= 5)?.initial(values).first()?,
        };
        Some(found.min(most)).filter(|clip| clip.is_normal() && *clip > 0.0)
    }

    /// `α` for each row of `width` weights. Short rows are judged together by rules that suppose a distribution.
    pub fn magnitudes(self, rows: &[f32], width: usize, bits: u8, threads: &Threads) -> Vec<Option<f32>> {
        let width = width.max(1);
        let row = |i: usize| &rows[i * width..][..width];
        let count = rows.len() / width;
        if width >= LEAST_WEIGHTS || matches!(self, Clip::Max | Clip::Lp(_)) {
            return threads.map(count, |i| self.magnitude(row(i), bits));
        }
        let sizes: Vec<f32> = (0..count).map(|i| root_mean_square(row(i))).collect();
        let living = (0..count).filter(|i| sizes[*i].is_normal());
        let pooled: Vec<f32> = living.flat_map(|i| row(i).iter().map(|w| w / sizes[i]).collect::<Vec<_>>()).collect();
        let clip = self.magnitude(&pooled, bits);
        let of_row = |i: usize| Some((clip? * sizes[i]).min(largest(row(i)))).filter(|clip| clip.is_normal());
        (0..count).map(of_row).collect()
    }
}

/// `w` on the symmetric grid of `bits` bits with this scale.
pub fn rounded(row: &[f32], scale: f32, bits: u8) -> Vec<f32> {
    let top = Grid::weights(bits).qmax() as f32;
    row.iter().map(|w| nearest((w / scale).clamp(-top, top)) * scale).collect()
}

/// Mean of `values`, and their width as `prior` measures it.
pub fn mean_and_width(values: &[f32], prior: Prior) -> (f64, f64) {
    let count = values.len().max(1) as f64;
    let mean = values.iter().map(|w| f64::from(*w)).sum::<f64>() / count;
    let distances = values.iter().map(|w| (f64::from(*w) - mean).abs());
    let width = match prior {
        Prior::Laplace => distances.sum::<f64>() / count,
        Prior::Gauss => (distances.map(|d| d * d).sum::<f64>() / (count - 1.0).max(1.0)).sqrt(),
    };
    (mean, width)
}

fn root_mean_square(values: &[f32]) -> f32 {
    let sum: f64 = values.iter().map(|w| f64::from(*w).powi(2)).sum();
    (sum / values.len().max(1) as f64).sqrt() as f32
}

fn kl(values: &[f32], bits: u8) -> f32 {
    let mut stats = TensorStats::new();
    // Pieces of which every element enters the histogram.
    values.chunks(SAMPLES_PER_IMAGE).for_each(|part| stats.observe_image(part));
    let range = RangeRule::Kl.range(&stats, Grid::weights(bits), Mapping::Symmetric);
    range.lo.abs().max(range.hi) as f32
}

fn quantile(values: &[f32], share: f64) -> f32 {
    let mut magnitudes: Vec<f32> = values.iter().map(|w| w.abs()).collect();
    magnitudes.sort_by(f32::total_cmp);
    let at = (share * magnitudes.len() as f64).ceil() as usize;
    magnitudes.get(at.max(1) - 1).copied().unwrap_or(0.0)
}

/// Candidates of the first search: shares of the largest magnitude, from 1 down.
const SHARES: usize = 80;
/// Their distance.
const SHARE_STEP: f32 = 0.01;

fn lp(values: &[f32], bits: u8, p: f32) -> f32 {
    let most = largest(values);
    let top = Grid::weights(bits).qmax() as f32;
    let error = |share: f32| -> f64 {
        let scale = share * most / top;
        let inverse = 1.0 / scale;
        let power = |w: &f32| {
            let code = (w * inverse).clamp(-top, top);
            let rest = (w - nearest(code) * scale).abs();
            if p == 2.0 { rest * rest } else { rest.powf(p) }
        };
        values.chunks(64).map(|part| f64::from(part.iter().map(power).sum::<f32>())).sum()
    };
    let mut best = (error(1.0), 1.0);
    let mut try_share = |share: f32| {
        let error = error(share);
        if error < best.0 {
            best = (error, share);
        }
        best.1
    };
    let mut share = (1..SHARES).fold(1.0, |_, i| try_share(1.0 - i as f32 * SHARE_STEP));
    for step in [0.5, 0.25, 0.125].map(|part| part * SHARE_STEP) {
        share = [share - step, (share + step).min(1.0)].into_iter().fold(share, |_, near| try_share(near));
    }
    share * most
}

#[cfg(test)]
mod tests;
