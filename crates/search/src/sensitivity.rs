//! What each layer does to the network at each width, all others left float.
//!
//! A float network and samples enter; a table leaves. The network is walked block by block. For each layer the float tensors that
//! lead up to it are computed once per sample; only the layer and what follows it, up to where the damage is looked at, is computed
//! for each width.

mod cut;

use crate::{
    Metric, Rounding, SearchError,
    cost::{self, weight_bytes},
    whole,
};
use cut::Cut;
use fewbits_graph::{
    Graph, Grids, Tensor, TensorQuant, ValueInfo,
    exec::{Executor, Mode},
};
use fewbits_kernels::Threads;
use fewbits_methods::{
    Draft, Ground, Layer, MethodError, Progress, Samples, Walk,
    walk::{self, LANES, Run, Side},
};
use fewbits_quant::QuantError;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    str::FromStr,
    sync::{Arc, OnceLock},
};

/// Where the damage is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The output of the layer itself. Cheapest; layers cannot be compared with each other.
    Local,
    /// The outputs of the block ([`fewbits_methods::walk::blocks`]) that the layer is in.
    Block,
    /// The outputs of the network.
    Network,
    /// Local damage, times what the layer's local damage at 4 bits comes to at the outputs: `D(b) = D_local(b) · D_network(4) / D_local(4)`.
    #[default]
    Weighted,
}

/// Bits at which [`Level::Weighted`] compares the network's damage with the layer's.
const COMPARED_BITS: u8 = 4;

const LEVELS: [(Level, &str); 4] =
    [(Level::Local, "local"), (Level::Block, "block"), (Level::Network, "network"), (Level::Weighted, "weighted")];

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(LEVELS.iter().find(|(level, _)| level == self).map_or("", |(_, name)| name))
    }
}

impl FromStr for Level {
    type Err = SearchError;

    fn from_str(text: &str) -> Result<Self, SearchError> {
        let known = "local, block, network, weighted";
        let unknown = || SearchError::Unknown { what: "level", text: text.into(), known };
        LEVELS.iter().find(|(_, name)| *name == text).map(|(level, _)| *level).ok_or_else(unknown)
    }
}

/// How sensitivities are measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What damage is.
    pub metric: Metric,
    /// Where it is looked at.
    pub level: Level,
    /// Widths of weights, ascending.
    pub widths: Vec<u8>,
    /// How weights are rounded.
    pub rounding: Rounding,
    /// Bytes of samples' tensors that are kept in memory.
    pub memory: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            metric: Metric::default(),
            level: Level::default(),
            widths: vec![2, 3, 4, 5, 6, 8],
            rounding: Rounding::default(),
            memory: 2 << 30,
        }
    }
}

/// One weight. Layers that share it count as one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerDamage {
    /// Name of the (first) node.
    pub layer: String,
    /// Name of the weight.
    pub weight: String,
    /// The tensor that it multiplies (in the first node), or the one whose grid that has.
    pub input: String,
    /// Of the first or last layers.
    pub edge: bool,
    /// Elements of the weight.
    pub elements: u64,
    /// Output channels.
    pub rows: u64,
    /// Scales of the weight.
    pub scales: u64,
    /// Multiply-accumulates for one image.
    pub macs: u64,
    /// Bits of the activation that it multiplies.
    pub input_bits: u8,
    /// Damage at each of [`Sensitivity::widths`].
    pub damage: Vec<f64>,
}

impl LayerDamage {
    /// Bytes to deploy at `bits` bits, by the convention of [`cost`].
    pub fn bytes_at(&self, bits: u8) -> u64 {
        let columns = self.elements / self.rows.max(1);
        weight_bytes(&[self.rows as usize, columns as usize], Some(0), bits, self.scales as usize)
    }

    /// The damage at `bits` bits, or at the nearest of `widths` if that was not measured.
    pub fn damage_at(&self, widths: &[u8], bits: u8) -> f64 {
        let nearest = widths.iter().zip(&self.damage).min_by_key(|(width, _)| width.abs_diff(bits));
        nearest.map_or(0.0, |(_, damage)| *damage)
    }
}

/// One tensor that layers multiply.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InputDamage {
    /// Its name.
    pub tensor: String,
    /// Read by first or last layers.
    pub edge: bool,
    /// Damage at each of [`Sensitivity::input_widths`].
    pub damage: Vec<f64>,
}

/// Damage by layer and width.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sensitivity {
    /// What damage is.
    pub metric: Metric,
    /// Where it was looked at.
    pub level: Level,
    /// How many samples (runs) it was measured on.
    pub samples: usize,
    /// Widths of weights, ascending.
    pub widths: Vec<u8>,
    /// Every weight with a grid, in graph order.
    pub layers: Vec<LayerDamage>,
    /// Widths of inputs of layers, ascending; empty if they are not searched.
    pub input_widths: Vec<u8>,
    /// Inputs of layers ([`crate::Whole::input_damages`]), in graph order.
    pub inputs: Vec<InputDamage>,
}

