//! What it is to be like the float network at its outputs, without labels.
//!
//! Outputs of the float network and of another enter, a gradient leaves. It must not know where either comes from.

use fewbits_graph::Tensor;
use fewbits_train::loss::distillation;

/// How differences of an output count: the loss is the Kullback-Leibler divergence of classes, else a mean of squares.
#[derive(Clone, Debug, PartialEq)]
pub enum Weighting {
    /// As log-probabilities of so many classes.
    Classes(usize),
    /// Squares, each times one over the variance of its channel: factors, and elements between two channels.
    Channels(Vec<f32>, usize),
}

impl Weighting {
    /// One for each output, from what the float network puts out for some samples, `[sample][output]`, images along axis 0.
    pub fn of(targets: &[Vec<Tensor>]) -> Vec<Weighting> {
        let outputs = targets.first().map_or(0, Vec::len);
        (0..outputs).map(|o| Self::of_output(targets, o)).collect()
    }

    fn of_output(targets: &[Vec<Tensor>], output: usize) -> Weighting {
        let dims = &targets[0][output].dims;
        let (channels, inner) = match dims[..] {
            [_, classes] if classes > 1 => return Weighting::Classes(classes),
            [_, channels, ref rest @ ..] if rest.len() >= 2 => (channels, rest.iter().product()),
            [.., last] => (last, 1),
            [] => (1, 1),
        };
        let mut sums = vec![[0f64; 3]; channels];
        for target in targets {
            for (i, x) in target[output].as_f32().into_iter().flatten().enumerate() {
                let sum = &mut sums[i / inner % channels];
                *sum = [sum[0] + 1.0, sum[1] + f64::from(*x), sum[2] + f64::from(*x).powi(2)];
            }
        }
        let factor = |[count, sum, squares]: [f64; 3]| {
            let variance = (squares - sum * sum / count.max(1.0)) / count.max(1.0);
            if variance > 1e-12 * squares { (1.0 / variance) as f32 } else { 0.0 }
        };
        Weighting::Channels(sums.into_iter().map(factor).collect(), inner)
    }

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
            Weighting::Channels(factors, inner) => {
                let scale = 2.0 / output.len() as f32;
                for (i, ((g, a), b)) in gradient.iter_mut().zip(output).zip(target).enumerate() {
                    *g = scale * factors[i / inner % factors.len()] * (a - b);
                }
            }
        }
        gradient
    }
}
