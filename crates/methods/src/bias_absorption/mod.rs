//! Absorption of high biases: what a channel always exceeds is taken off in front of its activation and put into the biases behind it.
//!
//! # What it does
//! `relu(z) − c = relu(z − c)` as long as `z ≥ c ≥ 0`. So `c` comes off the bias of the layer that makes `z`, and `Σ W c` is added to the
//! biases of the layers that read `relu(z)`. `c = max(0, β − 3|γ|)` where a BatchNormalization says what `z` is like, else the least `z`
//! that samples showed. Channels that reach the bound of a Clip `0…m` are left alone.
//!
//! # When it helps
//! Channels far above zero take up range that no number uses; most after equalization, which enlarges biases along with weights.
//!
//! # When it fails
//! Between a layer and one with zero padding the border would see another constant than the inside: such places are left alone.
//!
//! # Cost
//! Channel extremes of a few samples, or none with BatchNormalizations.
//!
//! # Config
//! None.
//!
//! # Source
//! Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), §4.1.3.
//!
//! # Departures
//! Observed extremes where there is no BatchNormalization; Clip; no absorption into padded layers.

use crate::{
    bias_correction::{convolution, coverage},
    expectation::Normals,
};
use fewbits_graph::{Graph, Node, Op, Tensor, op::Fact};
use fewbits_quant::Stats;
use std::{collections::BTreeMap, sync::Arc};

/// Deviations below the mean that channels are taken to stay within.
const DEVIATIONS: f64 = 3.0;

/// A layer, its activation, and the layers that alone read that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seam {
    /// Position of the layer.
    pub layer: usize,
    /// What it writes, `z`.
    pub tensor: String,
    /// Position of the activation.
    activation: usize,
    /// Positions of the readers.
    readers: Vec<usize>,
}

/// What absorption does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Absorbed {
    /// Replacement biases.
    pub patches: BTreeMap<String, Arc<Tensor>>,
    /// `c` by channel, by the tensor `z`.
    pub taken: BTreeMap<String, Vec<f64>>,
}

/// Where a constant can move without a change at any position.
pub fn seams(graph: &Graph, facts: &BTreeMap<String, Fact>) -> Vec<Seam> {
    let consumers = graph.consumers();
    let own = |name: Option<&str>| name.is_some_and(|n| graph.constant(n).is_some() && consumers[n].len() == 1);
    let is_layer = |node: &Node| matches!(node.op, Op::Conv(_)) && own(node.input(1)) && own(node.input(2));
    let sees_no_padding = |node: &Node| {
        let (Op::Conv(conv), Some(weight)) = (&node.op, graph.constant(&node.inputs[1])) else { return false };
        let taps = facts.get(&node.inputs[0]).and_then(|fact| coverage(&conv.window, &weight.dims, fact));
        taps.is_some_and(|taps| taps.iter().all(|share| *share == 1.0))
    };
    let seam = |(layer, node): (usize, &Node)| {
        let tensor = node.output();
        let [activation] = consumers.get(tensor).map(Vec::as_slice)? else { return None };
        let activation = *activation;
        ceiling(graph, &graph.nodes[activation])?;
        let result = graph.nodes[activation].output();
        let readers = consumers.get(result)?.clone();
        let reads = |&r: &usize| {
            let node = &graph.nodes[r];
            is_layer(node) && node.input(0) == Some(result) && sees_no_padding(node)
        };
        let hidden = !graph.is_output(tensor) && !graph.is_output(result);
        let usable = hidden && is_layer(node) && !readers.is_empty() && readers.iter().all(reads);
        usable.then(|| Seam { layer, tensor: tensor.into(), activation, readers })
    };
    graph.nodes.iter().enumerate().filter_map(seam).collect()
}

/// The upper bound of Relu, or of Clip from zero on.
fn ceiling(graph: &Graph, node: &Node) -> Option<f64> {
    let bound = |i: usize| graph.constant(node.input(i)?)?.scalar_f32();
    match node.op {
        Op::Relu(_) => Some(f64::INFINITY),
        Op::Clip(_) if bound(1) == Some(0.0) => bound(2).map(f64::from),
        _ => None,
    }
}

/// Moves constants at every seam that `normals` or `stats` know, in graph order.
pub fn absorb(graph: &Graph, facts: &BTreeMap<String, Fact>, normals: &Normals, stats: &Stats) -> Absorbed {
    let mut patched = graph.clone();
    let mut absorbed = Absorbed::default();
    for seam in seams(graph, facts) {
        let Some(reach) = reach(&seam.tensor, normals, stats) else { continue };
        let ceiling = ceiling(graph, &graph.nodes[seam.activation]).unwrap_or(0.0);
        let constant = |&[low, high]: &[f64; 2]| if high < ceiling { low.max(0.0) } else { 0.0 };
        let taken: Vec<f64> = reach.iter().map(constant).collect();
        if taken.iter().all(|c| *c == 0.0) {
            continue;
        }
        let Some(new) = moved(&patched, &seam, &taken) else { continue };
        absorbed.patches.extend(new.iter().cloned());
        patched.constants.extend(new);
        absorbed.taken.insert(seam.tensor, taken);
    }
    absorbed
}

/// The least and the largest `z` of each channel.
fn reach(tensor: &str, normals: &Normals, stats: &Stats) -> Option<Vec<[f64; 2]>> {
    if let Some(channels) = normals.get(tensor) {
        return Some(channels.iter().map(|x| [-1.0, 1.0].map(|s| x.mean + s * DEVIATIONS * x.deviation)).collect());
    }
    let seen = stats.0.get(tensor)?.channels.as_ref()?;
    Some(seen.min.iter().zip(&seen.max).map(|(lo, hi)| [f64::from(*lo), f64::from(*hi)]).collect())
}

/// The biases with `taken` moved; `None` if shapes do not fit.
fn moved(graph: &Graph, seam: &Seam, taken: &[f64]) -> Option<Vec<(String, Arc<Tensor>)>> {
    let plus = |layer: usize, shift: &[f64]| {
        let name = graph.nodes[layer].input(2)?;
        let bias = graph.constant(name)?;
        let old = bias.as_f32().filter(|old| old.len() == shift.len() && shift.iter().all(|s| s.is_finite()))?;
        let new = old.iter().zip(shift).map(|(b, s)| (f64::from(*b) + s) as f32).collect();
        Some((name.to_string(), Arc::new(Tensor::f32(&bias.dims, new))))
    };
    let off: Vec<f64> = taken.iter().map(|c| -c).collect();
    let behind = |&reader: &usize| {
        let node = &graph.nodes[reader];
        let (Op::Conv(conv), weight) = (&node.op, graph.constant(node.input(1)?)?) else { return None };
        let weights: Vec<f64> = weight.as_f32()?.iter().map(|w| f64::from(*w)).collect();
        let taps = vec![1.0; weight.dims.get(2..)?.iter().product()];
        plus(reader, &convolution(&weights, &weight.dims, conv.group, &taps, taken))
    };
    std::iter::once(plus(seam.layer, &off)).chain(seam.readers.iter().map(behind)).collect()
}

#[cfg(test)]
mod tests;
