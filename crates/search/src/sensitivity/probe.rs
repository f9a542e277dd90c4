//! One layer at each width: from its block on, the network is computed again.
//!
//! A walk that stands before the layer's block enters, damages leave.

use super::{
    Config, LayerDamage, Level,
    cut::{self, Cut},
    describe, weight,
};
use crate::{SearchError, whole};
use fewbits_graph::{
    Graph, Grids, Tensor, TensorQuant, ValueInfo,
    exec::{Executor, Mode},
};
use fewbits_kernels::Threads;
use fewbits_methods::{
    Ground, Layer, MethodError, Samples, Walk,
    walk::{self, LANES, Run, Side},
};
use std::{collections::BTreeMap, ops::Range, sync::Arc};

/// Bits at which [`Level::Weighted`] compares the network's damage with the layer's.
const COMPARED_BITS: u8 = 4;

/// What is kept from block to block.
pub struct Probe<'a> {
    ground: Ground<'a>,
    config: &'a Config,
    activations: Option<&'a Grids>,
    /// The nodes of each block.
    spans: Vec<Range<usize>>,
    /// Outputs of the float network by sample, for damage at the outputs.
    references: Vec<Vec<Tensor>>,
    /// Tensors that lead past a block which does not read them, by sample.
    passing: BTreeMap<String, Vec<Tensor>>,
    one: Threads,
}

impl<'a> Probe<'a> {
    pub fn new(
        ground: Ground<'a>,
        samples: &dyn Samples,
        activations: Option<&'a Grids>,
        config: &'a Config,
        threads: &Threads,
    ) -> Result<Self, SearchError> {
        let (graph, blocks) = (ground.float, walk::blocks(&ground));
        let spans = cut::spans(graph, &blocks);
        let (mut references, mut passing) = (vec![], BTreeMap::new());
        if matches!(config.level, Level::Network | Level::Weighted) {
            let inputs = whole::inputs(samples, threads)?;
            references = whole::outputs(graph, Mode::Float, &inputs, threads)?;
            for name in cut::passing(graph, &blocks, &spans) {
                let input = graph.inputs.iter().position(|info| info.name == name);
                let given = input.map(|i| inputs.iter().map(|tensors| tensors[i].clone()).collect());
                passing.insert(name, given.unwrap_or_default());
            }
        }
        Ok(Probe { ground, config, activations, spans, references, passing, one: Threads::new(1) })
    }

    /// Keeps what the block that the walk stands before makes for later ones.
    pub fn keep(&mut self, walk: &Walk<'_>) -> Result<(), MethodError> {
        let Some(block) = walk.block() else { return Ok(()) };
        for sample in 0..walk.samples() {
            let made = block.outputs.iter().zip(walk.targets(sample)?.into_iter().map(Arc::unwrap_or_clone));
            for (name, tensor) in made {
                self.passing.entry(name.clone()).and_modify(|kept| kept.push(tensor));
            }
        }
        Ok(())
    }

    /// One layer of the block that the walk stands before.
    pub fn layer(&self, walk: &Walk<'_>, layer: &Layer) -> Result<LayerDamage, SearchError> {
        let Config { level, widths, rounding, .. } = self.config;
        let damage = match level {
            Level::Local => self.local(walk, layer, widths)?,
            Level::Block => self.beyond(walk, layer, false, widths)?,
            Level::Network => self.beyond(walk, layer, true, widths)?,
            Level::Weighted => {
                let with_compared: Vec<u8> = widths.iter().copied().chain([COMPARED_BITS]).collect();
                let mut local = self.local(walk, layer, &with_compared)?;
                let network = self.beyond(walk, layer, true, &[COMPARED_BITS])?;
                let compared = local.pop().unwrap_or(0.0);
                // A layer that 4 bits do not change is taken at its word.
                let weight = if compared > 0.0 { network[0] / compared } else { 1.0 };
                local.iter().map(|damage| damage * weight).collect()
            }
        };
        Ok(describe(&self.ground, layer, self.activations, *rounding, damage))
    }

    /// Damage at the output of `layer` at each of `widths`.
    fn local(&self, walk: &Walk<'_>, layer: &Layer, widths: &[u8]) -> Result<Vec<f64>, SearchError> {
        let Some(block) = walk.block() else { return Ok(vec![]) };
        let weights = self.weights(layer, widths, walk.threads())?;
        let (fan, input) = cut::fan(&self.ground, block, &self.spans[walk.position().0], layer, weights);
        let grids = self.input_grid(layer, input);
        let look = |sums: &mut Vec<f64>, _: usize, outputs: Vec<Vec<Tensor>>| {
            let mut tensors = outputs.into_iter().flatten();
            let float = tensors.next();
            for (sum, rounded) in sums.iter_mut().zip(tensors) {
                *sum += float.as_ref().and_then(|float| self.config.metric.damage(float, &rounded)).unwrap_or(0.0);
            }
            Ok(())
        };
        let run = Run { side: Side::Float, part: &fan, mode: mode(&grids) };
        let lanes = walk.each(&[run], 0..walk.samples(), LANES, || vec![0.0; widths.len()], look)?;
        Ok(means(&lanes, walk.samples()))
    }

