//! ACIQ's analytic clip: where the expected squared error of a distribution on a grid is least.
//!
//! Clipped at `α` and rounded to `2^M` steps of `2α/2^M`, a distribution of density `f` has the expected squared error
//! `2 ∫_α^∞ (x − α)² f(x) dx + α² / (3·4^M)`. Its derivative has one zero, which is found by bisection. All at unit width: `b = E|x − E x|`
//! for Laplace, `σ` for Gauss. For data on one side of zero the best `α` at `M` bits is that of two sides at `M + 1`.

use fewbits_quant::ranges::Prior;
use std::f64::consts::PI;

/// The expected squared error at unit width, clipped at `alpha`, with `bits` bits.
pub fn error(prior: Prior, alpha: f64, bits: u8) -> f64 {
    let clipped = match prior {
        Prior::Laplace => 2.0 * (-alpha).exp(),
        Prior::Gauss => 2.0 * ((1.0 + alpha * alpha) * tail(alpha) - alpha * density(alpha)),
    };
    clipped + alpha * alpha / (3.0 * 4f64.powi(bits.into()))
}

/// Its derivative by `alpha`.
fn slope(prior: Prior, alpha: f64, bits: u8) -> f64 {
    let clipped = match prior {
        Prior::Laplace => -2.0 * (-alpha).exp(),
        Prior::Gauss => 4.0 * (alpha * tail(alpha) - density(alpha)),
    };
    clipped + 2.0 * alpha / (3.0 * 4f64.powi(bits.into()))
}

/// The `α` of least error at unit width, for 1 to 16 bits.
pub fn optimum(prior: Prior, bits: u8) -> f64 {
    let bits = bits.clamp(1, 16);
    // The slope rises from below zero to above it.
    let (mut low, mut high) = (0.0, 32.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if slope(prior, middle, bits) < 0.0 { low = middle } else { high = middle }
    }
    low
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

/// The standard normal density.
fn density(x: f64) -> f64 {
    (-0.5 * x * x).exp() / (2.0 * PI).sqrt()
}

/// The probability that a standard normal number is above `x ≥ 0`: `1/2 − φ(x) Σ x^(2n+1) / (2n+1)!!`.
fn tail(x: f64) -> f64 {
    if x > 8.0 {
        return 0.0;
    }
    let (mut term, mut sum, mut n) = (x, x, 1.0);
    while term > 1e-18 * sum {
        n += 2.0;
        term *= x * x / n;
        sum += term;
    }
    0.5 - density(x) * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// To the digits that are printed.
    fn same(found: f64, printed: &str) {
        let digits = printed.split_once('.').map_or(0, |(_, digits)| digits.len());
        assert_eq!(format!("{found:.digits$}"), printed);
    }

    #[test]
    fn clips_are_the_published_ones() {
        let laplace = ["1.863", "2.831", "3.897", "5.029", "6.205", "7.413", "8.646", "9.897", "11.163"];
        let gauss = ["1.240", "1.711", "2.152", "2.559", "2.936", "3.287", "3.615", "3.924", "4.216"];
        for (prior, table) in [(Prior::Laplace, laplace), (Prior::Gauss, gauss)] {
            for (bits, printed) in (1..).zip(table) {
                same(optimum(prior, bits), printed);
            }
        }
    }

    #[test]
    fn least_errors_are_the_published_ones() {
        let least = |prior, bits| error(prior, optimum(prior, bits), bits);
        for (bits, laplace, gauss) in [(2, "0.2849", "0.08715"), (3, "0.1197", "0.03143"), (4, "0.04602", "0.01049")] {
            same(least(Prior::Laplace, bits), laplace);
            same(least(Prior::Gauss, bits), gauss);
        }
        same(1e4 * least(Prior::Laplace, 8), "5.99");
        same(1e5 * least(Prior::Gauss, 8), "8.71");
    }

    #[test]
    fn slopes_are_those_of_the_error() {
        for prior in [Prior::Laplace, Prior::Gauss] {
            for alpha in [0.5, 1.3, 2.9, 6.0] {
                let step = 1e-5;
                let difference = (error(prior, alpha + step, 3) - error(prior, alpha - step, 3)) / (2.0 * step);
                assert!((slope(prior, alpha, 3) - difference).abs() < 1e-8, "{prior:?} at {alpha}");
            }
        }
    }
}
