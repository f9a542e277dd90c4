//! Where scales and offsets start.
//!
//! What enters: elements of a weight or of an activation, and the codes there are. What leaves: a scale that is a normal positive
//! number, and an offset. Elements that are not finite are passed over; if none but zeros are left the scale is 1.

use super::QuantizerError;
use serde::Serialize;
use std::{fmt, str::FromStr};

/// Whose mean and deviation LSQ+ takes for weights: the equation reads either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stat {
    /// The weights'.
    #[default]
    Signed,
    /// Their magnitudes'.
    Abs,
}

/// A rule for the first scale (and offset).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// `method`: what the method's paper does; least squares for activations, and at 8 bits, where LSQ's rule is far too wide.
    #[default]
    Method,
    /// `lsq`: `2·mean|x| / √high` (Esser et al. 2020, section 2.1).
    Lsq,
    /// `lsq+`, `lsq+abs`: weights `max(|μ−3σ|, |μ+3σ|) / 2^(b−1)` (Bhalgat et al. 2020, section 4.2), activations as `mse`.
    LsqPlus(Stat),
    /// `mse`: least `‖x̂ − x‖²`.
    Mse,
    /// `minmax`: the smallest and the largest element are codes.
    MinMax,
}

impl FromStr for Start {
    type Err = QuantizerError;

    fn from_str(text: &str) -> Result<Self, QuantizerError> {
        Ok(match text {
            "method" => Start::Method,
            "lsq" => Start::Lsq,
            "lsq+" => Start::LsqPlus(Stat::Signed),
            "lsq+abs" => Start::LsqPlus(Stat::Abs),
            "mse" => Start::Mse,
            "minmax" => Start::MinMax,
            _ => return Err(QuantizerError::UnknownStart { text: text.into() }),
        })
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Start::Method => "method",
            Start::Lsq => "lsq",
            Start::LsqPlus(Stat::Signed) => "lsq+",
            Start::LsqPlus(Stat::Abs) => "lsq+abs",
            Start::Mse => "mse",
            Start::MinMax => "minmax",
        })
    }
}

/// The scale of codes `low..=high` without offset.
pub fn scale(start: Start, x: &[f32], low: i32, high: i32) -> f32 {
    let (low, high) = (f64::from(low), f64::from(high));
    usable(match start {
        Start::Lsq => lsq(x, high),
        Start::LsqPlus(stat) => three_sigma(x, stat) / (high + 1.0),
        Start::Method | Start::Mse => fit_scale(&points(x), low, high),
        Start::MinMax => {
            let (least, greatest) = extremes(x);
            (greatest / high).max(if low < 0.0 { least / low } else { 0.0 })
        }
    })
}

/// Scale and offset of codes `low..=high`: `x̂ = scale · code + offset`. An offset of LSQ's rule makes the smallest element, or
/// zero if that is smaller, the lowest code.
pub fn scale_and_offset(start: Start, x: &[f32], low: i32, high: i32) -> (f32, f32) {
    let (low, high) = (f64::from(low), f64::from(high));
    let (least, greatest) = extremes(x);
    let from_least = |scale: f32| (scale, (least.min(0.0) - low * f64::from(scale)) as f32);
    match start {
        Start::Lsq => from_least(usable(lsq(x, high))),
        // A tensor with a single value keeps zero within its range.
        Start::MinMax if greatest > least => {
            let scale = usable((greatest - least) / (high - low));
            (scale, (least - low * f64::from(scale)) as f32)
        }
        _ if greatest == least => from_least(usable((greatest.max(0.0) - least.min(0.0)) / (high - low))),
        _ => {
            let (scale, offset) = fit(&points(x), low, high);
            (usable(scale), offset as f32)
        }
    }
}

/// `max(|μ−3σ|, |μ+3σ|)`
pub fn three_sigma(x: &[f32], stat: Stat) -> f64 {
    let values = || finite(x).map(|x| if stat == Stat::Abs { x.abs() } else { x });
    let count = values().count().max(1) as f64;
    let mean = values().sum::<f64>() / count;
    let deviation = (values().map(|x| (x - mean).powi(2)).sum::<f64>() / count).sqrt();
    mean.abs() + 3.0 * deviation
}

