//! E2E-QP: scales and biases of the whole network learned together, against the float network's outputs. Codes stay.
//!
//! # What it does
//! With all codes fixed, the scale of each weight (of each output channel, if there are several), each bias and each activation's scale
//! is learned by gradients, so that the outputs come close to the float network's: for classifiers the Kullback-Leibler divergence of the
//! classes, else the squared error by channel in units of the channel's variance. No labels are needed. What every block puts out should come
//! close too, far larger positions less so: some hundred samples say little by a class each, and much by all of their features.
//!
//! # When it helps
//! After methods that work layer by layer or block by block: errors that add up from block to block, gains and means that drift, are
//! put right. There are few numbers to learn, so that a few hundred samples do, mirrored and laid over one another.
//!
//! # When it fails
//! Networks that mix the images of a batch are left alone.
//!
//! # Cost
//! Forward and back through the network for `steps · batch` samples, and its activations in memory for one batch, or what its blocks put out
//! for eight samples. Under a deadline there are as many steps as the first ones let expect, and what is learned until then stays.
//!
//! # Config
//! [`Config`].
//!
//! # Source
//! Chen et al., "EfficientQAT: Efficient Quantization-Aware Training" (2024), §3.3; biases as in Finkelstein et al., "Fighting
//! Quantization Bias With Bias" (2019); features as in Romero et al., "FitNets: Hints for Thin Deep Nets" (ICLR 2015).
//!
//! # Departures
//! Convolutional networks; symmetric scales; activations' scales and biases are learned too; the float network is the teacher.

use crate::{
    Draft, Ground, Layer, MethodError, Outputs, Progress, Samples, Weighting, layers,
    reconstruction::{Rounding, outliers, pick},
    samples::mirror,
    walk::blocks,
};
use fewbits_graph::{
    DType, Graph, Tensor, ValueInfo,
    exec::{Executor, Mode, rounded_constant},
    tape::{Config as TapeConfig, Laid, Leaves, Tape, quantizer_leaf},
};
use fewbits_kernels::Threads;
use fewbits_quant::placement::Site;
use fewbits_train::optimizer::{Group, Moments, Optimizer, Rule};
use std::{ops::Range, sync::Arc, time::Instant};

/// Samples from which the variances of features are taken, and the least of a channel, relative to the mean.
const VARIANCE_SAMPLES: usize = 8;
const LEAST_VARIANCE: f64 = 1e-3;
/// Steps whose time says how many there can be.
const TIMED_STEPS: usize = 3;

/// How scales and biases are learned.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Steps.
    pub steps: usize,
    /// Samples of a step.
    pub batch: usize,
    /// Largest change of a scale in one step, relative to it; it falls to 0 along a cosine.
    pub rate: f32,
    /// What the features between blocks count together, where an output counts 1.
    pub hints: f32,
    /// Start of the random numbers.
    pub seed: u64,
    /// When learning is over, if the steps would take longer.
    pub deadline: Option<Instant>,
}

impl Default for Config {
    fn default() -> Self {
        Config { steps: 200, batch: 8, rate: 1e-3, hints: 10.0, seed: 0, deadline: None }
    }
}

