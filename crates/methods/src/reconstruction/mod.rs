//! Reconstruction: the roundings of a layer or a block learned by gradients, so that its output is that of the float network.
//!
//! What enters: a unit (a part of the walk's block), the draft, and for every sample what the quantized network gives the unit and what
//! the float network makes of it. What leaves: weights on their grids, biases, and scales of activations of fewer than eight bits. The
//! loss is `‖output − target‖²` per position plus AdaRound's regulariser `λ Σ (1 − |2h − 1|^β)`, `β` falling from 20 to 2 after a
//! warm-up. A unit is changed only if samples that were held back come closer.

mod rounding;
mod soft;

use crate::{Draft, Ground, Layer, MethodError, Walk, walk::Side};
use fewbits_graph::{
    Graph, QuantParams, Tensor,
    exec::{Executor, Mode},
    tape::{Config as TapeConfig, Laid, Leaves, Tape, quantizer_leaf},
};
use fewbits_kernels::Threads;
use fewbits_quant::placement::Site;
use fewbits_train::{
    optimizer::{Group, Moments, Optimizer, Rule},
    random::Random,
};
pub(crate) use rounding::{NUMBERS, Rounding};
use soft::Soft;
use std::{ops::Range, sync::Arc};

/// Of how many samples one is held back for judging.
const HELD_BACK: usize = 8;

/// Shares of the steps between which roundings are settled.
const DECIDING: [f64; 2] = [0.3, 0.9];
/// In how many goes, if they took all steps.
const SETTLED_TIMES: usize = 50;

/// How roundings are learned.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Steps for each unit.
    pub iterations: usize,
    /// Samples of a step.
    pub batch: usize,
    /// `λ`, per position of the output.
    pub regularizer: f32,
    /// Share of the steps without it.
    pub warm_up: f64,
    /// Probability that an element of an activation within the unit is not rounded.
    pub drop: f64,
    /// Probability that an element of the unit's input is the float network's. A unit that only ever sees the quantized network's noise
    /// learns to put out less, and less again in the next unit.
    pub mix: f64,
    /// Whether scales of activations of fewer than eight bits are learned.
    pub scales: bool,
    /// Start of the random numbers.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            iterations: 500,
            batch: 16,
            regularizer: 0.01,
            warm_up: 0.2,
            drop: 0.0,
            mix: 0.5,
            scales: false,
            seed: 0,
        }
    }
}

/// A part of the walk's block that is learned at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    /// What it reads.
    pub inputs: Vec<String>,
    /// What should be as in the float network.
    pub outputs: Vec<String>,
    /// Its layers.
    pub layers: Vec<Layer>,
}

/// The data of a unit: by example, inputs of the quantized network and of the float network, and targets.
pub trait Examples: Sync {
    /// How many examples a sample has; they are numbered one behind the other.
    fn per_sample(&self) -> usize {
        1
    }

    /// Inputs of `example` on one side.
    ///
    /// # Errors
    /// Errors of the walk.
    fn inputs(&self, side: Side, example: usize) -> Result<Vec<Arc<Tensor>>, MethodError>;

    /// Float outputs of `example`.
    ///
    /// # Errors
    /// Errors of the walk.
    fn targets(&self, example: usize) -> Result<Vec<Arc<Tensor>>, MethodError>;
}

impl Examples for Walk<'_> {
    fn inputs(&self, side: Side, sample: usize) -> Result<Vec<Arc<Tensor>>, MethodError> {
        Walk::inputs(self, side, sample)
    }

    fn targets(&self, sample: usize) -> Result<Vec<Arc<Tensor>>, MethodError> {
        Walk::targets(self, sample)
    }
}

/// Learns the roundings of `unit`, whose computation is `part`, with `part`'s constants from the draft. Units that the tape cannot compute
/// image by image are left alone.
///
/// # Errors
/// Errors of the walk and of the network.
pub fn learn(
    walk: &Walk<'_>,
    draft: &mut Draft,
    unit: &Unit,
    part: &Graph,
    examples: &dyn Examples,
    config: &Config,
) -> Result<(), MethodError> {
    let is_held = |i: &usize| i / examples.per_sample() % HELD_BACK == HELD_BACK - 1;
    let (held, seen): (Vec<usize>, Vec<usize>) = (0..walk.samples() * examples.per_sample()).partition(is_held);
    if seen.is_empty() {
        return Ok(());
    }
    let Some(mut learner) = Learner::new(walk, draft, unit, part, examples, config, seen.len())? else { return Ok(()) };
    for step in 0..config.iterations {
        learner.settle(step);
        let samples = (0..learner.batch).map(|i| seen[pick(config.seed, step, i, seen.len())]);
        learner.step(examples, &samples.collect::<Vec<_>>(), step, walk.threads())?;
    }
    let learned = learner.finish(walk.ground(), draft);
    let closer = held.is_empty() || {
        let error = |draft: &Draft| error_on(walk, part, draft, examples, &held);
        error(&learned)? < error(draft)?
    };
    if closer {
        *draft = learned;
    }
    Ok(())
}

