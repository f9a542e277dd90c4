//! BatchNormalization while training: `y = clamp((x − μ) / √(σ² + ε) · γ + β)` with the clamp of an absorbed Relu or Clip.
//!
//! Statistics come from the batch or from running averages (Ioffe & Szegedy 2015; running variance unbiased, as in PyTorch).
//! If the layer before computes with weights folded by `r = γ / σ_running`, its result `z` stands for `v = z / r`, the
//! statistics are those of `v`, and the factor that is left is `γ / (r σ)`.

use crate::op::{Io, Kernel};
use fewbits_kernels::{
    float::batch_norm::{self, Forward},
    simd::Isa,
};

/// What one normalization computes with; all per channel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Normalization {
    pub channels: usize,
    pub epsilon: f32,
    /// Weight of the old running averages.
    pub momentum: f32,
    /// Elements per channel in a batch.
    pub count: usize,
    pub clamp: [f32; 2],
    /// Statistics of the batch, not running ones.
    pub batch: bool,
    /// Gradients go through the statistics: they are the input's, or those of what it stands for.
    pub through: bool,
    /// The layer before computes with folded weights.
    pub fold: bool,
}

/// Parts of the vector that [`Normalization::finish`] writes, each one number per channel.
pub(super) const PARTS: usize = 6;
const SCALE: usize = 0;
const SHIFT: usize = 1;
const MEAN: usize = 2;
const INVERSE: usize = 3;
const NEW_MEAN: usize = 4;
const NEW_VARIANCE: usize = 5;

/// Keeps the folding factor away from 0, where the normalization could not undo it.
const SMALLEST_FACTOR: f32 = 1e-8;