    /// Damage at the outputs of the block, or of the network if `to_outputs`, at each of `widths`.
    fn beyond(&self, walk: &Walk<'_>, layer: &Layer, to_outputs: bool, widths: &[u8]) -> Result<Vec<f64>, SearchError> {
        let Some(block) = walk.block() else { return Ok(vec![]) };
        let cut = Cut::new(&self.ground, block, &self.spans[walk.position().0], layer, to_outputs);
        let Cut { prefix, variant, rest, .. } = &cut;
        let with_weight = |weight| {
            let mut part = variant.clone();
            part.constants.insert(cut.weight.clone(), weight);
            part
        };
        let weights = self.weights(layer, widths, walk.threads())?;
        let variants: Vec<Graph> = weights.into_iter().map(with_weight).collect();
        let grids = self.input_grid(layer, cut.input.clone());
        let start = || Lane {
            variants: variants.iter().map(|part| Executor::new(part, mode(&grids), &self.one)).collect(),
            rest: rest.as_ref().map(|part| Executor::new(part, Mode::Float, &self.one)),
            sums: vec![0.0; widths.len()],
        };
        let look = |lane: &mut Lane<'_>, sample: usize, outputs: Vec<Vec<Tensor>>| -> Result<(), MethodError> {
            let owned = |tensors: Vec<Arc<Tensor>>| tensors.into_iter().map(Arc::unwrap_or_clone);
            let given = block.inputs.iter().map(String::as_str).zip(owned(walk.inputs(Side::Float, sample)?));
            let float: BTreeMap<&str, Tensor> = given.chain(named(prefix, outputs.into_iter().flatten())).collect();
            let known = |name: &str| {
                let name = if name == cut.input { layer.input.as_str() } else { name };
                float.get(name).unwrap_or_else(|| &self.passing[name][sample]).clone()
            };
            let wanted: Vec<(&str, Tensor)> = match to_outputs {
                false => block.outputs.iter().map(String::as_str).zip(owned(walk.targets(sample)?)).collect(),
                true => named(self.ground.float, self.references[sample].iter().cloned()).collect(),
            };
            let entry: Vec<Tensor> = variant.inputs.iter().map(|info| known(&info.name)).collect();
            for (executor, sum) in lane.variants.iter_mut().zip(&mut lane.sums) {
                let mut changed: BTreeMap<&str, Tensor> = named(variant, executor.run(&entry)?).collect();
                if let (Some(executor), Some(part)) = (&mut lane.rest, rest) {
                    let value = |info: &ValueInfo| changed.get(info.name.as_str()).cloned();
                    let inputs: Vec<Tensor> =
                        part.inputs.iter().map(|info| value(info).unwrap_or_else(|| known(&info.name))).collect();
                    changed.extend(named(part, executor.run(&inputs)?));
                }
                *sum += whole::damage(self.config.metric, &wanted, &changed);
            }
            Ok(())
        };
        let run = Run { side: Side::Float, part: prefix, mode: Mode::Float };
        let runs = if prefix.outputs.is_empty() { vec![] } else { vec![run] };
        let lanes = walk.each(&runs, 0..walk.samples(), LANES, start, look)?;
        let lanes: Vec<Vec<f64>> = lanes.into_iter().map(|lane| lane.sums).collect();
        Ok(means(&lanes, walk.samples()))
    }

    /// The grid of the layer's input, if it is to be rounded, under the name `seen`.
    fn input_grid(&self, layer: &Layer, seen: String) -> Grids {
        let params = self.activations.and_then(|grids| grids.params(&layer.input)).cloned();
        Grids(params.map(|params| (seen, TensorQuant::Quantized(params))).into_iter().collect())
    }

    /// The weight of `layer` at each of `widths`.
    fn weights(&self, layer: &Layer, widths: &[u8], threads: &Threads) -> Result<Vec<Arc<Tensor>>, SearchError> {
        let weight = weight(&self.ground, layer);
        let at = |i: usize| Ok(self.config.rounding.apply(&layer.weight, weight, layer.axis, widths[i])?);
        threads.map(widths.len(), at).into_iter().collect()
    }
}

fn mode(grids: &Grids) -> Mode<'_> {
    if grids.0.is_empty() { Mode::Float } else { Mode::FakeQuant(grids) }
}

/// The sums of all lanes over the number of samples.
fn means(lanes: &[Vec<f64>], samples: usize) -> Vec<f64> {
    let widths = lanes.first().map_or(0, Vec::len);
    (0..widths).map(|i| lanes.iter().map(|sums| sums[i]).sum::<f64>() / samples.max(1) as f64).collect()
}

/// One lane of samples.
struct Lane<'a> {
    /// By width.
    variants: Vec<Executor<'a>>,
    /// Behind the block.
    rest: Option<Executor<'a>>,
    /// Damage by width, over samples.
    sums: Vec<f64>,
}

/// The outputs of `graph` with their names.
fn named(graph: &Graph, outputs: impl IntoIterator<Item = Tensor>) -> impl Iterator<Item = (&str, Tensor)> {
    graph.outputs.iter().map(|info| info.name.as_str()).zip(outputs)
}
