//! Sensitivities from second derivatives: the mean eigenvalue of the loss's Hessian in each weight, times what rounding changes.
//!
//! A float network and samples enter; traces leave, and with them a [`Sensitivity`] as [`crate::sensitivity::measure`] gives it. No
//! quantized network is run, and no labels are needed.
//!
//! The loss is the distance from the float network's own outputs ([`Weighting`]: Kullback-Leibler divergence for classes, else squared
//! errors by channel), the mean over images. At the float weights it is 0 and so is its gradient: its Hessian is the Gauss-Newton
//! matrix, which has no negative eigenvalues.

use crate::{
    Level, Metric, Rounding, SearchError, Sensitivity,
    sensitivity::{add, describe, weight},
    whole,
};
use fewbits_graph::{
    Grids, Tensor,
    tape::{Config as TapeConfig, Leaves, Statistics, Tape},
};
use fewbits_kernels::Threads;
use fewbits_methods::{Ground, Layer, MethodError, Progress, Samples, Weighting, layers};
use fewbits_train::random::Random;
use serde::Serialize;
use std::{collections::BTreeSet, ops::Range};

/// How traces are estimated.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The most probes: directions for each batch of samples.
    pub probes: usize,
    /// Enough once the standard error of every trace is at most this share of the trace.
    pub tolerance: f64,
    /// How far a probe goes from the weights, in units of their root mean square.
    pub step: f32,
    /// Samples (runs) of a batch.
    pub batch: usize,
    /// Start of the random numbers.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config { probes: 50, tolerance: 0.1, step: 1e-2, batch: 8, seed: 0 }
    }
}

/// Probes before the first look at the standard errors.
const LEAST_PROBES: usize = 5;

/// The number of the probe that decides how far others go.
const PILOT: u64 = u64::MAX;

/// Steps are at least this share of [`Config::step`].
const SMALLEST_SHARE: f64 = 1e-2;

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
    /// Probes that it took.
    pub probes: usize,
    /// Samples (runs).
    pub samples: usize,
    /// The measure of damage that the loss comes closest to.
    pub metric: Metric,
}

/// Traces of the Hessian's blocks, one for each weight, by Hutchinson's method: `Tr(H) = E[zᵀHz]` for signs `z`, with
/// `Hz = (g(w + εz) − g(w − εz)) / 2ε` from gradients `g` of the loss.
///
/// One direction `z` is laid through all weights at once, in each by steps of its own `ε`, and the products are taken weight by weight:
/// what one weight does to another's gradient has the mean 0. So that it is small too, steps (at most `step · rms(w)`) are shorter where
/// the loss is steeper. Every batch has directions of its own, so that a probe averages over as many of them. A last batch that is not full is filled up with the first samples.
///
/// Results do not depend on the number of threads. Cost: `2 · probes` times forward and back through the network for all samples, and
/// twice for one batch and each weight. All
/// samples are in memory, and the activations of one batch.
///
/// Source: Dong et al., "HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks" (2020), section 3.2. Departures:
/// differences instead of a second derivative by the graph, all blocks at once, and no labels.
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
    let mut loss = Loss::new(ground, &inputs, config, threads)?;
    progress.begin("hessian", config.probes);
    loss.level(config);
    let mut sums: Vec<[f64; 2]> = vec![[0.0; 2]; loss.weights.len()];
    let mut found: Vec<Trace> = vec![];
    let mut probes = 0;
    while probes < config.probes.max(1) {
        for (sum, product) in sums.iter_mut().zip(loss.probe(config, probes as u64)) {
            *sum = [sum[0] + product, sum[1] + product * product];
        }
        probes += 1;
        progress.step();
        found = loss.weights.iter().zip(&sums).map(|(weight, sums)| weight.trace(*sums, probes as f64)).collect();
        let is_enough = |found: &Trace| found.standard_error <= config.tolerance * found.trace;
        if probes >= LEAST_PROBES && found.iter().all(is_enough) {
            break;
        }
    }
    progress.end();
    let classes = loss.weightings.iter().all(|weighting| matches!(weighting, Weighting::Classes(_)));
    let metric = if classes { Metric::Kl } else { Metric::Snr };
    Ok(Traces { layers: found, probes, samples: inputs.len(), metric })
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
        let damages = whole::in_order(all.len(), threads, |i| -> Result<Vec<f64>, SearchError> {
            // A weight that layers share is rounded once.
            let first = all[..i].iter().all(|earlier| earlier.weight != all[i].weight);
            let trace = self.layers.iter().find(|trace| first && trace.weight == all[i].weight);
            let Some(trace) = trace else { return Ok(vec![0.0; widths.len()]) };
            let mean = trace.trace.max(0.0) / trace.elements.max(1) as f64;
            widths.iter().map(|&bits| Ok(mean * change(&ground, &all[i], bits, rounding)?)).collect()
        })?;
        let mut rows = vec![];
        for (layer, damage) in all.iter().zip(damages) {
            add(&mut rows, describe(&ground, layer, activations, rounding, damage));
        }
        Ok(Sensitivity {
            metric: self.metric,
            level: Level::Network,
            samples: self.samples,
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
    /// How far to go in it: at most the root mean square of its elements, or 1 if they are all 0.
    size: f32,
}

impl Block {
    /// From the sum of the products and that of their squares.
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
    /// What the float network makes of them.
    targets: Vec<Vec<f32>>,
}

/// The loss as a function of the weights.
struct Loss<'a> {
    tape: Tape,
    leaves: Leaves,
    /// The leaves' values as they are in the float network.
    start: Vec<f32>,
    weights: Vec<Block>,
    weightings: Vec<Weighting>,
    batches: Vec<Batch>,
    threads: &'a Threads,
}

