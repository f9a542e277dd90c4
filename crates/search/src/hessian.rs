//! Sensitivities from second derivatives: the mean eigenvalue of the loss's Hessian in each weight, times what rounding changes.
//!
//! A float network and samples enter; traces leave, and with them a [`Sensitivity`] as [`crate::sensitivity::measure`] gives it. No
//! quantized network is run, and no labels are needed.
//!
//! The loss is the distance from the float network's own outputs ([`Weighting`]: Kullback-Leibler divergence for classes, else squared
//! errors by channel), the mean over images. At the float weights it is 0 and so is its gradient: its Hessian is the Gauss-Newton
//! matrix, which has no negative eigenvalues.

use crate::{
    Level, Rounding, SearchError, Sensitivity,
    sensitivity::{add, describe, weight},
    whole,
};
use fewbits_graph::{
    Grids, Tensor,
    tape::{Config as TapeConfig, Leaves, Statistics, Tape},
};
use fewbits_kernels::Threads;
use fewbits_methods::{Ground, Layer, MethodError, Outputs, Progress, Samples, Weighting, layers};
use fewbits_train::random::Random;
use serde::Serialize;
use std::{collections::BTreeSet, ops::Range};

/// How traces are estimated.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The most probes: vectors for each sample.
    pub probes: usize,
    /// Enough once the standard error of every trace is at most this share of the trace.
    pub tolerance: f64,
    /// Samples (runs) of a batch.
    pub batch: usize,
    /// Start of the random numbers.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config { probes: 50, tolerance: 0.1, batch: 8, seed: 0 }
    }
}

/// Probes before the first look at the standard errors.
const LEAST_PROBES: usize = 5;

/// The trace of the loss's Hessian in one weight.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trace {
    /// The weight.
    pub weight: String,
    /// Its elements.
    pub elements: u64,
    /// The trace.
    pub trace: f64,
    /// Of the trace.
    pub standard_error: f64,
}

/// Traces of all weights with a grid.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Traces {
    /// In graph order. A weight that layers share comes once.
    pub layers: Vec<Trace>,
}

/// Traces of the Hessian's blocks, one for each weight, by Hutchinson's method.
///
/// With `J` the derivatives of the outputs by the weight, and `B·Bᵀ` the Hessian of the loss with respect to the outputs
/// ([`Weighting::curvature`]), the block is `Jᵀ·B·Bᵀ·J`. It has the trace of `Bᵀ·J·Jᵀ·B`, which is the mean of `‖Jᵀ·B·z‖²` over vectors
/// `z` of random signs: one way back through the network for all weights. Images have signs of their own, so that what belongs to two
/// images has the mean 0, and gradients are summed over a batch before they are squared. A last batch that is not full is filled up
/// with the first samples.
///
/// Results do not depend on the number of threads. Cost: `probes` times forward and back through the network for all samples. All
/// samples are in memory, and the activations of one batch.
///
/// Source: Dong et al., "HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks" (2020), section 3.2. Departures: no
/// labels; the signs are at the outputs instead of at the weights. The trace is the same, every estimate is positive, one probe does
/// for all weights at once without one disturbing another, and neither second derivatives nor differences are needed.
///
/// # Errors
/// Those of the samples; [`fewbits_graph::GraphError`] with the name of the node if the network has an operator without derivative;
/// [`SearchError::NoLayers`].
pub fn traces(
    ground: Ground<'_>,
    samples: &dyn Samples,
    config: &Config,
    threads: &Threads,
    progress: &dyn Progress,
) -> Result<Traces, SearchError> {
    let inputs = whole::inputs(samples, threads)?;
    let mut network = Network::new(ground, &inputs, config, threads)?;
    progress.begin("hessian", config.probes);
    let mut sums: Vec<[f64; 2]> = vec![[0.0; 2]; network.weights.len()];
    let mut found: Vec<Trace> = vec![];
    let mut probes = 0;
    while probes < config.probes.max(1) {
        for (sum, square) in sums.iter_mut().zip(network.probe(config.seed, probes as u64)) {
            *sum = [sum[0] + square, sum[1] + square * square];
        }
        probes += 1;
        progress.step();
        found = network.weights.iter().zip(&sums).map(|(weight, sums)| weight.trace(*sums, probes as f64)).collect();
        let is_enough = |found: &Trace| found.standard_error <= config.tolerance * found.trace;
        if probes >= LEAST_PROBES && found.iter().all(is_enough) {
            break;
        }
    }
    progress.end();
    Ok(Traces { layers: found })
}

