//! How far images are from what a network remembers, and the gradient of that.
//!
//! Images enter; a loss per image and its gradient leave. It knows no optimizer.

use crate::MethodError;
use fewbits_graph::{
    Graph,
    tape::{Config, Leaves, Statistics, Tape},
};
use fewbits_kernels::Threads;
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// Added to variances under the root.
const EPSILON: f32 = 1e-6;

/// `√(variance + 10⁻⁶)`
pub fn deviation(variance: f32) -> f32 {
    (variance.max(0.0) + EPSILON).sqrt()
}

/// What the channels of a tensor should be like.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Its name.
    pub tensor: String,
    /// Per channel.
    pub mean: Vec<f32>,
    /// Per channel.
    pub deviation: Vec<f32>,
}

/// A network made ready to compare a number of images.
pub struct Matching {
    /// Absent if only the images themselves are compared.
    tape: Option<(Tape, Leaves)>,
    images: usize,
    /// For each output of the tape.
    targets: Vec<Vec<Target>>,
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
    pub fn new(graph: &Graph, targets: &[Target], shape: &[usize]) -> Result<Self, MethodError> {
        let mut by_tensor: BTreeMap<&str, Vec<Target>> = BTreeMap::new();
        for target in targets {
            by_tensor.entry(&target.tensor).or_default().push(target.clone());
        }
        let names: Vec<&str> = by_tensor.keys().copied().collect();
        let tape = match names.is_empty() {
            true => None,
            false => {
                let part = graph.slice(&graph.inputs, &names)?;
                let leaves = Leaves::new(&part, &BTreeMap::new());
                let config = Config { statistics: Statistics::Running, input_gradients: true, ..Config::default() };
                Some((Tape::compile(&part, &leaves, &[shape.to_vec()], &config)?, leaves))
            }
        };
        let input = Target { tensor: String::new(), mean: vec![0.0; shape[1]], deviation: vec![1.0; shape[1]] };
        let gradients = vec![vec![]; names.len()];
        Ok(Matching { tape, images: shape[0], targets: by_tensor.into_values().collect(), input, gradients })
    }

    /// The loss per image of `images`; its gradient (of the sum over images) goes to `gradient`.
    pub fn gradient(&mut self, images: &[f32], gradient: &mut [f32], threads: &Threads) -> f64 {
        gradient.fill(0.0);
        let mut loss = 0.0;
        if let Some((tape, leaves)) = &mut self.tape {
            tape.forward(leaves, &[images], threads);
            for (i, (targets, gradient)) in self.targets.iter().zip(&mut self.gradients).enumerate() {
                let output = tape.output(i);
                gradient.clear();
                gradient.resize(output.len(), 0.0);
                loss += compare(targets, self.images, output, gradient, threads);
            }
            let gradients: Vec<&[f32]> = self.gradients.iter().map(Vec::as_slice).collect();
            tape.backward(leaves, &[images], &gradients, &mut [], threads);
            gradient.copy_from_slice(tape.input_gradient(0));
        }
        loss += compare(std::slice::from_ref(&self.input), self.images, images, gradient, threads);
        loss / self.images as f64
    }
}

/// The distance of `x`, `[images, C, …]`, from `targets`, summed up over images; its gradient is added to `dx`.
fn compare(targets: &[Target], images: usize, x: &[f32], dx: &mut [f32], threads: &Threads) -> f64 {
    let row = x.len() / images;
    let rows: Vec<Mutex<(f64, &mut [f32])>> = dx.chunks_mut(row).map(|dx| Mutex::new((0.0, dx))).collect();
    threads.run(images, |i| {
        let mut guard = rows[i].lock().unwrap_or_else(PoisonError::into_inner);
        let (loss, dx) = &mut *guard;
        for Target { mean, deviation, .. } in targets {
            let positions = row / mean.len();
            let planes = x[i * row..][..row].chunks(positions).zip(dx.chunks_mut(positions));
            for (((x, dx), &mean), &deviation) in planes.zip(mean).zip(deviation) {
                *loss += plane(x, mean, deviation, dx);
            }
        }
    });
    rows.into_iter().map(|row| row.into_inner().unwrap_or_else(PoisonError::into_inner).0).sum()
}

/// `(μ̃ − μ)² + (σ̃ − σ)²` of one channel of one image. With `P` positions, its gradient
/// `2 (μ̃ − μ)/P + 2 (σ̃ − σ)(x − μ̃)/(P σ̃)` is added to `dx`.
fn plane(x: &[f32], mean: f32, wanted: f32, dx: &mut [f32]) -> f64 {
    let positions = x.len() as f32;
    let own = sum(x, |x| x) / positions;
    let spread = deviation(sum(x, |x| (x - own) * (x - own)) / positions);
    let (shift, stretch) = (own - mean, spread - wanted);
    let (constant, slope) = (2.0 * shift / positions, 2.0 * stretch / (positions * spread));
    dx.iter_mut().zip(x).for_each(|(dx, x)| *dx += constant + slope * (x - own));
    f64::from(shift).powi(2) + f64::from(stretch).powi(2)
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