impl<'a> Loss<'a> {
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
        let (mut batches, mut outputs) = (vec![], vec![]);
        for begin in (0..inputs.len()).step_by(size) {
            let samples = || (begin..begin + size).map(|i| &inputs[i % inputs.len()]);
            let joined = |k: usize| samples().flat_map(|s| s[k].as_f32().unwrap_or_default()).copied().collect();
            let inputs: Vec<Vec<f32>> = (0..first.len()).map(joined).collect();
            tape.forward(&mut leaves, &inputs.iter().map(Vec::as_slice).collect::<Vec<_>>(), threads);
            let mut targets = vec![];
            for (o, info) in ground.float.outputs.iter().enumerate() {
                let target = tape.output(o).to_vec();
                if !target.iter().all(|x| x.is_finite()) {
                    let what = format!("output `{}` of the float network is not finite", info.name);
                    return Err(refuse(what, "check the preprocessing of the images").into());
                }
                targets.push(Tensor::f32(&batched(&ground.facts[&info.name].dims), target));
            }
            let values = targets.iter().map(|t| t.as_f32().unwrap_or_default().to_vec());
            batches.push(Batch { inputs, targets: values.collect() });
            outputs.push(targets);
        }
        let (weightings, start) = (Weighting::of(&outputs), leaves.values.clone());
        Ok(Loss { tape, leaves, start, weights, weightings, batches, threads })
    }

    /// Makes steps small where the loss is steep, so that none drowns the others: in each weight `ε` goes with `1/√(zᵀHz)`, of one
    /// direction on one batch for the weight alone.
    fn level(&mut self, config: &Config) {
        let alone = |loss: &mut Self, w: usize| {
            let size = f64::from(loss.weights[w].size);
            loss.product(config, PILOT, 0, w..w + 1)[0] * size * size
        };
        let steep: Vec<f64> = (0..self.weights.len()).map(|w| alone(self, w)).collect();
        let flattest = steep.iter().copied().filter(|&s| s > 0.0).fold(f64::INFINITY, f64::min);
        for (weight, steep) in self.weights.iter_mut().zip(steep) {
            let share = if steep > 0.0 { (flattest / steep).sqrt() } else { 1.0 };
            weight.size *= share.max(SMALLEST_SHARE) as f32;
        }
    }

    /// An estimate of each trace.
    fn probe(&mut self, config: &Config, probe: u64) -> Vec<f64> {
        let mut sums = vec![0.0; self.weights.len()];
        for batch in 0..self.batches.len() {
            let products = self.product(config, probe, batch, 0..sums.len());
            sums.iter_mut().zip(products).for_each(|(sum, product)| *sum += product);
        }
        sums.iter().map(|sum| sum / self.batches.len() as f64).collect()
    }

    /// `zᵀHz` in each of the weights numbered `weights`, through all of which one direction is laid.
    fn product(&mut self, config: &Config, probe: u64, batch: usize, weights: Range<usize>) -> Vec<f64> {
        let mut random = Random::keyed(&[config.seed, probe, batch as u64]);
        let mut step = vec![0.0; self.start.len()];
        for weight in &self.weights[weights.clone()] {
            for signs in step[weight.range.clone()].chunks_mut(64) {
                let (bits, size) = (random.next_u64(), config.step * weight.size);
                signs.iter_mut().enumerate().for_each(|(i, s)| *s = if bits >> i & 1 == 1 { size } else { -size });
            }
        }
        let [ahead, behind] = [1.0, -1.0].map(|side| self.gradient(batch, &step, side));
        let product = |weight: &Block| {
            let [ahead, behind, step] = [&ahead, &behind, &step].map(|all| &all[weight.range.clone()]);
            let products = ahead.iter().zip(behind).zip(step);
            let sum: f64 = products.map(|((a, b), s)| (f64::from(*a) - f64::from(*b)) * f64::from(*s)).sum();
            sum / (2.0 * f64::from(config.step * weight.size).powi(2))
        };
        self.weights[weights].iter().map(product).collect()
    }

    /// The gradient of the loss on a batch at the float weights plus `side · step`.
    fn gradient(&mut self, batch: usize, step: &[f32], side: f32) -> Vec<f32> {
        let at = self.start.iter().zip(step).map(|(w, s)| w + side * s);
        self.leaves.values.iter_mut().zip(at).for_each(|(value, at)| *value = at);
        let Batch { inputs, targets } = &self.batches[batch];
        let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
        self.tape.forward(&mut self.leaves, &inputs, self.threads);
        let of_output = |(o, weighting): (usize, &Weighting)| weighting.gradient(self.tape.output(o), &targets[o]);
        let outputs: Vec<Vec<f32>> = self.weightings.iter().enumerate().map(of_output).collect();
        let outputs: Vec<&[f32]> = outputs.iter().map(Vec::as_slice).collect();
        let mut gradient = vec![0.0; self.start.len()];
        self.tape.backward(&self.leaves, &inputs, &outputs, &mut gradient, self.threads);
        gradient
    }
}

/// The weights of layers with a grid.
fn blocks(ground: &Ground<'_>, leaves: &Leaves) -> Vec<Block> {
    let mut seen = BTreeSet::new();
    let of_layer = |layer: Layer| {
        let range = leaves.parameter(&layer.weight)?.range.clone();
        let squares: f64 = leaves.values[range.clone()].iter().map(|w| f64::from(*w).powi(2)).sum();
        let size = (squares / range.len().max(1) as f64).sqrt() as f32;
        seen.insert(range.start).then_some(Block {
            name: layer.weight,
            range,
            size: if size > 0.0 { size } else { 1.0 },
        })
    };
    layers(ground.float, ground.placement).into_iter().filter_map(of_layer).collect()
}

#[cfg(test)]
mod tests;