impl Traces {
    /// `Ω(b) = Tr(H)/n · ‖Q_b(W) − W‖²` for every weight `W` of `n` elements at each of `widths`: twice what the loss grows by if rounding
    /// errors have no direction. `activations` have the widths of inputs, for costs.
    ///
    /// Source: as [`traces`], equation 9.
    ///
    /// # Errors
    /// A weight that cannot be quantized.
    pub fn sensitivity(
        &self,
        ground: Ground<'_>,
        activations: Option<&Grids>,
        widths: &[u8],
        rounding: Rounding,
        threads: &Threads,
    ) -> Result<Sensitivity, SearchError> {
        let all = layers(ground.float, ground.placement);
        let damages = threads.map(all.len(), |i| -> Result<Vec<f64>, SearchError> {
            // A weight that layers share is rounded once.
            let first = all[..i].iter().all(|earlier| earlier.weight != all[i].weight);
            let trace = self.layers.iter().find(|trace| first && trace.weight == all[i].weight);
            let Some(trace) = trace else { return Ok(vec![0.0; widths.len()]) };
            let mean = trace.trace / trace.elements.max(1) as f64;
            widths.iter().map(|&bits| Ok(mean * change(&ground, &all[i], bits, rounding)?)).collect()
        });
        let mut rows = vec![];
        for (layer, damage) in all.iter().zip(damages) {
            add(&mut rows, describe(&ground, layer, activations, rounding, damage?));
        }
        Ok(Sensitivity {
            metric: None,
            level: Level::Network,
            widths: widths.to_vec(),
            layers: rows,
            input_widths: vec![],
            inputs: vec![],
        })
    }
}

/// `‖Q(W) − W‖²` of the weight of `layer` at `bits` bits.
fn change(ground: &Ground<'_>, layer: &Layer, bits: u8, rounding: Rounding) -> Result<f64, SearchError> {
    let weight = weight(ground, layer);
    let rounded = rounding.apply(&layer.weight, weight, layer.axis, bits)?;
    let [float, rounded] = [weight, &rounded].map(|tensor| tensor.as_f32().unwrap_or_default());
    Ok(float.iter().zip(rounded).map(|(a, b)| f64::from(a - b).powi(2)).sum())
}

/// A weight among the leaves.
struct Block {
    name: String,
    range: Range<usize>,
}

impl Block {
    /// From the sum of the estimates and that of their squares.
    fn trace(&self, [sum, squares]: [f64; 2], probes: f64) -> Trace {
        let variance = (squares - sum * sum / probes).max(0.0) / (probes - 1.0).max(1.0);
        Trace {
            weight: self.name.clone(),
            elements: self.range.len() as u64,
            trace: sum / probes,
            standard_error: (variance / probes).sqrt(),
        }
    }
}

/// Samples that go through the network together.
struct Batch {
    inputs: Vec<Vec<f32>>,
    outputs: Vec<Vec<f32>>,
}

/// The float network with what it makes of the samples.
struct Network<'a> {
    tape: Tape,
    leaves: Leaves,
    weights: Vec<Block>,
    weightings: Vec<Weighting>,
    batches: Vec<Batch>,
    threads: &'a Threads,
}