/// The smallest and the largest finite element; zeros if there is none.
pub(super) fn extremes(x: &[f32]) -> (f64, f64) {
    let both = finite(x).fold(None, |both: Option<(f64, f64)>, x| {
        Some(both.map_or((x, x), |(least, greatest)| (least.min(x), greatest.max(x))))
    });
    both.unwrap_or((0.0, 0.0))
}

/// `scale` as a positive, normal, finite number, 1 if there is nothing to measure.
pub(super) fn usable(scale: f64) -> f32 {
    let scale = scale as f32;
    if scale.is_normal() && scale > 0.0 { scale } else { 1.0 }
}

fn finite(x: &[f32]) -> impl Iterator<Item = f64> {
    x.iter().filter(|x| x.is_finite()).map(|x| f64::from(*x))
}

fn lsq(x: &[f32], high: f64) -> f64 {
    let count = finite(x).count().max(1) as f64;
    2.0 * finite(x).map(f64::abs).sum::<f64>() / count / high.sqrt()
}

/// A value, and how many elements have it.
#[derive(Clone, Copy, Debug)]
struct Point {
    value: f64,
    count: f64,
}

/// Most points that a fit looks at.
const POINTS: usize = 2048;

/// The finite elements; if there are many, the mean of each of [`POINTS`] bins of equal width.
fn points(x: &[f32]) -> Vec<Point> {
    if x.len() <= POINTS {
        return finite(x).map(|value| Point { value, count: 1.0 }).collect();
    }
    let (least, greatest) = extremes(x);
    let bins_per_unit = (POINTS - 1) as f64 / (greatest - least).max(f64::MIN_POSITIVE);
    let mut bins = vec![Point { value: 0.0, count: 0.0 }; POINTS];
    for x in finite(x) {
        let bin = &mut bins[((x - least) * bins_per_unit) as usize];
        bin.value += x;
        bin.count += 1.0;
    }
    bins.retain(|bin| bin.count > 0.0);
    bins.iter_mut().for_each(|bin| bin.value /= bin.count);
    bins
}

fn code(x: f64, scale: f64, offset: f64, low: f64, high: f64) -> f64 {
    ((x - offset) / scale).clamp(low, high).round_ties_even()
}

fn squared_error(points: &[Point], scale: f64, offset: f64, low: f64, high: f64) -> f64 {
    let error = |p: &Point| scale * code(p.value, scale, offset, low, high) + offset - p.value;
    points.iter().map(|p| p.count * error(p).powi(2)).sum()
}

/// Candidates of the first search for each end; the second ends when its steps are this much smaller; rounds of the third.
const CANDIDATES: u32 = 40;
const FINEST: f64 = 1.0 / 64.0;
const REFINEMENTS: usize = 20;

/// The scale with the least squared error: shares of the widest, then their neighbourhood in ever smaller steps, then codes and
/// scale fitted in turn, each of which can only lower the error (`s = Σxq / Σq²` given the codes).
fn fit_scale(points: &[Point], low: f64, high: f64) -> f64 {
    let reach = |p: &Point| (p.value / high).max(if low < 0.0 { p.value / low } else { 0.0 });
    let widest = points.iter().map(reach).fold(0.0, f64::max);
    if !(widest as f32).is_normal() {
        return 0.0;
    }
    let step = widest / f64::from(2 * CANDIDATES);
    let error = |s: &[f64; 1]| if s[0] > 0.0 { squared_error(points, s[0], 0.0, low, high) } else { f64::INFINITY };
    let candidates = (1..=2 * CANDIDATES).map(|i| [step * f64::from(i)]);
    let [mut best] = descend(least(candidates, error).unwrap_or([widest]), [step], error);
    for _ in 0..REFINEMENTS {
        let (mut xq, mut qq) = (0.0, 0.0);
        for p in points {
            let q = code(p.value, best, 0.0, low, high);
            xq += p.count * p.value * q;
            qq += p.count * q * q;
        }
        let next = xq / qq;
        if next == best || !next.is_normal() {
            break;
        }
        best = next;
    }
    best
}