/// Learns scales and biases of `draft`. Returns whether it could.
///
/// # Errors
/// Errors of the samples and of the network.
pub fn tune(
    ground: Ground<'_>,
    draft: &mut Draft,
    samples: &dyn Samples,
    config: &Config,
    threads: &Threads,
    progress: &dyn Progress,
) -> Result<bool, MethodError> {
    // Only weights on their grid have codes.
    for layer in layers(ground.float, ground.placement) {
        if let Some(weight) = draft.graph.constant(&layer.weight) {
            let rounded = rounded_constant(&layer.weight, weight, &draft.grids);
            draft.graph.constants.insert(layer.weight, rounded);
        }
    }
    let hints = features(&ground);
    let [teacher, learner] = [ground.float, &draft.graph].map(|graph| {
        let outputs = [&graph.outputs[..], &hints].concat();
        Graph { outputs, ..graph.clone() }
    });
    let learner = Draft { graph: learner, grids: draft.grids.clone() };
    let Some(mut tuner) = Tuner::new(ground, &learner, samples, config)? else { return Ok(false) };
    progress.begin("e2e-qp", config.steps);
    let outputs = ground.float.outputs.len();
    let seen = |graph: &Graph, every: usize| -> Result<Outputs, MethodError> {
        let (mut float, mut seen) = (Executor::new(graph, Mode::Float, threads), Outputs::default());
        for i in (0..samples.count()).step_by(every.max(1)) {
            seen.add(&float.run(&read(samples, i)?)?);
        }
        Ok(seen)
    };
    let mut weights: Vec<_> = seen(ground.float, 1)?.weightings().into_iter().map(|w| (w, 1.0)).collect();
    let features = seen(&teacher, samples.count().div_ceil(VARIANCE_SAMPLES))?;
    let of_feature = |o: usize| (features.squares(o, LEAST_VARIANCE), config.hints / hints.len() as f32);
    weights.extend((outputs..outputs + hints.len()).map(of_feature));
    let mut float = Executor::new(&teacher, Mode::Float, threads);
    let (begun, mut step, mut steps) = (Instant::now(), 0, config.steps);
    while step < steps && config.deadline.is_none_or(|deadline| Instant::now() < deadline) {
        let mut batch = Vec::new();
        // Images are decoded side by side.
        let first = step * tuner.batch;
        for inputs in threads.map(tuner.batch, |place| varied(samples, config.seed, first + place)) {
            let inputs = inputs?;
            let targets = float.run(&inputs)?;
            batch.push((inputs, targets));
        }
        tuner.step(&batch, &weights, step as f32 / steps as f32, threads);
        progress.step();
        step += 1;
        if let (TIMED_STEPS, Some(deadline)) = (step, config.deadline) {
            let left = deadline.saturating_duration_since(Instant::now()).as_secs_f64();
            steps = steps.min(step + (left / begun.elapsed().as_secs_f64() * step as f64) as usize);
        }
    }
    progress.end();
    tuner.finish(ground, draft);
    Ok(true)
}

/// What leads from one block to the next.
fn features(ground: &Ground<'_>) -> Vec<ValueInfo> {
    let mut names: Vec<String> = blocks(ground).into_iter().flat_map(|block| block.outputs).collect();
    names.retain(|name| !ground.float.is_output(name));
    names.into_iter().map(|name| ValueInfo { name, dtype: DType::F32, dims: None }).collect()
}

/// One batch of tensors with an image each.
fn joined<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Vec<f32> {
    tensors.map(|tensor| tensor.as_f32().unwrap_or_default()).collect::<Vec<_>>().concat()
}

fn read(samples: &dyn Samples, i: usize) -> Result<Vec<Tensor>, MethodError> {
    samples.inputs(i).map_err(|source| MethodError::Sample { sample: i, source })
}

/// A sample nobody has seen: one of the samples, mirrored or not, in part overlaid by another. The float network says what is right for
/// it, so that labels and likeness do not matter (as in "knowledge distillation: a good teacher is patient and consistent", Beyer et al.
/// 2022).
fn varied(samples: &dyn Samples, seed: u64, number: usize) -> Result<Vec<Tensor>, MethodError> {
    let draw = |what: usize, limit: usize| pick(seed, number, what, limit);
    let count = samples.count();
    let (mut own, other) = (read(samples, draw(0, count))?, read(samples, draw(1, count))?);
    let share = if draw(2, 2) == 0 { 1.0 } else { 0.5 + draw(3, 500) as f32 / 1000.0 };
    for (i, (own, other)) in own.iter_mut().zip(&other).enumerate() {
        let (Some(a), Some(b)) = (own.as_f32(), other.as_f32()) else { continue };
        let mixed = Tensor::f32(&own.dims, a.iter().zip(b).map(|(a, b)| share * a + (1.0 - share) * b).collect());
        *own = if draw(4 + i, 2) == 0 { mirror(&mixed) } else { mixed };
    }
    Ok(own)
}

/// The weight of a layer, whose scales are learned as factors of what they were.
struct Scaled {
    layer: Layer,
    /// Where the weight is among the leaves.
    weight: Range<usize>,
    /// Where its factors are among what is learned.
    factors: Range<usize>,
    /// Elements that share a factor before the next one's begin.
    inner: usize,
}

struct Tuner {
    batch: usize,
    /// Of the network; what the tape puts out behind them are features.
    outputs: usize,
    tape: Tape,
    leaves: Leaves,
    /// The leaves' values as they were.
    start: Vec<f32>,
    gradients: Vec<f32>,
    layers: Vec<Scaled>,
    /// Biases: range among the leaves, and among what is learned.
    biases: Vec<(String, [Range<usize>; 2])>,
    /// Scales of activations: position among the leaves, and of the factor among what is learned.
    activations: Vec<(String, [usize; 2])>,
    /// Factors and biases.
    learned: Vec<f32>,
    optimizer: Optimizer,
    config: Config,
}