/// A sample for place `i` of the batch of `step`.
pub(crate) fn pick(seed: u64, step: usize, i: usize, count: usize) -> usize {
    Random::keyed(&[seed, step as u64, i as u64]).below(count)
}

/// Squared error of the unit's outputs over `samples`, as `draft` computes them.
fn error_on(
    walk: &Walk<'_>,
    part: &Graph,
    draft: &Draft,
    examples: &dyn Examples,
    samples: &[usize],
) -> Result<f64, MethodError> {
    let mut part = part.clone();
    for (name, constant) in &mut part.constants {
        if let Some(changed) = draft.graph.constant(name) {
            *constant = changed.clone();
        }
    }
    let mut executor = Executor::new(&part, Mode::FakeQuant(&draft.grids), walk.threads());
    let mut sum = 0.0;
    for &sample in samples {
        let inputs = examples.inputs(Side::Quantized, sample)?.into_iter().map(Arc::unwrap_or_clone);
        let outputs = executor.run(&inputs.collect::<Vec<_>>())?;
        for (output, target) in outputs.iter().zip(examples.targets(sample)?) {
            let pairs = output.as_f32().into_iter().flatten().zip(target.as_f32().into_iter().flatten());
            sum += pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        }
    }
    Ok(sum)
}

/// A layer that is learned.
struct Rounded {
    layer: Layer,
    soft: Soft,
    /// Where its weight is among the leaves.
    range: Range<usize>,
    params: QuantParams,
    dims: Vec<usize>,
}

struct Learner<'a> {
    config: &'a Config,
    /// Samples of a batch.
    batch: usize,
    tape: Tape,
    leaves: Leaves,
    /// As the leaves' values, with `V` in place of weights.
    values: Vec<f32>,
    gradients: Vec<f32>,
    optimizer: Optimizer,
    layers: Vec<Rounded>,
    /// Activations whose scale is learned.
    scales: Vec<String>,
    /// Positions of each output per sample.
    positions: Vec<usize>,
    /// Inputs and targets of a batch.
    given: [Vec<Vec<f32>>; 2],
}

