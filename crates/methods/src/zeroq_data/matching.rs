//! How far images are from what a network remembers, and the gradient of that.
//!
//! Images enter; a loss and its gradient leave. It knows no optimizer.

use crate::MethodError;
use fewbits_graph::{
    Graph,
    tape::{Config, Leaves, Statistics, Tape},
};
use fewbits_kernels::Threads;
use fewbits_train::loss::cross_entropy;
use std::sync::{Mutex, PoisonError};

/// What the channels of a tensor should be like, over all images together.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Its name.
    pub tensor: String,
    /// `μ` per channel.
    pub mean: Vec<f32>,
    /// `σ²` per channel, more than zero.
    pub variance: Vec<f32>,
    /// `ε`, added to variances under the root.
    pub epsilon: f32,
}

/// Logits `[images, K]` that should name a class for each image.
#[derive(Clone, Debug, PartialEq)]
pub struct Classes {
    /// The tensor.
    pub logits: String,
    /// A class for each image.
    pub labels: Vec<usize>,
    /// Of the cross entropy, beside the mean distance of a tensor's channels.
    pub weight: f64,
}

/// A network made ready to compare a number of images.
pub struct Matching {
    /// Absent if only the images themselves are compared.
    tape: Option<(Tape, Leaves)>,
    images: usize,
    /// Position of the tape's output, and what it should be like.
    targets: Vec<(usize, Target)>,
    classes: Option<(usize, Classes)>,
    /// Of the images themselves.
    input: Target,
    /// Of the tape's outputs.
    gradients: Vec<Vec<f32>>,
}

impl Matching {
    /// Prepares `graph` for images of `shape`, the first axis being their number.
    ///
    /// # Errors
    /// [`MethodError::Graph`] if a layer before a target has no derivative.
    pub fn new(
        graph: &Graph,
        targets: &[Target],
        classes: Option<Classes>,
        input: Target,
        shape: &[usize],
    ) -> Result<Self, MethodError> {
        let wanted = targets.iter().map(|t| t.tensor.as_str());
        let logits = classes.as_ref().map(|c| c.logits.clone());
        let mut names: Vec<&str> = wanted.chain(logits.as_deref()).collect();
        names.sort_unstable();
        names.dedup();
        let tape = match names.is_empty() {
            true => None,
            false => {
                let part = graph.slice(&graph.inputs, &names)?;
                let leaves = Leaves::new(&part, &std::collections::BTreeMap::new());
                let config = Config { statistics: Statistics::Running, input_gradients: true, ..Config::default() };
                Some((Tape::compile(&part, &leaves, &[shape.to_vec()], &config)?, leaves))
            }
        };
        let position = |name: &str| names.iter().position(|n| *n == name).unwrap_or_default();
        Ok(Matching {
            tape,
            images: shape[0],
            targets: targets.iter().map(|t| (position(&t.tensor), t.clone())).collect(),
            classes: classes.map(|c| (position(&c.logits), c)),
            input,
            gradients: vec![vec![]; names.len()],
        })
    }

    /// The loss of `images`; its gradient goes to `gradient`. Infinite if the network's numbers are not finite.
    pub fn gradient(&mut self, images: &[f32], gradient: &mut [f32], threads: &Threads) -> f64 {
        gradient.fill(0.0);
        let mut loss = 0.0;
        if let Some((tape, leaves)) = &mut self.tape {
            tape.forward(leaves, &[images], threads);
            for (i, gradient) in self.gradients.iter_mut().enumerate() {
                gradient.clear();
                gradient.resize(tape.output(i).len(), 0.0);
            }
            for (i, target) in &self.targets {
                loss += compare(target, self.images, tape.output(*i), &mut self.gradients[*i], threads);
            }
            if let Some((i, Classes { labels, weight, .. })) = &self.classes {
                let entropy = cross_entropy(tape.output(*i), labels, 0.0, *weight, &mut self.gradients[*i]);
                loss += weight * entropy.unwrap_or(f64::INFINITY);
            }
            let gradients: Vec<&[f32]> = self.gradients.iter().map(Vec::as_slice).collect();
            tape.backward(leaves, &[images], &gradients, &mut [], threads);
            gradient.copy_from_slice(tape.input_gradient(0));
        }
        loss + compare(&self.input, self.images, images, gradient, threads)
    }
}

/// `mean over channels of ((μ̃ − μ)² + (σ̃ − √(σ² + ε))²) / (σ² + ε)`, `σ̃ = √(variance + ε)`, of `x`, `[images, C, positions]`. With
/// `P` elements in a channel, its gradient `2 ((μ̃ − μ) + (1 − √(σ² + ε)/σ̃)(x − μ̃)) / (P C (σ² + ε))` is added to `dx`.
fn compare(target: &Target, images: usize, x: &[f32], dx: &mut [f32], threads: &Threads) -> f64 {
    let (row, channels) = (x.len() / images, target.mean.len());
    let positions = row / channels;
    let sums: Vec<Vec<[f64; 2]>> = threads.map(images, |i| {
        let planes = x[i * row..][..row].chunks(positions).zip(&target.mean);
        // About the mean that they should have: nothing cancels where it matters.
        let sums_of =
            |(x, &mean): (&[f32], &f32)| [sum(x, |x| x - mean), sum(x, |x| (x - mean) * (x - mean))].map(f64::from);
        planes.map(sums_of).collect()
    });
    let count = (images * positions) as f64;
    let mut loss = 0.0;
    let step = |c: usize| {
        let [first, second] = [0, 1].map(|k| sums.iter().map(|image| image[c][k]).sum::<f64>() / count);
        let (epsilon, wanted) = (f64::from(target.epsilon), f64::from(target.variance[c] + target.epsilon));
        let spread = ((second - first * first).max(0.0) + epsilon).sqrt();
        loss += (first * first + (spread - wanted.sqrt()).powi(2)) / wanted;
        let unit = 2.0 / (count * channels as f64 * wanted);
        let slope = unit * (1.0 - wanted.sqrt() / spread);
        // slope · (x − μ̃) + unit · (μ̃ − μ) as slope · x + constant.
        let own = f64::from(target.mean[c]) + first;
        [slope as f32, (unit * first - slope * own) as f32]
    };
    let steps: Vec<[f32; 2]> = (0..channels).map(step).collect();
    let rows: Vec<Mutex<&mut [f32]>> = dx.chunks_mut(row).map(Mutex::new).collect();
    threads.run(images, |i| {
        let mut dx = rows[i].lock().unwrap_or_else(PoisonError::into_inner);
        let planes = x[i * row..][..row].chunks(positions).zip(dx.chunks_mut(positions));
        for ((x, dx), [slope, constant]) in planes.zip(&steps) {
            dx.iter_mut().zip(x).for_each(|(dx, x)| *dx += slope * x + constant);
        }
    });
    loss / channels as f64
}

/// `Σ f(x)`, in sixteen sums side by side.
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (rows, rest) = x.as_chunks::<16>();
    let mut sums = [0f32; 16];
    for row in rows {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f(*x));
    }
    sums.iter().sum::<f32>() + rest.iter().map(|x| f(*x)).sum::<f32>()
}
