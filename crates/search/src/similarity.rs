//! How far a tensor of the quantized network is from that of the float network.
//!
//! Two tensors enter, one number leaves: 0 where they are equal, larger where they are less alike. All sums are in `f64`.

use crate::SearchError;
use fewbits_graph::Tensor;
use fewbits_methods::weighting::is_distribution;
use serde::Serialize;
use std::{fmt, str::FromStr};

/// A measure of damage between `a` (float) and `b` (quantized), per image, then averaged over images.
///
/// Source: PPQ (`measure/cosine.py`, `analyse/layerwise.py`: cosine, noise over signal) and ZeroQ (KL).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// `1 − ⟨a,b⟩ / (‖a‖‖b‖)`. Blind to a common factor.
    Cosine,
    /// `‖a−b‖² / ‖a‖²`: noise over signal.
    #[default]
    Snr,
    /// `‖a−b‖² / n`.
    Mse,
    /// `Σ p·ln(p/q)` of the distributions along axis 1, averaged over places.
    Kl,
    /// `1 − ⟨a−ā, b−b̄⟩ / (‖a−ā‖‖b−b̄‖)`. Blind to a common factor and summand.
    Pearson,
    /// Share of places where another element along axis 1 is the largest.
    #[serde(rename = "top1")]
    TopOne,
}

const NAMES: [(Metric, &str); 6] = [
    (Metric::Cosine, "cosine"),
    (Metric::Snr, "snr"),
    (Metric::Mse, "mse"),
    (Metric::Kl, "kl"),
    (Metric::Pearson, "pearson"),
    (Metric::TopOne, "top1"),
];

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAMES.iter().find(|(metric, _)| metric == self).map_or("", |(_, name)| name))
    }
}

impl FromStr for Metric {
    type Err = SearchError;

    fn from_str(text: &str) -> Result<Self, SearchError> {
        let unknown =
            || SearchError::Unknown { what: "metric", text: text.into(), known: "cosine, snr, mse, kl, pearson, top1" };
        NAMES.iter().find(|(_, name)| *name == text).map(|(metric, _)| *metric).ok_or_else(unknown)
    }
}

impl Metric {
    /// The damage between the float tensor and the quantized one, images along axis 0. A ratio whose denominator is 0 is 0 if the
    /// two are equal, else 1. Tensors of another type than float, empty ones and those of unlike shapes have none.
    pub fn damage(self, float: &Tensor, quantized: &Tensor) -> Option<f64> {
        let (a, b) = (float.as_f32()?, quantized.as_f32()?);
        if a.is_empty() || float.dims != quantized.dims {
            return None;
        }
        let images = if float.dims.len() < 2 { 1 } else { float.dims[0] };
        let len = a.len() / images;
        let classes = float.dims.get(1).copied().unwrap_or(len);
        let pairs = a.chunks_exact(len).zip(b.chunks_exact(len));
        let sum: f64 = pairs.map(|(a, b)| self.of_image(a, b, classes)).sum();
        Some(sum / images as f64)
    }

    fn of_image(self, a: &[f32], b: &[f32], classes: usize) -> f64 {
        // A network that puts out no numbers is as damaged as can be, however they would add up.
        if a.iter().zip(b).any(|(a, b)| a.is_finite() && !b.is_finite()) {
            return f64::INFINITY;
        }
        match self {
            Metric::Kl => places(a, b, classes, divergence),
            Metric::TopOne => places(a, b, classes, |a, b| f64::from(u8::from(largest(a) != largest(b)))),
            Metric::Cosine => {
                let [aa, bb, ab] = sums(a, b, |a, b| [a * a, b * b, a * b]);
                cosine(aa, bb, ab)
            }
            Metric::Pearson => pearson(a, b),
            Metric::Snr => {
                let [noise, signal] = sums(a, b, |a, b| [(a - b) * (a - b), a * a]);
                ratio(noise, signal)
            }
            Metric::Mse => {
                let [noise] = sums(a, b, |a, b| [(a - b) * (a - b)]);
                noise / a.len() as f64
            }
        }
    }
}

/// `noise / signal`, where nothing of nothing is nothing.
fn ratio(noise: f64, signal: f64) -> f64 {
    match (noise, signal) {
        (noise, signal) if signal > 0.0 => noise / signal,
        (noise, _) => f64::from(u8::from(noise != 0.0)),
    }
}

/// Partial sums that are added up side by side.
const LANES: usize = 8;