impl<'a> Learner<'a> {
    fn new(
        walk: &Walk<'_>,
        draft: &Draft,
        unit: &Unit,
        part: &Graph,
        examples: &dyn Examples,
        config: &'a Config,
        samples: usize,
    ) -> Result<Option<Self>, MethodError> {
        let ground = walk.ground();
        let shapes: Vec<Vec<usize>> = examples.inputs(Side::Quantized, 0)?.iter().map(|t| t.dims.clone()).collect();
        let one = shapes.first().and_then(|dims| dims.first()).copied().unwrap_or(1);
        let batch = config.batch.min(samples);
        let whole: Vec<Vec<usize>> = shapes.iter().map(|dims| [&[one * batch], &dims[1..]].concat()).collect();
        let mut tape_config = TapeConfig::default();
        let mut scales = Vec::new();
        let made: Vec<&str> = part.nodes.iter().flat_map(|n| n.outputs.iter().map(String::as_str)).collect();
        let images =
            ground.float.inputs.iter().map(|v| v.name.as_str()).filter(|name| unit.inputs.iter().any(|i| i == name));
        for name in made.iter().copied().chain(images) {
            let Some(Site::Activation { .. }) = ground.placement.sites.get(name) else { continue };
            let (Some(params), Some(fact)) = (draft.grids.params(name), ground.facts.get(name)) else { continue };
            let inner = !unit.outputs.iter().any(|o| o == name) && !unit.inputs.iter().any(|i| i == name);
            let drop = if inner { config.drop } else { 0.0 };
            let Some(rounding) = Rounding::new(params, fact.len() * batch, drop) else { continue };
            tape_config.quantizers.insert(name.into(), Laid { quantizer: Arc::new(rounding), groups: 1, axis: 0 });
            if config.scales && params.grid.bits < 8 && !unit.inputs.iter().any(|i| i == name) {
                scales.push(name.to_string());
            }
        }
        let mut leaves = Leaves::new(part, &tape_config.quantizers);
        for name in tape_config.quantizers.keys() {
            let scale = draft.grids.params(name).map_or(1.0, |p| p.scale[0]);
            if let Some(numbers) = leaves.get_mut(&quantizer_leaf(name)) {
                numbers.copy_from_slice(&[scale, 0.0]);
            }
        }
        let Ok(tape) = Tape::compile(part, &leaves, &whole, &tape_config) else { return Ok(None) };
        let (mut values, mut layers, mut groups) = (leaves.values.clone(), Vec::new(), Vec::new());
        // Fewer steps must each go further.
        let pace = (1000.0 / config.iterations.max(1) as f32).clamp(0.1, 10.0);
        for layer in &unit.layers {
            let (Some(leaf), Some(params)) = (leaves.parameter(&layer.weight), draft.grids.params(&layer.weight))
            else {
                continue;
            };
            let wanted = ground.float.constant(&layer.weight).and_then(|t| t.as_f32());
            let current = draft.graph.constant(&layer.weight).and_then(|t| t.as_f32());
            let (Some(wanted), Some(current)) = (wanted, current) else { continue };
            let inner: usize = leaf.dims[layer.axis + 1..].iter().product();
            let scale =
                |i: usize| params.scale[if params.scale.len() == 1 { 0 } else { i / inner % params.scale.len() }];
            let bounds = [params.grid.qmin() as f32, params.grid.qmax() as f32];
            let (soft, start) = Soft::new(wanted, current, (0..wanted.len()).map(scale).collect(), bounds);
            values[leaf.range.clone()].copy_from_slice(&start);
            groups.push(Group { range: leaf.range.clone(), learning_rate: 0.01 * pace, weight_decay: 0.0 });
            layers.push(Rounded {
                layer: layer.clone(),
                soft,
                range: leaf.range.clone(),
                params: params.clone(),
                dims: leaf.dims.clone(),
            });
            if let Some(bias) = layer.bias.as_ref().and_then(|name| leaves.parameter(name)) {
                let size =
                    values[bias.range.clone()].iter().map(|b| b.abs()).sum::<f32>() / bias.range.len().max(1) as f32;
                let learning_rate = 1e-3 * pace * size.max(1e-3);
                groups.push(Group { range: bias.range.clone(), learning_rate, weight_decay: 0.0 });
            }
        }
        for name in &scales {
            if let Some(leaf) = leaves.parameter(&quantizer_leaf(name)) {
                let range = leaf.range.start..leaf.range.start + 1;
                let learning_rate = 1e-3 * pace * leaves.values[range.start];
                groups.push(Group { range, learning_rate, weight_decay: 0.0 });
            }
        }
        let count = values.len();
        let positions = |target: &Arc<Tensor>| target.dims.iter().skip(2).product::<usize>().max(1);
        Ok(Some(Learner {
            config,
            batch,
            tape,
            optimizer: Optimizer::new(Rule::Adam(Moments::default()), groups, count),
            gradients: vec![0.0; count],
            values,
            leaves,
            layers,
            scales,
            positions: examples.targets(0)?.iter().map(positions).collect(),
            given: [const { vec![] }; 2],
        }))
    }

    /// From [`DECIDING`] of the steps on, more and more roundings are settled, those first that lean most to one side.
    fn settle(&mut self, step: usize) {
        let progress = step as f64 / self.config.iterations as f64;
        let every = (self.config.iterations / SETTLED_TIMES).max(1);
        if progress < DECIDING[0] || !step.is_multiple_of(every) {
            return;
        }
        let share = ((progress - DECIDING[0]) / (DECIDING[1] - DECIDING[0])).min(1.0);
        for layer in &self.layers {
            Soft::decide(&mut self.values[layer.range.clone()], share);
        }
    }