impl Tuner {
    fn new(
        ground: Ground<'_>,
        draft: &Draft,
        samples: &dyn Samples,
        config: &Config,
    ) -> Result<Option<Self>, MethodError> {
        let shapes: Vec<Vec<usize>> = read(samples, 0)?.into_iter().map(|t| t.dims).collect();
        let one = shapes.first().and_then(|dims| dims.first()).copied().unwrap_or(1);
        // A run of a network with a fixed batch is many images.
        let batch = (config.batch / one.max(1)).clamp(1, samples.count().max(1));
        let whole: Vec<Vec<usize>> = shapes.iter().map(|dims| [&[one * batch], &dims[1..]].concat()).collect();
        let mut tape_config = TapeConfig::default();
        for (name, site) in &ground.placement.sites {
            let (Site::Activation { .. }, Some(params)) = (site, draft.grids.params(name)) else { continue };
            let elements = ground.facts.get(name).map_or(1, |fact| fact.len()) * batch;
            if draft.graph.constant(name).is_none()
                && let Some(rounding) = Rounding::new(params, elements, 0.0)
            {
                tape_config.quantizers.insert(name.clone(), Laid { quantizer: Arc::new(rounding), groups: 1, axis: 0 });
            }
        }
        let mut leaves = Leaves::new(&draft.graph, &tape_config.quantizers);
        let (mut learned, mut groups) = (Vec::new(), Vec::new());
        let mut learn = |values: &[f32], learning_rate: f32| {
            let range = learned.len()..learned.len() + values.len();
            learned.extend_from_slice(values);
            groups.push(Group { range: range.clone(), learning_rate, weight_decay: 0.0 });
            range
        };
        let mut activations = Vec::new();
        for name in tape_config.quantizers.keys() {
            let (Some(params), Some(leaf)) =
                (draft.grids.params(name), leaves.parameter(&quantizer_leaf(name)).cloned())
            else {
                continue;
            };
            leaves.values[leaf.range.clone()].copy_from_slice(&[params.scale[0], 0.0]);
            if params.grid.bits < 8 {
                activations.push((name.clone(), [leaf.range.start, learn(&[1.0], 1.0).start]));
            }
        }
        let Ok(tape) = Tape::compile(&draft.graph, &leaves, &whole, &tape_config) else { return Ok(None) };
        let (mut scaled, mut biases) = (Vec::new(), Vec::new());
        for layer in layers(ground.float, ground.placement) {
            let (Some(leaf), Some(params)) = (leaves.parameter(&layer.weight), draft.grids.params(&layer.weight))
            else {
                continue;
            };
            scaled.push(Scaled {
                weight: leaf.range.clone(),
                factors: learn(&vec![1.0; params.scale.len()], 1.0),
                inner: leaf.dims[if params.scale.len() == 1 { 0 } else { layer.axis + 1 }..]
                    .iter()
                    .product::<usize>()
                    .max(1),
                layer: layer.clone(),
            });
            if let Some(leaf) = layer.bias.as_ref().and_then(|name| leaves.parameter(name)) {
                let values = &leaves.values[leaf.range.clone()];
                let size = values.iter().map(|b| b.abs()).sum::<f32>() / values.len().max(1) as f32;
                biases.push((leaf.name.clone(), [leaf.range.clone(), learn(values, size.max(1e-3))]));
            }
        }
        let count = learned.len();
        Ok(Some(Tuner {
            batch,
            outputs: ground.float.outputs.len(),
            tape,
            start: leaves.values.clone(),
            gradients: vec![0.0; leaves.values.len()],
            leaves,
            layers: scaled,
            biases,
            activations,
            learned,
            optimizer: Optimizer::new(Rule::Adam(Moments::default()), groups, count),
            config: config.clone(),
        }))
    }

    /// Puts what is learned into the leaves.
    fn lay(&mut self) {
        for layer in &self.layers {
            let values = self.leaves.values[layer.weight.clone()].chunks_mut(layer.inner);
            let start = self.start[layer.weight.clone()].chunks(layer.inner);
            for ((values, start), factor) in values.zip(start).zip(self.learned[layer.factors.clone()].iter().cycle()) {
                values.iter_mut().zip(start).for_each(|(value, start)| *value = start * factor);
            }
        }
        for (_, [leaf, own]) in &self.biases {
            self.leaves.values[leaf.clone()].copy_from_slice(&self.learned[own.clone()]);
        }
        for (_, [leaf, own]) in &self.activations {
            self.leaves.values[*leaf] = self.start[*leaf] * self.learned[*own];
        }
    }