/// Scale and offset with the least squared error: shares of both ends, then as for the scale alone, with the straight line through
/// the codes fitted at last.
fn fit(points: &[Point], low: f64, high: f64) -> (f64, f64) {
    let smallest = points.iter().map(|p| p.value).fold(f64::INFINITY, f64::min);
    let largest = points.iter().map(|p| p.value).fold(f64::NEG_INFINITY, f64::max);
    let scale_and_offset = |[lo, hi]: [f64; 2]| {
        let scale = (hi - lo) / (high - low);
        (scale, lo - low * scale)
    };
    let error = |ends: &[f64; 2]| {
        let (scale, offset) = scale_and_offset(*ends);
        if scale > 0.0 { squared_error(points, scale, offset, low, high) } else { f64::INFINITY }
    };
    let steps = [smallest, largest].map(|end| end / f64::from(CANDIDATES - 1));
    let candidates = (0..CANDIDATES).flat_map(|i| (0..CANDIDATES).map(move |j| [i, j]));
    let candidates = candidates.map(|[i, j]| [steps[0] * f64::from(i), steps[1] * f64::from(j)]);
    let best = least(candidates, error).unwrap_or([smallest, largest]);
    // An end near zero, as behind a ReLU, has no step of its own to go by.
    let wide = 0.5 * (largest - smallest) / f64::from(CANDIDATES - 1);
    let mut best = scale_and_offset(descend(best, steps.map(|step| step.abs().max(wide)), error));
    for _ in 0..REFINEMENTS {
        let [mut n, mut x, mut q, mut xq, mut qq] = [0.0; 5];
        for p in points {
            let code = code(p.value, best.0, best.1, low, high);
            n += p.count;
            x += p.count * p.value;
            q += p.count * code;
            xq += p.count * p.value * code;
            qq += p.count * code * code;
        }
        let scale = (n * xq - x * q) / (n * qq - q * q);
        let next = (scale, (x - scale * q) / n);
        if next == best || !scale.is_normal() || !next.1.is_finite() {
            break;
        }
        best = next;
    }
    best
}

/// Goes from `best` to better neighbours along each coordinate; steps are halved when there is none.
fn descend<const N: usize>(mut best: [f64; N], mut steps: [f64; N], error: impl Fn(&[f64; N]) -> f64) -> [f64; N] {
    let (mut lowest, mut share) = (error(&best), 1.0);
    while share > FINEST {
        let before = lowest;
        for i in 0..2 * N {
            let mut next = best;
            next[i / 2] += if i % 2 == 0 { steps[i / 2] } else { -steps[i / 2] };
            let found = error(&next);
            if found < lowest {
                (best, lowest) = (next, found);
            }
        }
        if lowest == before {
            share *= 0.5;
            steps = steps.map(|step| 0.5 * step);
        }
    }
    best
}

