//! Analytic clipping for integer quantization.
//!
//! *What it does*: takes the elements for a Laplace or a normal distribution and clips at `α` times its width, which minimises the
//! expected squared error. *When it helps*: 4 bits and below, from few images. *When it fails*: distributions of another shape,
//! such as the few levels after a squeeze.
//! *Source*: Banner, Nahshan, Hoffer, Soudry, "Post training 4-bit quantization of convolutional networks for rapid-deployment",
//! NeurIPS 2019, equations 1–6; the ranges as in the authors' code. *Departures*: the range is cut to what was seen.

use super::Range;
use crate::stats::TensorStats;
use fewbits_graph::Grid;

/// The distribution that the elements are taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prior {
    /// Width `b = E|x − E x|`.
    Laplace,
    /// Width `σ`, the standard deviation.
    Gauss,
}

/// The minimising `α/b` for 1 to 9 bits: `2e^(−α) + α²/(3·4^bits)` is least.
const LAPLACE: [f64; 9] = [1.862817, 2.830683, 3.897229, 5.028640, 6.204766, 7.413126, 8.645620, 9.896760, 11.162685];
/// The minimising `α/σ` for 1 to 9 bits:
/// `(1 + α²)·erfc(α/√2) − √(2/π)·α·e^(−α²/2) + α²/(3·4^bits)` is least.
const GAUSS: [f64; 9] = [1.239905, 1.710635, 2.151593, 2.559136, 2.936201, 3.286914, 3.615114, 3.924035, 4.216330];

/// Two-sided: `mean ± α`. A tensor without negative elements is taken for the positive half of a distribution, whose
/// optimum at `bits` is the two-sided one at `bits + 1`: `0..max(mean, 0) + α`.
pub(super) fn range(stats: &TensorStats, prior: Prior, grid: Grid) -> Range {
    let one_sided = stats.min >= 0.0;
    let entry = usize::from(grid.bits.clamp(1, 8)) - 1 + usize::from(one_sided);
    let alpha = match prior {
        Prior::Laplace => LAPLACE[entry] * stats.mean_abs_deviation(),
        Prior::Gauss => GAUSS[entry] * stats.std(),
    };
    let mean = stats.mean();
    Range::of(if one_sided { 0.0 } else { mean - alpha }, mean.max(if one_sided { 0.0 } else { mean }) + alpha)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::PI;

    fn laplace_error(alpha: f64, bits: i32) -> f64 {
        2.0 * (-alpha).exp() + alpha * alpha / (3.0 * 4f64.powi(bits))
    }

    /// The clipping term `2·∫_α^∞ (x − α)² φ(x) dx` by Simpson's rule instead of its closed form.
    fn gauss_error(alpha: f64, bits: i32) -> f64 {
        let density = |x: f64| (x - alpha).powi(2) * (-x * x / 2.0).exp() / (2.0 * PI).sqrt();
        let (steps, width) = (2000, 10.0 / 2000.0);
        let weight = |i: usize| if i == 0 || i == steps { 1.0 } else { 2.0 + 2.0 * (i % 2) as f64 };
        let integral: f64 = (0..=steps).map(|i| weight(i) * density(alpha + i as f64 * width)).sum();
        2.0 * integral * width / 3.0 + alpha * alpha / (3.0 * 4f64.powi(bits))
    }

    fn minimum(f: impl Fn(f64) -> f64) -> f64 {
        let golden = (5f64.sqrt() - 1.0) / 2.0;
        let (mut lo, mut hi) = (0.1, 20.0);
        for _ in 0..60 {
            let (a, b) = (hi - golden * (hi - lo), lo + golden * (hi - lo));
            if f(a) < f(b) { hi = b } else { lo = a }
        }
        (lo + hi) / 2.0
    }

    #[test]
    fn the_tables_hold_the_minima_of_the_error() {
        for bits in 1..=9 {
            let entry = bits as usize - 1;
            assert!((minimum(|a| laplace_error(a, bits)) - LAPLACE[entry]).abs() < 1e-5, "Laplace, {bits} bits");
            assert!((minimum(|a| gauss_error(a, bits)) - GAUSS[entry]).abs() < 1e-5, "Gauss, {bits} bits");
        }
    }

    #[test]
    fn the_least_errors_are_known() {
        // Minimum of the mean squared error at unit width, computed with another program.
        for (bits, laplace, gauss) in
            [(2, 0.2849, 0.08715), (3, 0.1197, 0.03143), (4, 0.04602, 0.01049), (8, 5.99e-4, 8.71e-5)]
        {
            let entry = bits as usize - 1;
            assert!((laplace_error(LAPLACE[entry], bits) / laplace - 1.0).abs() < 1e-3);
            assert!((gauss_error(GAUSS[entry], bits) / gauss - 1.0).abs() < 1e-3);
        }
    }
}