impl<'a> Network<'a> {
    fn new(
        ground: Ground<'_>,
        inputs: &[Vec<Tensor>],
        config: &Config,
        threads: &'a Threads,
    ) -> Result<Self, SearchError> {
        let refuse = |what: String, hint| MethodError::Unsupported { method: "hessian", what, hint };
        let Some(first) = inputs.first() else {
            return Err(refuse("there are no samples".into(), "give calibration images").into());
        };
        let size = config.batch.clamp(1, inputs.len());
        let batched = |dims: &[usize]| match dims {
            [images, rest @ ..] => [&[images * size], rest].concat(),
            [] => vec![],
        };
        let shapes: Vec<Vec<usize>> = first.iter().map(|tensor| batched(&tensor.dims)).collect();
        let mut leaves = Leaves::new(ground.float, &Default::default());
        let tape_config = TapeConfig { statistics: Statistics::Running, ..Default::default() };
        let mut tape = Tape::compile(ground.float, &leaves, &shapes, &tape_config)?;
        let weights = blocks(&ground, &leaves);
        if weights.is_empty() {
            return Err(SearchError::NoLayers);
        }
        let (mut batches, mut outputs) = (vec![], Outputs::default());
        for begin in (0..inputs.len()).step_by(size) {
            let samples = || (begin..begin + size).map(|i| &inputs[i % inputs.len()]);
            let joined = |k: usize| samples().flat_map(|s| s[k].as_f32().unwrap_or_default()).copied().collect();
            let inputs: Vec<Vec<f32>> = (0..first.len()).map(joined).collect();
            tape.forward(&mut leaves, &inputs.iter().map(Vec::as_slice).collect::<Vec<_>>(), threads);
            let mut made = vec![];
            for (o, info) in ground.float.outputs.iter().enumerate() {
                let output = tape.output(o).to_vec();
                if !output.iter().all(|x| x.is_finite()) {
                    let what = format!("output `{}` of the float network is not finite", info.name);
                    return Err(refuse(what, "check the preprocessing of the images").into());
                }
                made.push(Tensor::f32(&batched(&ground.facts[&info.name].dims), output));
            }
            let values = made.iter().map(|t| t.as_f32().unwrap_or_default().to_vec());
            batches.push(Batch { inputs, outputs: values.collect() });
            outputs.add(&made);
        }
        Ok(Network { tape, leaves, weights, weightings: outputs.weightings(), batches, threads })
    }

    /// An estimate of each trace.
    fn probe(&mut self, seed: u64, probe: u64) -> Vec<f64> {
        let mut sums = vec![0.0; self.weights.len()];
        let mut gradients = vec![0.0; self.leaves.values.len()];
        for (number, Batch { inputs, outputs }) in self.batches.iter().enumerate() {
            let mut random = Random::keyed(&[seed, probe, number as u64]);
            let mut sign = || if random.next_u64() >> 63 == 1 { 1.0 } else { -1.0 };
            let of_output = |(weighting, output): (&Weighting, &Vec<f32>)| weighting.curvature(output, &mut sign);
            let directions: Vec<Vec<f32>> = self.weightings.iter().zip(outputs).map(of_output).collect();
            let [inputs, directions] =
                [inputs, &directions].map(|all| all.iter().map(Vec::as_slice).collect::<Vec<_>>());
            self.tape.forward(&mut self.leaves, &inputs, self.threads);
            self.tape.backward(&self.leaves, &inputs, &directions, &mut gradients, self.threads);
            for (sum, weight) in sums.iter_mut().zip(&self.weights) {
                *sum += gradients[weight.range.clone()].iter().map(|g| f64::from(*g).powi(2)).sum::<f64>();
            }
        }
        sums.iter().map(|sum| sum / self.batches.len() as f64).collect()
    }
}

/// The weights of layers with a grid.
fn blocks(ground: &Ground<'_>, leaves: &Leaves) -> Vec<Block> {
    let mut seen = BTreeSet::new();
    let of_layer = |layer: Layer| {
        let range = leaves.parameter(&layer.weight)?.range.clone();
        seen.insert(range.start).then_some(Block { name: layer.weight, range })
    };
    layers(ground.float, ground.placement).into_iter().filter_map(of_layer).collect()
}

#[cfg(test)]
mod tests;