/// The sums of `terms` over all pairs.
fn sums<const N: usize>(a: &[f32], b: &[f32], terms: impl Fn(f64, f64) -> [f64; N]) -> [f64; N] {
    let mut lanes = [[0f64; LANES]; N];
    let ((xs, x_tail), (ys, y_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (x, y) in xs.iter().zip(ys) {
        for i in 0..LANES {
            let terms = terms(f64::from(x[i]), f64::from(y[i]));
            for n in 0..N {
                lanes[n][i] += terms[n];
            }
        }
    }
    let mut sums = lanes.map(|lane| lane.iter().sum());
    for (x, y) in x_tail.iter().zip(y_tail) {
        let terms = terms(f64::from(*x), f64::from(*y));
        for n in 0..N {
            sums[n] += terms[n];
        }
    }
    sums
}

/// `1 − ab / √(aa·bb)`
fn cosine(aa: f64, bb: f64, ab: f64) -> f64 {
    let norms = (aa * bb).sqrt();
    if norms > 0.0 { (1.0 - ab / norms).max(0.0) } else { f64::from(u8::from(aa != bb)) }
}

fn pearson(a: &[f32], b: &[f32]) -> f64 {
    let count = a.len() as f64;
    let [mean_a, mean_b] = sums(a, b, |a, b| [a, b]).map(|sum| sum / count);
    let centred = |a: f64, b: f64| [(a - mean_a).powi(2), (b - mean_b).powi(2), (a - mean_a) * (b - mean_b)];
    let [aa, bb, ab] = sums(a, b, centred);
    cosine(aa, bb, ab)
}

/// The mean of `f` over places, given the `classes` values of each on both sides.
fn places(a: &[f32], b: &[f32], classes: usize, f: impl Fn(&[f64], &[f64]) -> f64) -> f64 {
    let count = (a.len() / classes.max(1)).max(1);
    let at = |values: &[f32], place: usize| -> Vec<f64> {
        values[place..].iter().step_by(count).map(|&v| f64::from(v)).collect()
    };
    (0..count).map(|place| f(&at(a, place), &at(b, place))).sum::<f64>() / count as f64
}

fn largest(values: &[f64]) -> usize {
    let better = |best: usize, i: usize| if values[i] > values[best] { i } else { best };
    (0..values.len()).fold(0, better)
}

/// Kullback–Leibler divergence `Σ p·log(p / q)` with `p` and `q` the softmax of `a` and `b`. Where `a` is a distribution already, both are
/// taken as they are.
pub fn divergence(a: &[f64], b: &[f64]) -> f64 {
    let (p, q) = if a.len() > 1 && is_distribution(a.iter().copied()) {
        (logs(a), logs(b))
    } else {
        (log_softmax(a), log_softmax(b))
    };
    let sum: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
    // Rounding may leave equal distributions a little below 0; `max` would make 0 of NaN, too.
    if sum < 0.0 { 0.0 } else { sum }
}

fn log_softmax(values: &[f64]) -> Vec<f64> {
    let most = values.iter().copied().fold(f64::MIN, f64::max);
    let sum: f64 = values.iter().map(|v| (v - most).exp()).sum();
    values.iter().map(|v| v - most - sum.ln()).collect()
}

/// Logarithms of probabilities; one that was rounded to nothing counts as 1e-9.
fn logs(values: &[f64]) -> Vec<f64> {
    // `max` would make 1e-9 of NaN.
    values.iter().map(|v| if *v < 1e-9 { 1e-9 } else { *v }.ln()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damage(metric: Metric, dims: &[usize], a: &[f32], b: &[f32]) -> f64 {
        metric.damage(&Tensor::f32(dims, a.to_vec()), &Tensor::f32(dims, b.to_vec())).unwrap()
    }

    #[test]
    fn what_is_no_number_is_no_likeness() {
        for metric in [Metric::Cosine, Metric::Snr, Metric::Mse, Metric::Kl, Metric::Pearson, Metric::TopOne] {
            for bad in [f32::NAN, f32::INFINITY] {
                assert_eq!(metric.of_image(&[1.0, 0.0], &[bad, 0.0], 2), f64::INFINITY, "{metric}");
            }
        }
        assert!(
            divergence(&[0.0, 1.0], &[f64::NAN, 1.0]).is_nan() && divergence(&[0.0, 2.0], &[f64::NAN, 1.0]).is_nan()
        );
    }

    #[test]
    fn closed_forms() {
        let (a, b) = ([3.0, 4.0], [4.0, 3.0]);
        for (metric, expected) in [
            (Metric::Cosine, 1.0 - 24.0 / 25.0),
            (Metric::Snr, 2.0 / 25.0),
            (Metric::Mse, 1.0),
            (Metric::Pearson, 2.0),
            (Metric::TopOne, 1.0),
            // p = (σ(−1), σ(1)), q the other way round: KL = tanh(1/2).
            (Metric::Kl, 0.5f64.tanh()),
        ] {
            let found = damage(metric, &[1, 2], &a, &b);
            assert!((found - expected).abs() < 1e-12, "{metric}: {found}, expected {expected}");
            assert_eq!(damage(metric, &[1, 2], &a, &a), 0.0, "{metric} of equal tensors");
        }
    }

    #[test]
    fn images_are_averaged_and_places_are_apart() {
        let (a, b) = ([3.0, 4.0, 1.0, 0.0], [4.0, 3.0, 1.0, 0.0]);
        assert!((damage(Metric::Snr, &[2, 2], &a, &b) - 0.04).abs() < 1e-12);
        // Two classes at two places: the second place agrees.
        let (a, b) = ([3.0, 1.0, 4.0, 0.0], [4.0, 1.0, 3.0, 0.0]);
        assert_eq!(damage(Metric::TopOne, &[1, 2, 1, 2], &a, &b), 0.5);
        assert!((damage(Metric::Kl, &[1, 2, 1, 2], &a, &b) - 0.5 * 0.5f64.tanh()).abs() < 1e-12);
    }

    #[test]
    fn what_each_metric_is_blind_to() {
        let a: Vec<f32> = (0..100).map(|i| (0.37 * i as f32).sin() + 0.25).collect();
        let twice: Vec<f32> = a.iter().map(|x| 2.0 * x).collect();
        let shifted: Vec<f32> = a.iter().map(|x| x + 1.0).collect();
        let of = |metric, b: &[f32]| damage(metric, &[1, 100], &a, b);
        assert!(of(Metric::Cosine, &twice) < 1e-12 && of(Metric::Cosine, &shifted) > 0.01);
        assert!(of(Metric::Pearson, &shifted) < 1e-9 && of(Metric::Pearson, &twice) < 1e-12);
        assert!((of(Metric::Snr, &twice) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_small_error_is_not_lost_among_many_elements() {
        let a: Vec<f32> = (0..1 << 20).map(|i| 1.0 + (i % 7) as f32).collect();
        let b: Vec<f32> = a.iter().enumerate().map(|(i, x)| x + if i % 2 == 0 { 1e-3 } else { -1e-3 }).collect();
        let (snr, cosine) = (damage(Metric::Snr, &[1, a.len()], &a, &b), damage(Metric::Cosine, &[1, a.len()], &a, &b));
        // Σx² / n of 1..=7 is 20; at small errors 1 − cos is half of noise over signal.
        assert!((snr / (1e-6 / 20.0) - 1.0).abs() < 1e-3, "{snr}");
        assert!((cosine / (0.5 * snr) - 1.0).abs() < 1e-3, "{cosine}");
    }

    #[test]
    fn nothing_and_distributions() {
        assert_eq!(damage(Metric::Snr, &[1, 2], &[0.0; 2], &[0.0; 2]), 0.0);
        assert_eq!(damage(Metric::Snr, &[1, 2], &[0.0; 2], &[1.0, 0.0]), 1.0);
        assert_eq!(damage(Metric::Cosine, &[1, 2], &[0.0; 2], &[1.0, 0.0]), 1.0);
        assert_eq!(damage(Metric::Pearson, &[1, 2], &[2.0; 2], &[2.0; 2]), 0.0);
        let expected = 0.75f64 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        assert!((damage(Metric::Kl, &[1, 2], &[0.75, 0.25], &[0.5, 0.5]) - expected).abs() < 1e-7);
        let codes = Tensor::i32(&[1, 2], vec![1, 2]);
        assert_eq!(Metric::Mse.damage(&codes, &codes), None);
        assert_eq!(Metric::Mse.damage(&Tensor::f32(&[1], vec![0.0]), &Tensor::f32(&[1, 1], vec![0.0])), None);
    }

    #[test]
    fn names_come_back() {
        for (metric, name) in NAMES {
            assert_eq!((metric.to_string().as_str(), name.parse::<Metric>().unwrap()), (name, metric));
        }
        assert!("psnr".parse::<Metric>().unwrap_err().hint().unwrap().contains("snr"));
    }
}
