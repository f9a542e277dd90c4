//! Batch normalization of NHWC rows in training: statistics, values, gradients.
//!
//! What enters: rows of `channels` numbers, one per position, and one number per channel and coefficient; the parts of a batch
//! that one thread works on. What leaves: filled rows, or sums over positions, added to what the slice holds. It does not know
//! what the statistics become: callers turn sums into a mean and a variance, and those into coefficients.
//!
//! Sums are in f32 over 128 rows at a time (a row holds several positions if there are few channels), relative error about 1e-6
//! for 10^5 positions. Their order, and so their last bits, depends on the instruction set and on nothing else.

mod rows;

use crate::simd::{Isa, Simd};
use rows::{Formula, Rows};

/// Adds `Σ (x - shift)` of every channel to the first half of `sums`, `Σ (x - shift)²` to the second. A `shift` near the mean
/// keeps the variance, `Σ(x - shift)² / n - (Σ(x - shift) / n)²`, free of cancellation.
///
/// Shapes: `x: [positions, channels]`, `shift: [channels]`, `sums: [2, channels]`.
///
/// # Panics
/// If the lengths do not fit together.
pub fn moments(isa: Isa, x: &[f32], shift: &[f32], sums: &mut [f32]) {
    assert_eq!(sums.len(), 2 * shift.len(), "two sums per channel");
    isa.dispatch(Rows::new(Moments, [x, x], [shift], sums));
}

/// Writes `y = min(max(x * scale + shift, low), high)` for the bounds `[low, high]` of an absorbed activation, infinite for
/// none. NaN stays NaN.
///
/// Shapes: `x, y: [positions, channels]`, `scale, shift: [channels]`.
///
/// # Panics
/// If the lengths do not fit together.
pub fn normalize(isa: Isa, x: &[f32], scale: &[f32], shift: &[f32], bounds: [f32; 2], y: &mut [f32]) {
    isa.dispatch(Rows { y: Some((y, false)), ..Rows::new(Normalize(bounds), [x, x], [scale, shift], &mut []) });
}

/// What a gradient needs to know of the forward pass.
#[derive(Debug, Clone, Copy)]
pub struct Forward<'a> {
    /// The rows that were normalized.
    pub x: &'a [f32],
    /// Factor of every channel.
    pub scale: &'a [f32],
    /// Summand of every channel.
    pub shift: &'a [f32],
    /// Bounds of the absorbed activation: gradients pass where `low < x * scale + shift < high`.
    pub bounds: [f32; 2],
}

/// Adds `Σ g` of every channel to the first half of `sums`, `Σ g * (x - mean)` to the second, where `g` is `dy` within the
/// bounds and 0 elsewhere.
///
/// Shapes: `dy: [positions, channels]`, `mean: [channels]`, `sums: [2, channels]`.
///
/// # Panics
/// If the lengths do not fit together.
pub fn gradient_sums(isa: Isa, forward: Forward, dy: &[f32], mean: &[f32], sums: &mut [f32]) {
    let Forward { x, scale, shift, bounds } = forward;
    assert_eq!(sums.len(), 2 * scale.len(), "two sums per channel");
    isa.dispatch(Rows::new(GradientSums(bounds), [x, dy], [scale, shift, mean], sums));
}

/// Writes `dx = a * g + b * x + k`, or adds it if `add`, where `g` is `dy` within the bounds and 0 elsewhere.
///
/// With `n` positions in the batch, `r = 1 / sqrt(variance + epsilon)` and the sums `G`, `H` of [`gradient_sums`], the gradient
/// of batch normalization is `a = gamma * r`, `b = -a * r² * H / n`, `k = -a * G / n - b * mean`.
///
/// Shapes: `dy, dx: [positions, channels]`; `[a, b, k]: [channels]` each.
///
/// # Panics
/// If the lengths do not fit together.
pub fn input_gradient(isa: Isa, forward: Forward, dy: &[f32], [a, b, k]: [&[f32]; 3], add: bool, dx: &mut [f32]) {
    let Forward { x, scale, shift, bounds } = forward;
    let rows = Rows::new(InputGradient(bounds), [x, dy], [scale, shift, a, b, k], &mut []);
    isa.dispatch(Rows { y: Some((dx, add)), ..rows });
}