/// Measures every layer of `ground`. With `activations`, the layer's input is rounded to its grid there as well.
///
/// Results do not depend on the number of threads. Cost for `L` layers, `B` widths and `N` samples: about `L·N` float blocks, and
/// `L·B·N` layers (local), halves of blocks (block) or halves of networks (network); weighted as local, and `L·N` halves of networks.
///
/// # Errors
/// Those of the samples, the network and its weights; [`SearchError::NoLayers`].
pub fn measure(
    ground: Ground<'_>,
    samples: &dyn Samples,
    activations: Option<&Grids>,
    config: &Config,
    threads: &Threads,
    progress: &dyn Progress,
) -> Result<Sensitivity, SearchError> {
    let mut walk = Walk::new(ground, samples, config.memory, threads)?;
    let mut probe = Probe::new(ground, samples, activations, config, threads)?;
    let float = Draft { graph: ground.float.clone(), grids: Grids::default() };
    let mut layers: Vec<LayerDamage> = vec![];
    progress.begin("sensitivity", fewbits_methods::layers(ground.float, ground.placement).len());
    while let Some(block) = walk.block().cloned() {
        for layer in &block.layers {
            let found = probe.layer(&walk, layer)?;
            add(&mut layers, found);
            progress.step();
        }
        probe.keep(&walk)?;
        walk.advance(&float)?;
    }
    progress.end();
    if layers.is_empty() {
        return Err(SearchError::NoLayers);
    }
    Ok(Sensitivity {
        metric: config.metric,
        level: config.level,
        samples: walk.samples(),
        widths: config.widths.clone(),
        layers,
        input_widths: vec![],
        inputs: vec![],
    })
}

/// Adds a layer to `layers`. Errors of the uses of a shared weight add up as those of layers do.
pub(crate) fn add(layers: &mut Vec<LayerDamage>, found: LayerDamage) {
    match layers.iter_mut().find(|other| other.weight == found.weight) {
        Some(other) => {
            other.macs += found.macs;
            other.edge |= found.edge;
            other.damage.iter_mut().zip(found.damage).for_each(|(sum, damage)| *sum += damage);
        }
        None => layers.push(found),
    }
}

/// What `layer` is, and its damage at each width. `activations` have the grid of its input.
pub(crate) fn describe(
    ground: &Ground<'_>,
    layer: &Layer,
    activations: Option<&Grids>,
    rounding: Rounding,
    damage: Vec<f64>,
) -> LayerDamage {
    let node = &ground.float.nodes[layer.node];
    let dims = &weight(ground, layer).dims;
    let input = activations.and_then(|grids| grids.params(&layer.input));
    LayerDamage {
        layer: node.name.clone(),
        weight: layer.weight.clone(),
        input: ground.placement.owner(&layer.input).into(),
        edge: layer.edge,
        elements: dims.iter().product::<usize>() as u64,
        rows: dims[layer.axis] as u64,
        scales: rounding.scales(dims, layer.axis) as u64,
        macs: cost::macs(node, ground.facts),
        input_bits: input.map_or(8, |params| params.grid.bits),
        damage,
    }
}

pub(crate) fn weight<'a>(ground: &Ground<'a>, layer: &Layer) -> &'a Arc<Tensor> {
    ground.float.constant(&layer.weight).expect("a layer's weight is a constant")
}

/// What is kept from block to block.
struct Probe<'a> {
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
    fn new(
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
    fn keep(&mut self, walk: &Walk<'_>) -> Result<(), MethodError> {
        let Some(block) = walk.block() else { return Ok(()) };
        for sample in 0..walk.samples() {
            let made = block.outputs.iter().zip(walk.targets(sample)?);
            for (name, tensor) in made {
                self.passing.entry(name.clone()).and_modify(|kept| kept.push(tensor));
            }
        }
        Ok(())
    }

    /// One layer of the block that the walk stands before.
    fn layer(&self, walk: &Walk<'_>, layer: &Layer) -> Result<LayerDamage, SearchError> {
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
            let given = block.inputs.iter().map(String::as_str).zip(walk.inputs(Side::Float, sample)?);
            let float: BTreeMap<&str, Tensor> = given.chain(named(prefix, outputs.into_iter().flatten())).collect();
            let known = |name: &str| {
                let name = if name == cut.input { layer.input.as_str() } else { name };
                float.get(name).unwrap_or_else(|| &self.passing[name][sample]).clone()
            };
            let wanted: Vec<(&str, Tensor)> = match to_outputs {
                false => block.outputs.iter().map(String::as_str).zip(walk.targets(sample)?).collect(),
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
        let slots: Vec<OnceLock<Result<Arc<Tensor>, QuantError>>> = widths.iter().map(|_| OnceLock::new()).collect();
        threads.run(widths.len(), |i| {
            let weight = weight(&self.ground, layer);
            slots[i].get_or_init(|| self.config.rounding.apply(&layer.weight, weight, layer.axis, widths[i]));
        });
        slots.into_iter().map(|slot| Ok(slot.into_inner().expect("every slot was filled")?)).collect()
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

#[cfg(test)]
mod tests;
