//! What it is to be like the float network at its outputs, without labels.
//!
//! Outputs of the float network and of another enter, a gradient leaves. It must not know where either comes from.

use fewbits_graph::Tensor;
use fewbits_train::loss::distillation;

/// A probability that was rounded to less counts as this.
const LEAST_PROBABILITY: f32 = 1e-9;

/// Of how many classes an output of these dimensions, images along axis 0, holds a score each; `None` if it is something else. Old
/// networks put out maps of one place.
pub fn classes(dims: &[usize]) -> Option<usize> {
    match *dims {
        [_, classes] | [_, classes, 1, 1] if classes > 1 => Some(classes),
        _ => None,
    }
}

/// Whether `row` are probabilities of classes.
pub fn is_distribution(row: impl Iterator<Item = f64> + Clone) -> bool {
    row.clone().all(|p| (0.0..=1.0).contains(&p)) && (row.sum::<f64>() - 1.0).abs() < 1e-3
}

/// How differences of an output count: the loss is the Kullback-Leibler divergence of classes, else a mean of squares.
#[derive(Clone, Debug, PartialEq)]
pub enum Weighting {
    /// As log-probabilities of so many classes.
    Classes(usize),
    /// The same where outputs are the probabilities.
    Probabilities(usize),
    /// Squares, each times one over the variance of its channel: factors, and elements between two channels.
    Channels(Vec<f32>, usize),
}

/// What the outputs of the float network are like, gathered sample by sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outputs(Vec<Gathered>);

/// Of one output.
#[derive(Clone, Debug, Default, PartialEq)]
struct Gathered {
    /// Scores of so many classes; `None` if it is something else.
    classes: Option<usize>,
    /// Whether they were probabilities in every sample.
    probabilities: bool,
    /// Elements between two channels.
    inner: usize,
    /// Count, sum and sum of squares of each channel.
    sums: Vec<[f64; 3]>,
}

impl Gathered {
    fn of(dims: &[usize]) -> Self {
        let (channels, inner) = match *dims {
            [_, channels, ref rest @ ..] if rest.len() >= 2 => (channels, rest.iter().product()),
            // Values × cells; or cells × values, as most detectors have it.
            [_, values, cells] if values < cells => (values, cells),
            [.., last] => (last, 1),
            [] => (1, 1),
        };
        Gathered { classes: classes(dims), probabilities: true, inner, sums: vec![[0.0; 3]; channels] }
    }

    fn add(&mut self, values: &[f32]) {
        let is_distribution = |row: &[f32]| is_distribution(row.iter().map(|p| f64::from(*p)));
        let rows = |classes: usize| values.chunks_exact(classes).all(is_distribution);
        self.probabilities &= self.classes.is_some_and(rows);
        let channels = self.sums.len();
        for (i, x) in values.iter().enumerate() {
            let sum = &mut self.sums[i / self.inner % channels];
            *sum = [sum[0] + 1.0, sum[1] + f64::from(*x), sum[2] + f64::from(*x).powi(2)];
        }
    }
}

impl Outputs {
    /// Adds what the network puts out for a sample, images along axis 0.
    pub fn add(&mut self, outputs: &[Tensor]) {
        if self.0.is_empty() {
            self.0.extend(outputs.iter().map(|output| Gathered::of(&output.dims)));
        }
        for (gathered, output) in self.0.iter_mut().zip(outputs) {
            gathered.add(output.as_f32().unwrap_or_default());
        }
    }

    /// How differences of each output count.
    pub fn weightings(&self) -> Vec<Weighting> {
        let of = |(i, output): (usize, &Gathered)| match (output.classes, output.probabilities) {
            (Some(classes), true) => Weighting::Probabilities(classes),
            (Some(classes), false) => Weighting::Classes(classes),
            (None, _) => self.squares(i, 0.0),
        };
        self.0.iter().enumerate().map(of).collect()
    }

    /// Squares for output number `output`, whatever it looks like. No channel's variance is taken for less than the share `least` of the mean
    /// variance: what hardly ever shows would else outweigh all others.
    pub fn squares(&self, output: usize, least: f64) -> Weighting {
        let Gathered { inner, sums, .. } = &self.0[output];
        let variance = |[count, sum, squares]: &[f64; 3]| (squares - sum * sum / count.max(1.0)) / count.max(1.0);
        let least = least * sums.iter().map(variance).sum::<f64>() / sums.len().max(1) as f64;
        let factor = |sums: &[f64; 3]| {
            let factor = (1.0 / variance(sums).max(least)) as f32;
            if variance(sums).max(least) > 1e-12 * sums[2] && factor.is_finite() { factor } else { 0.0 }
        };
        Weighting::Channels(sums.iter().map(factor).collect(), *inner)
    }
}

