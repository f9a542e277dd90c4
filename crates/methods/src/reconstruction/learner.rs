//! The steps: a unit on the tape, soft roundings in place of its weights, and the batches it learns from.

use super::{Config, Examples, NUMBERS, Rounding, Unit, outliers, soft::Soft};
use crate::{Draft, Ground, Layer, MethodError, Walk, walk::Side};
use fewbits_graph::{
    Graph, QuantParams, Tensor,
    tape::{Config as TapeConfig, Laid, Leaves, Tape, quantizer_leaf},
};
use fewbits_kernels::{Threads, mix::mix};
use fewbits_quant::placement::Site;
use fewbits_train::{
    optimizer::{Group, Moments, Optimizer, Rule},
    random::Random,
};
use std::{ops::Range, sync::Arc};

/// Shares of the steps between which roundings are settled.
const DECIDING: [f64; 2] = [0.3, 0.9];
/// To what share of itself the rate falls, along a cosine.
const LEAST_RATE: f64 = 0.05;
/// Most that a scale of activations may grow by: on a few hundred samples a larger one looks better than it is.
const MOST_GROWTH: f32 = 1.5;
/// In how many goes, if they took all steps.
const SETTLED_TIMES: usize = 50;

/// A layer that is learned.
struct Rounded {
    layer: Layer,
    soft: Soft,
    /// Where its weight is among the leaves.
    range: Range<usize>,
    params: QuantParams,
    dims: Vec<usize>,
}

pub(super) struct Learner<'a> {
    config: &'a Config,
    /// Steps in all.
    pub steps: usize,
    /// Samples of a batch.
    pub batch: usize,
    /// Images of a sample.
    one: usize,
    tape: Tape,
    leaves: Leaves,
    /// As the leaves' values, with `V` in place of weights.
    values: Vec<f32>,
    gradients: Vec<f32>,
    optimizer: Optimizer,
    layers: Vec<Rounded>,
    /// Activations whose scale is learned, and the largest that it may become.
    scales: Vec<(String, f32)>,
    /// Positions of each output per sample.
    positions: Vec<usize>,
    /// [`Unit::importance`].
    importance: Vec<Vec<f32>>,
    /// Inputs of a batch.
    inputs: Vec<Vec<f32>>,
    /// Its targets.
    targets: Vec<Vec<f32>>,
}