    fn step(
        &mut self,
        examples: &dyn Examples,
        samples: &[usize],
        step: usize,
        threads: &Threads,
    ) -> Result<(), MethodError> {
        let mut given = std::mem::take(&mut self.given);
        given.iter_mut().flatten().for_each(Vec::clear);
        let [inputs, targets] = &mut given;
        // Reading and mixing would take as long as learning.
        let given_to = |place: usize| self.given_to(examples, samples[place], step * self.batch + place);
        for example in threads.map(samples.len(), given_to) {
            let [own, wanted] = example?;
            append(inputs, &own);
            append(targets, &wanted);
        }
        self.leaves.values.copy_from_slice(&self.values);
        for layer in &mut self.layers {
            layer.soft.weights(
                &self.values[layer.range.clone()],
                &mut self.leaves.values[layer.range.clone()],
                threads,
            );
        }
        let drawn = Random::keyed(&[self.config.seed, step as u64]).uniform() as f32;
        for leaf in self.leaves.parameters.iter().filter(|l| l.name.ends_with(".quantizer")) {
            self.leaves.values[leaf.range.start + NUMBERS - 1] = drawn;
        }
        let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
        self.tape.forward(&mut self.leaves, &inputs, threads);
        let gradient = |(i, target): (usize, &Vec<f32>)| -> Vec<f32> {
            let factor = 2.0 / (self.batch * self.positions[i]) as f32;
            self.tape.output(i).iter().zip(target).map(|(a, b)| factor * (a - b)).collect()
        };
        let gradients: Vec<Vec<f32>> = targets.iter().enumerate().map(gradient).collect();
        let gradients: Vec<&[f32]> = gradients.iter().map(Vec::as_slice).collect();
        self.tape.backward(&self.leaves, &inputs, &gradients, &mut self.gradients, threads);
        let progress = step as f64 / self.config.iterations as f64;
        let regularizer = (progress >= self.config.warm_up).then(|| {
            let share = (progress - self.config.warm_up) / (1.0 - self.config.warm_up);
            (self.config.regularizer, (20.0 - 18.0 * share) as f32)
        });
        for layer in &self.layers {
            let range = layer.range.clone();
            layer.soft.chain(regularizer, &mut self.gradients[range], threads);
        }
        self.optimizer.step(1.0, &mut self.values, &self.gradients);
        for name in &self.scales {
            if let Some(leaf) = self.leaves.parameter(&quantizer_leaf(name)) {
                let scale = &mut self.values[leaf.range.start];
                *scale = scale.max(f32::MIN_POSITIVE);
            }
        }
        self.given = given;
        Ok(())
    }

    /// Inputs and targets of `sample`, the inputs' elements with the probability `mix` the float network's.
    fn given_to(
        &self,
        examples: &dyn Examples,
        sample: usize,
        place: usize,
    ) -> Result<[Vec<Arc<Tensor>>; 2], MethodError> {
        let mut inputs = examples.inputs(Side::Quantized, sample)?;
        if self.config.mix > 0.0 {
            let limit = (self.config.mix * 2f64.powi(32)).min(f64::from(u32::MAX)) as u32;
            let key = Random::keyed(&[self.config.seed, place as u64]).next_u64() as u32;
            for (own, float) in inputs.iter_mut().zip(examples.inputs(Side::Float, sample)?) {
                let (Some(quantized), Some(float)) = (own.as_f32(), float.as_f32()) else { continue };
                let pick = |(i, (own, float)): (usize, (&f32, &f32))| {
                    if scrambled(key ^ i as u32) < limit { *float } else { *own }
                };
                let mixed = quantized.iter().zip(float).enumerate().map(pick).collect();
                *own = Arc::new(Tensor::f32(&own.dims, mixed));
            }
        }
        Ok([inputs, examples.targets(sample)?])
    }

    /// The draft with what was learned.
    fn finish(self, ground: Ground<'_>, draft: &Draft) -> Draft {
        let mut learned = draft.clone();
        for Rounded { layer, soft, range, params, dims } in &self.layers {
            learned.set_constant(&layer.weight, Tensor::f32(dims, soft.rounded(&self.values[range.clone()])));
            learned.set_params(&layer.weight, params.clone());
            if let Some(leaf) = layer.bias.as_ref().and_then(|name| self.leaves.parameter(name)) {
                learned.set_constant(&leaf.name, Tensor::f32(&leaf.dims, self.values[leaf.range.clone()].to_vec()));
            }
        }
        for name in &self.scales {
            let leaf = self.leaves.parameter(&quantizer_leaf(name));
            if let (Some(leaf), Some(params)) = (leaf, draft.grids.params(name)) {
                learned.set_scale(&ground, name, self.values[leaf.range.start].min(params.scale[0] * 1.5));
            }
        }
        learned
    }
}

/// The bits of `x` spread over all bits of the result (the finalizer of MurmurHash3, Appleby 2011): cheaper for a whole tensor than a
/// generator, since elements do not wait for each other.
#[inline]
fn scrambled(mut x: u32) -> u32 {
    x = (x ^ x >> 16).wrapping_mul(0x85eb_ca6b);
    x = (x ^ x >> 13).wrapping_mul(0xc2b2_ae35);
    x ^ x >> 16
}

/// Appends each tensor's elements to a vector of its own.
fn append(to: &mut Vec<Vec<f32>>, tensors: &[Arc<Tensor>]) {
    to.resize(tensors.len(), vec![]);
    to.iter_mut().zip(tensors).for_each(|(to, tensor)| to.extend_from_slice(tensor.as_f32().unwrap_or_default()));
}

#[cfg(test)]
mod tests;