#[derive(Clone, Copy)]
struct Moments;

impl Formula<1> for Moments {
    #[inline(always)]
    fn at<S: Simd>(self, s: S, x: S::F32, _: S::F32, [shift]: [S::F32; 1], sums: &mut [S::F32; 2]) -> S::F32 {
        let x = s.sub(x, shift);
        *sums = [s.add(sums[0], x), s.fma(x, x, sums[1])];
        x
    }
}

#[derive(Clone, Copy)]
struct Normalize([f32; 2]);

impl Formula<2> for Normalize {
    #[inline(always)]
    fn at<S: Simd>(self, s: S, x: S::F32, _: S::F32, [scale, shift]: [S::F32; 2], _: &mut [S::F32; 2]) -> S::F32 {
        let [low, high] = self.0;
        s.min(s.splat(high), s.max(s.splat(low), s.fma(x, scale, shift)))
    }
}

/// `dy` where `low < value < high`, else 0.
#[inline(always)]
fn within<S: Simd>(s: S, [low, high]: [f32; 2], value: S::F32, dy: S::F32) -> S::F32 {
    let zero = s.splat(0.0);
    s.select_lt(s.splat(low), value, s.select_lt(value, s.splat(high), dy, zero), zero)
}

#[derive(Clone, Copy)]
struct GradientSums([f32; 2]);

impl Formula<3> for GradientSums {
    #[inline(always)]
    fn at<S: Simd>(self, s: S, x: S::F32, dy: S::F32, coefficients: [S::F32; 3], sums: &mut [S::F32; 2]) -> S::F32 {
        let [scale, shift, mean] = coefficients;
        let g = within(s, self.0, s.fma(x, scale, shift), dy);
        *sums = [s.add(sums[0], g), s.fma(g, s.sub(x, mean), sums[1])];
        g
    }
}

#[derive(Clone, Copy)]
struct InputGradient([f32; 2]);

