//! Clips and errors of known distributions on real grids: as they are printed in tables, and as integrals over the cells of the grid.
//!
//! A grid that reaches to `α` in `n` steps to a side has the values `0, s, … n·s` with `s = α/n` (and their negatives); a number belongs to the
//! nearest. Both densities are one-sided or even, so one side is integrated, cell by cell, in closed form.

use std::f64::consts::PI;

/// A density whose best clips are in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Density {
    /// The standard normal one, on symmetric narrow grids: `2^(b−1) − 1` steps to a side.
    Normal,
    /// `e^(−x)` for positive `x`, on unsigned grids: `2^b − 1` steps. Laplace's on a symmetric narrow grid of `b + 1` bits is the same twice.
    Exponential,
}

/// A line of a table.
#[derive(Clone, Copy, Debug)]
pub struct Anchor {
    /// Bits of the grid.
    pub bits: u8,
    /// The best clip, in steps of [`Anchor::step`].
    pub clip: f64,
    /// How finely clips were tried for the table.
    pub step: f64,
    /// The error at this clip, as printed, where it is.
    pub error: Option<&'static str>,
}

const fn line(bits: u8, clip: f64, error: Option<&'static str>) -> Anchor {
    Anchor { bits, clip, step: 0.05, error }
}

const NORMAL: [Anchor; 6] = [
    line(2, 1.20, Some("0.1904")),
    line(3, 1.95, Some("0.0469")),
    line(4, 2.45, Some("0.0129")),
    line(5, 2.90, Some("0.00369")),
    line(6, 3.25, Some("0.00107")),
    line(8, 3.90, Some("0.000088")),
];

const EXPONENTIAL: [Anchor; 6] = [
    line(2, 3.5, None),
    line(3, 4.8, None),
    line(4, 6.1, None),
    line(5, 7.35, None),
    line(6, 8.6, None),
    // The best is 11.156: here the table knows quarters only.
    Anchor { bits: 8, clip: 11.25, step: 0.25, error: None },
];

impl Density {
    /// The table.
    pub fn anchors(self) -> &'static [Anchor] {
        match self {
            Density::Normal => &NORMAL,
            Density::Exponential => &EXPONENTIAL,
        }
    }

    /// Steps to a side of a grid of `bits` bits.
    pub fn steps(self, bits: u8) -> u32 {
        match self {
            Density::Normal => (1 << (bits - 1)) - 1,
            Density::Exponential => (1 << bits) - 1,
        }
    }

    /// Expected squared error of the grid of `bits` bits that reaches to `clip`.
    pub fn error(self, clip: f64, bits: u8) -> f64 {
        let last = self.steps(bits);
        let step = clip / f64::from(last);
        let cell = |k: u32| {
            let (code, half) = (f64::from(k) * step, 0.5 * step);
            let low = if k == 0 { 0.0 } else { code - half };
            self.squares(low, code) - if k == last { 0.0 } else { self.squares(code + half, code) }
        };
        let side: f64 = (0..=last).map(cell).sum();
        if self == Density::Normal { 2.0 * side } else { side }
    }

    /// `∫_low^∞ (x − c)² f(x) dx`
    fn squares(self, low: f64, c: f64) -> f64 {
        match self {
            Density::Normal => (1.0 + c * c) * upper_tail(low) + (low - 2.0 * c) * normal(low),
            Density::Exponential => (-low).exp() * ((low - c).powi(2) + 2.0 * (low - c) + 2.0),
        }
    }

    /// The clip of least error, by golden section.
    pub fn best_clip(self, bits: u8) -> f64 {
        let golden = (5f64.sqrt() - 1.0) / 2.0;
        let (mut low, mut high) = (0.5, 20.0);
        for _ in 0..80 {
            let (a, b) = (high - golden * (high - low), low + golden * (high - low));
            if self.error(a, bits) < self.error(b, bits) { high = b } else { low = a }
        }
        0.5 * (low + high)
    }

    /// The share of numbers in `low..high`.
    pub fn share(self, low: f64, high: f64) -> f64 {
        match self {
            // The smaller of the tails, so that nothing cancels.
            Density::Normal if low >= 0.0 => upper_tail(low) - upper_tail(high),
            Density::Normal => upper_tail(-high) - upper_tail(-low),
            Density::Exponential => (-low.max(0.0)).exp() - (-high.max(0.0)).exp(),
        }
    }

    /// `count` numbers that stand for equal shares, each the one in the middle of its share. Even densities have both signs.
    pub fn quantiles(self, count: usize) -> Vec<f32> {
        match self {
            Density::Normal => {
                let side = normal_magnitudes(count / 2);
                side.iter().map(|x| -x).chain(side.iter().copied()).map(|x| x as f32).collect()
            }
            Density::Exponential => (0..count).map(|i| -((i as f64 + 0.5) / count as f64).ln() as f32).collect(),
        }
    }
}

