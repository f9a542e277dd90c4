//! Analytic clipping for integer quantization.
//!
//! *What it does*: takes the elements for a Laplace or a normal distribution and clips at `α` times its width, which minimises the
//! expected squared error. *When it helps*: 4 bits and below, from few images. *When it fails*: distributions of another shape,
//! such as the few levels after a squeeze.
//! *Source*: Banner, Nahshan, Hoffer, Soudry, "Post training 4-bit quantization of convolutional networks for rapid-deployment",
//! NeurIPS 2019, equations 1–6; the ranges as in the authors' code. *Departures*: the range is cut to what was seen.

use super::Range;
use crate::{normal, stats::TensorStats};
use fewbits_graph::Grid;

/// The distribution that the elements are taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prior {
    /// Width `b = E|x − E x|`.
    Laplace,
    /// Width `σ`, the standard deviation.
    Gauss,
}

/// The `α` of least expected squared error at unit width, for 0 to 16 bits: `2 ∫_α^∞ (x − α)² f(x) dx + α² / (3·4^bits)`, the error of a
/// distribution of density `f` clipped at `α` and rounded to `2^bits` steps. For data on one side of zero the best `α` at `M` bits is that
/// of two sides at `M + 1`.
pub fn optimum(prior: Prior, bits: u8) -> f64 {
    let bits = bits.min(16);
    // The slope rises from below zero to above it.
    let (mut low, mut high) = (0.0, 32.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if slope(prior, middle, bits) < 0.0 { low = middle } else { high = middle }
    }
    low
}

/// The derivative of the error by `alpha`.
fn slope(prior: Prior, alpha: f64, bits: u8) -> f64 {
    let clipped = match prior {
        Prior::Laplace => -2.0 * (-alpha).exp(),
        Prior::Gauss => 4.0 * (alpha * normal::distribution(-alpha) - normal::density(alpha)),
    };
    clipped + 2.0 * alpha / (3.0 * 4f64.powi(bits.into()))
}

/// Two-sided: `mean ± α`. A tensor without negative elements is taken for the positive half of a distribution, whose
/// optimum at `bits` is the two-sided one at `bits + 1`: `0..max(mean, 0) + α`.
pub(super) fn range(stats: &TensorStats, prior: Prior, grid: Grid) -> Range {
    let one_sided = stats.min >= 0.0;
    let width = match prior {
        Prior::Laplace => stats.mean_abs_deviation(),
        Prior::Gauss => stats.std(),
    };
    let alpha = optimum(prior, grid.bits + u8::from(one_sided)) * width;
    let mean = stats.mean();
    Range::of(if one_sided { 0.0 } else { mean - alpha }, mean.max(if one_sided { 0.0 } else { mean }) + alpha)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fewbits_testing::anchors::agrees;
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

    fn error(prior: Prior, alpha: f64, bits: i32) -> f64 {
        if prior == Prior::Laplace { laplace_error(alpha, bits) } else { gauss_error(alpha, bits) }
    }

    fn same(found: f64, printed: &str) {
        assert!(agrees(found, printed), "{found} and not {printed}");
    }

    #[test]
    fn clips_are_the_published_ones_and_the_minima_of_the_error() {
        let laplace = ["1.863", "2.831", "3.897", "5.029", "6.205", "7.413", "8.646", "9.897", "11.163"];
        let gauss = ["1.240", "1.711", "2.152", "2.559", "2.936", "3.287", "3.615", "3.924", "4.216"];
        for (prior, table) in [(Prior::Laplace, laplace), (Prior::Gauss, gauss)] {
            for (bits, printed) in (1..).zip(table) {
                let found = optimum(prior, bits);
                same(found, printed);
                let least = minimum(|alpha| error(prior, alpha, bits.into()));
                assert!((least - found).abs() < 1e-5, "{prior:?}, {bits} bits");
            }
        }
        // No bits at all, as bit allocation knows it; on one side that of a bit on two.
        same(optimum(Prior::Laplace, 0), "1.05");
        same(optimum(Prior::Laplace, 1), "1.863");
    }

    #[test]
    fn least_errors_are_the_published_ones() {
        let least = |prior, bits: u8| error(prior, optimum(prior, bits), bits.into());
        for (bits, laplace, gauss) in [(2, "0.2849", "0.08715"), (3, "0.1197", "0.03143"), (4, "0.04602", "0.01049")] {
            same(least(Prior::Laplace, bits), laplace);
            same(least(Prior::Gauss, bits), gauss);
        }
        same(1e4 * least(Prior::Laplace, 8), "5.99");
        same(1e5 * least(Prior::Gauss, 8), "8.71");
    }
}