impl Formula<5> for InputGradient {
    #[inline(always)]
    fn at<S: Simd>(self, s: S, x: S::F32, dy: S::F32, coefficients: [S::F32; 5], _: &mut [S::F32; 2]) -> S::F32 {
        let [scale, shift, a, b, k] = coefficients;
        let g = within(s, self.0, s.fma(x, scale, shift), dy);
        s.fma(a, g, s.fma(b, x, k))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Multiples of 1/8 between -4 and 4.
    fn eighths(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 37 + i / 11 * 5 + seed * 13) % 65) as f32 / 8.0 - 4.0).collect()
    }

    const OPEN: [f32; 2] = [f32::NEG_INFINITY, f32::INFINITY];
    const CHANNELS: [usize; 12] = [1, 3, 8, 16, 17, 24, 48, 63, 64, 100, 257, 530];

    #[test]
    fn values_and_gradients_equal_their_formulas() {
        for (channels, bounds) in CHANNELS.into_iter().flat_map(|c| [(c, OPEN), (c, [0.0, 2.0])]) {
            for positions in [0, 1, 2, 7, 49, 150] {
                let len = positions * channels;
                let (x, dy) = (eighths(len, 1), eighths(len, 2));
                let [scale, shift, a, b, k] = [3, 4, 5, 6, 7].map(|seed| eighths(channels, seed));
                let value = |i: usize| x[i] * scale[i % channels] + shift[i % channels];
                let g = |i: usize| if bounds[0] < value(i) && value(i) < bounds[1] { dy[i] } else { 0.0 };
                for isa in Isa::available() {
                    let case = format!("{positions} x {channels}, {bounds:?}, {isa:?}");
                    let mut y = vec![f32::NAN; len];
                    normalize(isa, &x, &scale, &shift, bounds, &mut y);
                    assert!((0..len).all(|i| y[i] == value(i).clamp(bounds[0], bounds[1])), "{case}");

                    let forward = Forward { x: &x, scale: &scale, shift: &shift, bounds };
                    let mut dx = vec![f32::NAN; len];
                    for (add, before) in [(false, 0.0), (true, 1.0)] {
                        dx.fill(if add { before } else { f32::NAN });
                        input_gradient(isa, forward, &dy, [&a, &b, &k], add, &mut dx);
                        let line = |i: usize| a[i % channels] * g(i) + b[i % channels] * x[i] + k[i % channels];
                        assert!((0..len).all(|i| dx[i] == line(i) + before), "{case}, add {add}");
                    }
                }
            }
        }
    }

    #[test]
    fn sums_equal_their_formulas_and_are_added() {
        for channels in CHANNELS {
            for positions in [0, 1, 2, 7, 150, 1100] {
                let len = positions * channels;
                let (x, dy) = (eighths(len, 1), eighths(len, 2));
                let [scale, shift, mean] = [3, 4, 5].map(|seed| eighths(channels, seed));
                let bounds = [0.0, 2.0];
                // Every sum is exact.
                let (mut expected, mut gradients) = (vec![1.0; 2 * channels], vec![1.0; 2 * channels]);
                for (i, (x, dy)) in x.iter().zip(&dy).enumerate() {
                    let c = i % channels;
                    let value = x * scale[c] + shift[c];
                    let g = if bounds[0] < value && value < bounds[1] { *dy } else { 0.0 };
                    expected[c] += x - mean[c];
                    expected[channels + c] += (x - mean[c]) * (x - mean[c]);
                    gradients[c] += g;
                    gradients[channels + c] += g * (x - mean[c]);
                }
                for isa in Isa::available() {
                    let mut sums = vec![1.0; 2 * channels];
                    moments(isa, &x, &mean, &mut sums);
                    assert_eq!(sums, expected, "{positions} x {channels}, {isa:?}");
                    let mut sums = vec![1.0; 2 * channels];
                    let forward = Forward { x: &x, scale: &scale, shift: &shift, bounds };
                    gradient_sums(isa, forward, &dy, &mean, &mut sums);
                    assert_eq!(sums, gradients, "{positions} x {channels}, {isa:?}");
                }
            }
        }
    }

    #[test]
    fn long_sums_are_accurate() {
        for channels in [3, 16] {
            let x: Vec<f32> = (0..channels * 100_000).map(|i| ((i * 7919) % 10_007) as f32 * 1.3e-4 + 0.1).collect();
            for isa in Isa::available() {
                let mut sums = vec![0.0; 2 * channels];
                moments(isa, &x, &vec![0.5; channels], &mut sums);
                for c in 0..channels {
                    let deviations = || x[c..].iter().step_by(channels).map(|&x| f64::from(x) - 0.5);
                    let absolute: f64 = deviations().map(f64::abs).sum();
                    let squares: f64 = deviations().map(|d| d * d).sum();
                    assert!((f64::from(sums[c]) - deviations().sum::<f64>()).abs() < 3e-6 * absolute, "{isa:?}");
                    assert!((f64::from(sums[channels + c]) - squares).abs() < 3e-6 * squares, "{isa:?}");
                }
            }
        }
    }

    #[test]
    fn nan_stays_nan_and_gives_no_gradient() {
        let x = [f32::NAN; 19];
        for isa in Isa::available() {
            let mut y = [0.0; 19];
            normalize(isa, &x, &[1.0], &[0.0], [0.0, 6.0], &mut y);
            assert!(y.iter().all(|y| y.is_nan()));
            let mut sums = [0.0; 2];
            let forward = Forward { x: &x, scale: &[1.0], shift: &[0.0], bounds: [0.0, 6.0] };
            gradient_sums(isa, forward, &x, &[0.0], &mut sums);
            assert_eq!(sums[0], 0.0);
        }
    }
}