/// ACIQ's clips (Banner et al. 2019): bits, and the clip of a normal distribution in deviations and of Laplace's in its scale.
pub const ACIQ: [(u8, f32, f32); 6] =
    [(2, 1.711, 2.831), (3, 2.152, 3.897), (4, 2.559, 5.029), (5, 2.936, 6.205), (6, 3.287, 7.413), (8, 3.924, 9.897)];

/// Laplace's distribution of unit mean magnitude: `count` quantiles.
pub fn laplace(count: usize) -> Vec<f32> {
    let side = Density::Exponential.quantiles(count / 2);
    side.iter().map(|x| -x).chain(side.iter().copied()).collect()
}

/// Quantiles of `|x|`, rising: Newton's method, each from the one before.
fn normal_magnitudes(count: usize) -> Vec<f64> {
    let mut x = 0.0;
    let next = |i: usize| {
        let wanted = 0.5 - (i as f64 + 0.5) / (2 * count) as f64;
        for _ in 0..8 {
            let step = (upper_tail(x) - wanted) / normal(x);
            x += step;
            if step.abs() < 1e-12 {
                break;
            }
        }
        x
    };
    (0..count).map(next).collect()
}

fn normal(x: f64) -> f64 {
    (-0.5 * x * x).exp() / (2.0 * PI).sqrt()
}

/// `∫_x^∞ φ`: the series of Marsaglia (2004) near zero, a continued fraction far from it.
fn upper_tail(x: f64) -> f64 {
    if x < 0.0 {
        return 1.0 - upper_tail(-x);
    }
    if x > 3.0 {
        let fraction = (1..120).rev().fold(x, |rest, k| x + f64::from(k) / rest);
        return normal(x) / fraction;
    }
    let (mut sum, mut term, mut odd) = (0.0, x, 1.0);
    while sum + term != sum {
        sum += term;
        odd += 2.0;
        term *= x * x / odd;
    }
    0.5 - sum * normal(x)
}

/// Whether `found` is `printed` to its last digit.
pub fn agrees(found: f64, printed: &str) -> bool {
    let digits = printed.split_once('.').map_or(0, |(_, digits)| digits.len());
    format!("{found:.digits$}") == printed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_what_the_integrals_say() {
        for density in [Density::Normal, Density::Exponential] {
            for anchor in density.anchors() {
                let best = density.best_clip(anchor.bits);
                assert!((best - anchor.clip).abs() <= 0.5 * anchor.step, "{density:?} {anchor:?}: {best}");
                let error = density.error(anchor.clip, anchor.bits);
                assert!(anchor.error.is_none_or(|printed| agrees(error, printed)), "{density:?} {anchor:?}: {error}");
            }
        }
    }

    /// Max (1960): three and fifteen equidistant levels of a normal source.
    #[test]
    fn best_uniform_quantizers_of_a_normal_source() {
        assert!(agrees(Density::Normal.best_clip(2), "1.224") && agrees(Density::Normal.error(1.224, 2), "0.1902"));
        assert!(
            agrees(Density::Normal.best_clip(4) / 7.0, "0.3534") && agrees(Density::Normal.error(2.474, 4), "0.01289")
        );
    }

    #[test]
    fn quantiles_have_the_moments_of_their_density() {
        let square = |values: Vec<f32>| values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / values.len() as f64;
        assert!((square(Density::Normal.quantiles(100_000)) - 1.0).abs() < 1e-3);
        assert!((square(laplace(100_000)) - 2.0).abs() < 5e-3);
        let whole: f64 = (-80..80).map(|i| Density::Normal.share(0.1 * f64::from(i), 0.1 * f64::from(i + 1))).sum();
        assert!((whole - 1.0).abs() < 1e-12);
    }
}