impl<'a> Learner<'a> {
    pub fn new(
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
        // A run of a network with a fixed batch is many images.
        let batch = (config.batch / one.max(1)).clamp(1, samples.max(1));
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
                scales.push((name.to_string(), MOST_GROWTH * params.scale[0]));
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
            groups.push(Group { range: leaf.range.clone(), learning_rate: 0.01, weight_decay: 0.0 });
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
                let learning_rate = 1e-3 * size.max(1e-3);
                groups.push(Group { range: bias.range.clone(), learning_rate, weight_decay: 0.0 });
            }
        }
        for (name, _) in &scales {
            if let Some(leaf) = leaves.parameter(&quantizer_leaf(name)) {
                let range = leaf.range.start..leaf.range.start + 1;
                let learning_rate = 1e-3 * leaves.values[range.start];
                groups.push(Group { range, learning_rate, weight_decay: 0.0 });
            }
        }
        let count = values.len();
        Ok(Some(Learner {
            config,
            steps: config.iterations.max(1),
            batch,
            one,
            tape,
            optimizer: Optimizer::new(Rule::Adam(Moments::default()), groups, count),
            gradients: vec![0.0; count],
            values,
            leaves,
            layers,
            scales,
            positions: examples.targets(0)?.iter().map(|target| outliers::positions(target)).collect(),
            importance: unit.importance.clone(),
            inputs: vec![],
            targets: vec![],
        }))
    }

    /// From [`DECIDING`] of the steps on, more and more roundings are settled, those first that lean most to one side.
    pub fn settle(&mut self, step: usize) {
        let progress = step as f64 / self.steps as f64;
        let every = (self.steps / SETTLED_TIMES).max(1);
        if progress < DECIDING[0] || !step.is_multiple_of(every) {
            return;
        }
        let share = ((progress - DECIDING[0]) / (DECIDING[1] - DECIDING[0])).min(1.0);
        for layer in &self.layers {
            Soft::decide(&mut self.values[layer.range.clone()], share);
        }
    }

    pub fn step(
        &mut self,
        examples: &dyn Examples,
        samples: &[usize],
        step: usize,
        threads: &Threads,
    ) -> Result<(), MethodError> {
        self.read(examples, samples, step, threads)?;
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
        let inputs: Vec<&[f32]> = self.inputs.iter().map(Vec::as_slice).collect();
        self.tape.forward(&mut self.leaves, &inputs, threads);
        // Targets turn into gradients.
        for (i, target) in self.targets.iter_mut().enumerate() {
            let factor = 2.0 / (self.batch * self.one * self.positions[i]) as f32;
            let (image, positions) = ((target.len() / (self.batch * self.one)).max(1), self.positions[i]);
            let importance = self.importance.get(i).map_or(&[][..], Vec::as_slice);
            threads.each(target.chunks_mut(image).zip(self.tape.output(i).chunks(image)), |(target, output)| {
                let counts = outliers::counts(target, positions, importance);
                let pairs = target.iter_mut().zip(output).zip(counts.iter().cycle());
                pairs.for_each(|((b, a), counts)| *b = factor * counts * (a - *b));
            });
        }
        let gradients: Vec<&[f32]> = self.targets.iter().map(Vec::as_slice).collect();
        self.tape.backward(&self.leaves, &inputs, &gradients, &mut self.gradients, threads);
        let progress = step as f64 / self.steps as f64;
        let regularizer = (progress >= self.config.warm_up).then(|| {
            let share = (progress - self.config.warm_up) / (1.0 - self.config.warm_up);
            (20.0 - 18.0 * share) as f32
        });
        for layer in &self.layers {
            let range = layer.range.clone();
            let regularizer =
                regularizer.map(|beta| (self.config.regularizer * weakened(layer.params.grid.bits), beta));
            layer.soft.chain(regularizer, &mut self.gradients[range], threads);
        }
        let rate = LEAST_RATE + (1.0 - LEAST_RATE) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        // Fewer steps must each go further.
        let pace = (1000.0 / self.steps as f64).clamp(0.1, 10.0);
        self.optimizer.step((pace * rate) as f32, &mut self.values, &self.gradients, threads);
        for (name, largest) in &self.scales {
            if let Some(leaf) = self.leaves.parameter(&quantizer_leaf(name)) {
                let scale = &mut self.values[leaf.range.start];
                *scale = scale.min(*largest).max(f32::MIN_POSITIVE);
            }
        }
        Ok(())
    }

    /// Makes inputs and targets those of `samples`, elements of the inputs with the probability `mix` the float network's. To read and mix
    /// on one thread would take as long as to learn.
    fn read(
        &mut self,
        examples: &dyn Examples,
        samples: &[usize],
        step: usize,
        threads: &Threads,
    ) -> Result<(), MethodError> {
        let mixes = self.config.mix > 0.0;
        let read = |place: usize| -> Result<[Vec<Arc<Tensor>>; 3], MethodError> {
            let inputs = |side| examples.inputs(side, samples[place]);
            let float = if mixes { inputs(Side::Float)? } else { vec![] };
            Ok([inputs(Side::Quantized)?, float, examples.targets(samples[place])?])
        };
        let read: Vec<_> = threads.map(samples.len(), read).into_iter().collect::<Result<_, _>>()?;
        let all = |what: usize, k: usize| -> Vec<&[f32]> {
            read.iter().map(|place| place[what].get(k).and_then(|t| t.as_f32()).unwrap_or_default()).collect()
        };
        let count = |what: usize| read.first().map_or(0, |place| place[what].len());
        let share = (self.config.mix * 2f64.powi(32)).min(f64::from(u32::MAX)) as u32;
        let key =
            |place: usize| Random::keyed(&[self.config.seed, (step * self.batch + place) as u64]).next_u64() as u32;
        self.inputs.resize(count(0), vec![]);
        for (k, inputs) in self.inputs.iter_mut().enumerate() {
            let (quantized, float) = (all(0, k), all(1, k));
            let places = quantized.into_iter().zip(float).enumerate();
            threads.each(rows(inputs, &all(0, k)).zip(places), |(row, (place, (quantized, float)))| match mixes {
                true if float.len() == row.len() => mix(quantized, float, key(place), share, row),
                _ => row.copy_from_slice(quantized),
            });
        }
        self.targets.resize(count(2), vec![]);
        for (k, targets) in self.targets.iter_mut().enumerate() {
            let wanted = all(2, k);
            threads.each(rows(targets, &wanted).zip(&wanted), |(row, wanted)| row.copy_from_slice(wanted));
        }
        Ok(())
    }

    /// The draft with what was learned.
    pub fn finish(self, ground: Ground<'_>, draft: &Draft) -> Draft {
        let mut learned = draft.clone();
        for Rounded { layer, soft, range, params, dims } in &self.layers {
            learned.set_constant(&layer.weight, Tensor::f32(dims, soft.rounded(&self.values[range.clone()])));
            learned.set_params(&layer.weight, params.clone());
            if let Some(leaf) = layer.bias.as_ref().and_then(|name| self.leaves.parameter(name)) {
                learned.set_constant(&leaf.name, Tensor::f32(&leaf.dims, self.values[leaf.range.clone()].to_vec()));
            }
        }
        for (name, _) in &self.scales {
            if let Some(leaf) = self.leaves.parameter(&quantizer_leaf(name)) {
                learned.set_scale(&ground, name, self.values[leaf.range.start]);
            }
        }
        learned
    }
}

/// What is left of the regulariser, which is made for four bits, where steps are finer: with each bit more, what roundings do to the
/// output falls to a quarter, and beside a regulariser of the same strength it would not count.
fn weakened(bits: u8) -> f32 {
    0.25f32.powi(i32::from(bits.max(4)) - 4)
}

/// `buffer` in as many rows, of their lengths.
fn rows<'b>(buffer: &'b mut Vec<f32>, of: &[&[f32]]) -> impl Iterator<Item = &'b mut [f32]> {
    buffer.resize(of.iter().map(|row| row.len()).sum(), 0.0);
    let lengths: Vec<usize> = of.iter().map(|row| row.len()).collect();
    let mut rest = buffer.as_mut_slice();
    lengths.into_iter().map(move |len| rest.split_off_mut(..len).unwrap_or_default())
}