impl Weighting {
    /// Gradient of the loss, a mean over images, with respect to `output`, where the float network puts out `target`.
    pub fn gradient(&self, output: &[f32], target: &[f32]) -> Vec<f32> {
        let mut gradient = vec![0.0; output.len()];
        match self {
            Weighting::Classes(classes) => {
                // An output that is not finite has no direction to go.
                let rows = output.len() / classes;
                if distillation(output, target, rows, 1.0, 1.0, &mut gradient).is_err() {
                    gradient.fill(0.0);
                }
            }
            // `−t/p` by row; the Softmax before it makes `p − t` of that.
            Weighting::Probabilities(classes) => {
                let images = (output.len() / classes) as f32;
                for ((g, p), t) in gradient.iter_mut().zip(output).zip(target) {
                    *g = -t / (p.max(LEAST_PROBABILITY) * images);
                }
            }
            Weighting::Channels(factors, inner) => {
                let scale = 2.0 / output.len() as f32;
                // Planes of one channel each.
                let planes = gradient.chunks_mut(*inner).zip(output.chunks(*inner)).zip(target.chunks(*inner));
                for (((gradient, output), target), factor) in planes.zip(factors.iter().cycle()) {
                    let factor = scale * factor;
                    gradient.iter_mut().zip(output).zip(target).for_each(|((g, a), b)| *g = factor * (a - b));
                }
            }
        }
        gradient
    }

    /// `B·z` for signs `z`, where `B·Bᵀ` is the Hessian of the loss with respect to `target`, what the float network puts out:
    /// `diag(p) − p·pᵀ` by image for classes of probabilities `p`, `diag(1/p)` for the probabilities themselves, else diagonal.
    pub fn curvature(&self, target: &[f32], mut sign: impl FnMut() -> f64) -> Vec<f32> {
        match self {
            Weighting::Classes(classes) => {
                let images = (target.len() / classes) as f64;
                let row = |logits: &[f32]| {
                    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let mut p: Vec<f64> = logits.iter().map(|x| f64::from(x - largest).exp()).collect();
                    let sum: f64 = p.iter().sum();
                    p.iter_mut().for_each(|p| *p /= sum);
                    let roots: Vec<f64> = p.iter().map(|p| p.sqrt() * sign()).collect();
                    let along: f64 = roots.iter().sum();
                    let row = roots.iter().zip(&p).map(|(root, p)| ((root - p * along) / images.sqrt()) as f32);
                    row.collect::<Vec<_>>()
                };
                target.chunks_exact(*classes).flat_map(row).collect()
            }
            Weighting::Probabilities(classes) => {
                let images = (target.len() / classes) as f64;
                target.iter().map(|t| (sign() / (f64::from(t.max(LEAST_PROBABILITY)) * images).sqrt()) as f32).collect()
            }
            Weighting::Channels(factors, inner) => {
                let factor = |i: usize| f64::from(factors[i / inner % factors.len()]);
                let scale = 2.0 / target.len() as f64;
                (0..target.len()).map(|i| ((scale * factor(i)).sqrt() * sign()) as f32).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_that_hardly_shows_does_not_outweigh_all_others() {
        // Variances 1, 1e-12 and next to nothing, of which one over does not fit f32.
        let channels = [[-1.0f32, 1.0], [-1e-6, 1e-6], [-1e-20, 1e-20]].concat();
        let mut outputs = Outputs::default();
        outputs.add(&[Tensor::f32(&[1, 3, 1, 2], channels)]);
        let factors = |least: f64| match outputs.squares(0, least) {
            Weighting::Channels(factors, 2) => factors,
            other => panic!("{other:?}"),
        };
        assert_eq!(factors(0.0), [1.0, (1.0 / f64::from(1e-6f32).powi(2)) as f32, 0.0]);
        // A thousandth of the mean variance, a third.
        let floored = factors(1e-3);
        assert!(floored[0] == 1.0 && floored[1..].iter().all(|f| (f - 3000.0).abs() < 1.0), "{floored:?}");
    }

    #[test]
    fn curvature_is_the_root_of_the_second_differences() {
        let target = [0.3f32, -1.2, 2.0, 0.7, 1.5, -0.4, 0.1, 0.9];
        let count = target.len();
        let of = |tensor: Tensor| {
            let mut outputs = Outputs::default();
            outputs.add(&[tensor]);
            outputs.weightings().remove(0)
        };
        let of_channels = of(Tensor::f32(&[1, 2, 2, 2], target.to_vec()));
        let probabilities = [0.1f32, 0.2, 0.3, 0.4, 0.25, 0.25, 0.35, 0.15];
        let of_probabilities = of(Tensor::f32(&[2, 4], probabilities.to_vec()));
        assert_eq!(of_probabilities, Weighting::Probabilities(4));
        assert_eq!(of(Tensor::f32(&[2, 4], target.to_vec())), Weighting::Classes(4));
        assert_eq!(of(Tensor::f32(&[2, 4, 1, 1], target.to_vec())), Weighting::Classes(4));
        let cases = [(Weighting::Classes(4), target), (of_channels, target), (of_probabilities, probabilities)];
        for (weighting, target) in cases {
            // Column i of B: the sign of element i alone is not 0.
            let column = |i: usize| {
                let mut next = 0;
                weighting.curvature(&target, || {
                    next += 1;
                    if next == i + 1 { 1.0 } else { 0.0 }
                })
            };
            let root: Vec<Vec<f32>> = (0..count).map(column).collect();
            for i in 0..count {
                let ends = [0.001f32, -0.001].map(|step| {
                    let mut moved = target;
                    moved[i] += step;
                    weighting.gradient(&moved, &target)
                });
                for j in 0..count {
                    let expected = (ends[0][j] - ends[1][j]) / 0.002;
                    let found: f32 = root.iter().map(|column| column[i] * column[j]).sum();
                    assert!(
                        (found - expected).abs() < 1e-3 * (1.0 + expected.abs()),
                        "{weighting:?} {i} {j}: {found}, expected {expected}"
                    );
                }
            }
        }
    }
}