impl Normalization {
    fn part<'a>(&self, all: &'a [f32], part: usize) -> &'a [f32] {
        &all[part * self.channels..][..self.channels]
    }

    /// Inputs γ, running mean, running variance. Output: `r = γ / √(σ² + ε)`, then `r · mean`.
    pub fn factors(self) -> Kernel {
        Kernel::new(move |io| {
            let (gamma, mean, variance) = (io.f32(0), io.f32(1), io.f32(2));
            let (factor, centre) = io.out_f32(0).split_at_mut(self.channels);
            for c in 0..self.channels {
                let r = gamma[c] / (variance[c] + self.epsilon).sqrt();
                factor[c] = if r.abs() < SMALLEST_FACTOR { SMALLEST_FACTOR.copysign(r) } else { r };
                centre[c] = factor[c] * mean[c];
            }
        })
    }

    /// Inputs x, and what is taken off for accuracy (running mean, or `factors`). Adds `Σ (x − k)` and `Σ (x − k)²` to output 0.
    pub fn moments(self) -> Kernel {
        Kernel::new(move |io| {
            let (x, centre) = (io.f32(0), io.f32(1));
            batch_norm::moments(Isa::best(), x, &centre[centre.len() - self.channels..], io.out_f32(0));
        })
    }

    /// Inputs the moments, and what was taken off. Outputs mean and variance of the batch.
    pub fn batch_statistics(self) -> Kernel {
        Kernel::new(move |io| {
            let (sums, centre) = (io.f32(0), io.f32(1));
            let n = self.count as f64;
            for c in 0..self.channels {
                let (first, second) = (f64::from(sums[c]) / n, f64::from(sums[self.channels + c]) / n);
                io.out_f32(0)[c] = (f64::from(centre[c]) + first) as f32;
                io.out_f32(1)[c] = (second - first * first).max(0.0) as f32;
            }
        })
    }

    /// Inputs γ, β, running mean, running variance, moments (absent for running statistics), factors (absent without folding).
    /// Output: scale, shift, mean, reciprocal deviation, new running mean, new running variance.
    pub fn finish(self) -> Kernel {
        Kernel::new(move |io: &mut Io<'_>| {
            let [gamma, beta, mean, variance, sums, factors] = [0, 1, 2, 3, 4, 5].map(|i| io.f32(i));
            let channels = self.channels;
            let out = io.out_f32(0);
            let n = self.count as f64;
            for c in 0..channels {
                let r = if self.fold { f64::from(factors[c]) } else { 1.0 };
                let (old_mean, old_variance) = (f64::from(mean[c]), f64::from(variance[c]));
                let (mut centre, mut spread) = (r * old_mean, old_variance);
                let (mut new_mean, mut new_variance) = (old_mean, old_variance);
                if self.batch {
                    let from = if self.fold { f64::from(factors[channels + c]) } else { old_mean };
                    let (first, second) = (f64::from(sums[c]) / n, f64::from(sums[channels + c]) / n);
                    centre = from + first;
                    spread = (second - first * first).max(0.0) / (r * r);
                    let (kept, taken) = (f64::from(self.momentum), 1.0 - f64::from(self.momentum));
                    new_mean = kept * old_mean + taken * centre / r;
                    new_variance = kept * old_variance + taken * spread * n / (n - 1.0).max(1.0);
                }
                let inverse = 1.0 / (r * (spread + f64::from(self.epsilon)).sqrt());
                let scale = f64::from(gamma[c]) * inverse;
                let parts = [scale, f64::from(beta[c]) - scale * centre, centre, inverse, new_mean, new_variance];
                for (part, value) in parts.into_iter().enumerate() {
                    out[part * channels + c] = value as f32;
                }
            }
        })
    }

    /// Inputs x and the result of `finish`; output y.
    pub fn normalize(self) -> Kernel {
        Kernel::new(move |io| {
            let (x, all) = (io.f32(0), io.f32(1));
            let (scale, shift) = (self.part(all, SCALE), self.part(all, SHIFT));
            batch_norm::normalize(Isa::best(), x, scale, shift, self.clamp, io.out_f32(0));
        })
    }

    /// Inputs x, the result of `finish`, ∂y. Adds `Σ g` and `Σ g (x − mean)` to output 0, with `g` = ∂y where nothing is clamped.
    pub fn gradient_sums(self) -> Kernel {
        Kernel::new(move |io| {
            let (x, all, dy) = (io.f32(0), io.f32(1), io.f32(2));
            let [scale, shift, mean] = [SCALE, SHIFT, MEAN].map(|p| self.part(all, p));
            let forward = Forward { x, scale, shift, bounds: self.clamp };
            batch_norm::gradient_sums(Isa::best(), forward, dy, mean, io.out_f32(0));
        })
    }

    /// Inputs: the result of `finish`, the gradient sums. Outputs ∂γ, ∂β, and the coefficients of `∂x = a g + b x + k`.
    pub fn finish_gradient(self) -> Kernel {
        Kernel::new(move |io: &mut Io<'_>| {
            let (all, sums) = (io.f32(0), io.f32(1));
            let channels = self.channels;
            let [scale, mean, inverse] = [SCALE, MEAN, INVERSE].map(|p| self.part(all, p));
            for c in 0..channels {
                let (first, second) = (sums[c], sums[channels + c] * inverse[c]);
                let n = self.count as f32;
                let mut b = 0.0;
                let mut k = 0.0;
                if self.through {
                    b = -scale[c] * inverse[c] * second / n;
                    k = -scale[c] * first / n - b * mean[c];
                }
                io.out_f32(0)[c] = second;
                io.out_f32(1)[c] = first;
                let out = io.out_f32(2);
                out[c] = scale[c];
                out[channels + c] = b;
                out[2 * channels + c] = k;
            }
        })
    }

    /// Inputs x, the result of `finish`, ∂y, the coefficients. Output ∂x.
    pub fn input_gradient(self, add: bool) -> Kernel {
        Kernel::new(move |io| {
            let (x, all, dy, coefficients) = (io.f32(0), io.f32(1), io.f32(2), io.f32(3));
            let (scale, shift) = (self.part(all, SCALE), self.part(all, SHIFT));
            let [a, b, k] = [0, 1, 2].map(|p| self.part(coefficients, p));
            let forward = Forward { x, scale, shift, bounds: self.clamp };
            batch_norm::input_gradient(Isa::best(), forward, dy, [a, b, k], add, io.out_f32(0));
        })
    }

    /// The same for running statistics, where `∂x = scale · g`. Inputs x, the result of `finish`, ∂y. Output ∂x.
    pub fn input_gradient_of_running(self, add: bool) -> Kernel {
        let zeros = vec![0.0; self.channels];
        Kernel::new(move |io| {
            let (x, all, dy) = (io.f32(0), io.f32(1), io.f32(2));
            let (scale, shift) = (self.part(all, SCALE), self.part(all, SHIFT));
            let forward = Forward { x, scale, shift, bounds: self.clamp };
            batch_norm::input_gradient(Isa::best(), forward, dy, [scale, &zeros, &zeros], add, io.out_f32(0));
        })
    }

    /// The new running mean and variance in the result of `finish`.
    pub fn running(channels: usize, all: &[f32]) -> [&[f32]; 2] {
        [NEW_MEAN, NEW_VARIANCE].map(|p| &all[p * channels..][..channels])
    }
}

/// Output: input 0, each of `channels` rows times a factor of input 1.
pub(super) fn multiply_rows(channels: usize) -> Kernel {
    Kernel::new(move |io| {
        let (x, factors) = (io.f32(0), io.f32(1));
        let len = x.len() / channels;
        let rows = io.out_f32(0).chunks_exact_mut(len).zip(x.chunks_exact(len)).zip(factors);
        rows.for_each(|((y, x), f)| y.iter_mut().zip(x).for_each(|(y, x)| *y = x * f));
    })
}