    /// A step on samples with what the float network makes of them, when a share `progress` of all steps is done. `weights`: of each output,
    /// and what it counts.
    fn step(
        &mut self,
        batch: &[(Vec<Tensor>, Vec<Tensor>)],
        weights: &[(Weighting, f32)],
        progress: f32,
        threads: &Threads,
    ) {
        let all = |k: usize| joined(batch.iter().map(|(inputs, _)| &inputs[k]));
        let wanted = |o: usize| joined(batch.iter().map(|(_, targets)| &targets[o]));
        self.lay();
        let inputs: Vec<Vec<f32>> = (0..batch[0].0.len()).map(all).collect();
        let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
        self.tape.forward(&mut self.leaves, &inputs, threads);
        let gradient = |o: usize| {
            let (weighting, counts) = &weights[o];
            let wanted = wanted(o);
            let mut gradient = weighting.gradient(self.tape.output(o), &wanted);
            gradient.iter_mut().for_each(|g| *g *= counts);
            if o >= self.outputs {
                let one = &batch[0].1[o];
                let image = one.dims.iter().skip(1).product();
                outliers::damp(&mut gradient, &wanted, image, outliers::positions(one));
            }
            gradient
        };
        let outputs: Vec<Vec<f32>> = threads.map(weights.len(), gradient);
        let outputs: Vec<&[f32]> = outputs.iter().map(Vec::as_slice).collect();
        self.tape.backward(&self.leaves, &inputs, &outputs, &mut self.gradients, threads);
        let mut gradients = vec![0.0; self.learned.len()];
        for layer in &self.layers {
            let [start, back] = [&self.start, &self.gradients].map(|all| all[layer.weight.clone()].chunks(layer.inner));
            for ((start, back), factor) in start.zip(back).zip(layer.factors.clone().cycle()) {
                gradients[factor] += start.iter().zip(back).map(|(w, g)| w * g).sum::<f32>();
            }
        }
        for (_, [leaf, own]) in &self.biases {
            gradients[own.clone()].copy_from_slice(&self.gradients[leaf.clone()]);
        }
        for (_, [leaf, own]) in &self.activations {
            gradients[*own] = self.start[*leaf] * self.gradients[*leaf];
        }
        let rate = 0.5 * self.config.rate * (1.0 + (std::f32::consts::PI * progress).cos());
        self.optimizer.step(rate, &mut self.learned, &gradients, threads);
        let factors = self.layers.iter().flat_map(|l| l.factors.clone());
        let all: Vec<usize> = factors.chain(self.activations.iter().map(|(_, [_, own])| *own)).collect();
        all.into_iter().for_each(|i| self.learned[i] = self.learned[i].clamp(0.5, 2.0));
    }

    fn finish(mut self, ground: Ground<'_>, draft: &mut Draft) {
        self.lay();
        for layer in &self.layers {
            let Some(mut params) = draft.grids.params(&layer.layer.weight).cloned() else { continue };
            params.scale.iter_mut().zip(&self.learned[layer.factors.clone()]).for_each(|(s, f)| *s *= f);
            let Some(old) = draft.graph.constant(&layer.layer.weight).cloned() else { continue };
            let before = draft.grids.params(&layer.layer.weight).map(|p| p.scale.clone()).unwrap_or_default();
            let code = |i: usize| {
                let c = i / layer.inner % params.scale.len();
                (old.as_f32().map_or(0.0, |w| w[i]) / before[c]).round_ties_even() * params.scale[c]
            };
            draft.set_constant(&layer.layer.weight, Tensor::f32(&old.dims, (0..old.len()).map(code).collect()));
            draft.set_params(&layer.layer.weight, params);
        }
        for (name, [leaf, _]) in &self.biases {
            let Some(dims) = draft.graph.constant(name).map(|t| t.dims.clone()) else { continue };
            draft.set_constant(name, Tensor::f32(&dims, self.leaves.values[leaf.clone()].to_vec()));
        }
        for (name, [leaf, _]) in &self.activations {
            draft.set_scale(&ground, name, self.leaves.values[*leaf]);
        }
    }
}

#[cfg(test)]
mod tests;