/// The first of the candidates with the least cost.
fn least<T>(candidates: impl Iterator<Item = T>, cost: impl Fn(&T) -> f64) -> Option<T> {
    candidates.map(|c| (cost(&c), c)).reduce(|best, next| if next.0 < best.0 { next } else { best }).map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    use super::super::testing::normal;
    use super::*;

    #[test]
    fn rules_are_those_of_the_papers() {
        let x = [1.0, -2.0, 3.0, -4.0];
        assert_eq!(scale(Start::Lsq, &x, -8, 7), (2.0 * 2.5 / 7f64.sqrt()) as f32);
        // μ = −0.5, σ² = 7.25; magnitudes have μ = 2.5, σ² = 1.25.
        assert_eq!(scale(Start::LsqPlus(Stat::Signed), &x, -8, 7), ((0.5 + 3.0 * 7.25f64.sqrt()) / 8.0) as f32);
        assert_eq!(scale(Start::LsqPlus(Stat::Abs), &x, -8, 7), ((2.5 + 3.0 * 1.25f64.sqrt()) / 8.0) as f32);
        assert_eq!(scale(Start::MinMax, &x, -8, 7), 0.5);
        assert_eq!(scale(Start::MinMax, &x, -2, 1), 3.0);
        assert_eq!(scale_and_offset(Start::MinMax, &x, 0, 7), (1.0, -4.0));
        assert_eq!(scale_and_offset(Start::MinMax, &x, -4, 3), (1.0, 0.0));
    }

    #[test]
    fn least_squares_finds_the_step_of_the_normal_distribution() {
        // Uniform optimum without zero level at 2 bits: Δ = 0.9957σ; 16 levels: Δ = 0.3352σ (Max 1960, table II).
        let x = normal(100_000, 1.0);
        for (high, step) in [(3, 0.9957), (15, 0.3352)] {
            let (found, offset) = scale_and_offset(Start::Mse, &x, 0, high);
            assert!((found / step - 1.0).abs() < 0.02, "{found} for {step}");
            assert!((offset + found * high as f32 / 2.0).abs() < 0.05, "centred, not {offset}");
        }
    }

    #[test]
    fn least_squares_finds_a_grid_that_holds_everything() {
        let on_grid: Vec<f32> = (0..64).map(|i| 0.3 * (i % 16) as f32 - 0.7).collect();
        let (found, offset) = scale_and_offset(Start::Mse, &on_grid, 0, 15);
        assert!((found - 0.3).abs() < 1e-6 && (offset + 0.7).abs() < 1e-6, "{found}, {offset}");
        let symmetric: Vec<f32> = (-8..8).map(|i| 0.3 * i as f32).collect();
        assert!((scale(Start::Mse, &symmetric, -8, 7) - 0.3).abs() < 1e-6);
    }

    #[test]
    fn an_end_beside_zero_does_not_slow_the_search() {
        let mut relu: Vec<f32> = normal(20_000, 1.0).iter().map(|x| x.max(1e-9)).collect();
        relu[0] = 9.0;
        // In steps of the lower end's own size the search would take hours.
        for high in [3, 15] {
            let (found, offset) = scale_and_offset(Start::Mse, &relu, 0, high);
            assert!(found > 0.05 && offset.abs() < found, "{found}, {offset}");
        }
    }

    #[test]
    fn least_squares_is_no_worse_than_its_neighbours_and_than_the_other_rules() {
        let silu: Vec<f32> = normal(20_000, 2.0).iter().map(|x| x / (1.0 + (-x).exp())).collect();
        let all = points(&silu);
        for high in [3, 7, 15, 255] {
            let error = |(s, b): (f32, f32)| squared_error(&all, s.into(), b.into(), 0.0, high.into());
            let best = scale_and_offset(Start::Mse, &silu, 0, high);
            for (ds, db) in [(0.97, 0.0), (1.03, 0.0), (1.0, 0.05), (1.0, -0.05)] {
                assert!(error(best) <= error((best.0 * ds, best.1 + db * best.0)), "{high}: {best:?}");
            }
            assert!(error(best) <= error(scale_and_offset(Start::MinMax, &silu, 0, high)));
        }
    }

    #[test]
    fn nothing_to_measure_gives_usable_numbers() {
        let cases: [&[f32]; 7] =
            [&[], &[0.0; 5], &[3.0; 5], &[-3.0], &[f32::NAN; 3], &[f32::INFINITY, 1.0], &[1e-42, -1e-42]];
        for x in cases {
            for start in ["method", "lsq", "lsq+", "lsq+abs", "mse", "minmax"].map(|s| s.parse::<Start>().unwrap()) {
                let single = scale(start, x, -2, 1);
                let (s, offset) = scale_and_offset(start, x, 0, 3);
                assert!(single.is_normal() && single > 0.0, "{start}: {single} for {x:?}");
                assert!(s.is_normal() && s > 0.0 && offset.is_finite(), "{start}: {s}, {offset} for {x:?}");
            }
        }
    }
}
