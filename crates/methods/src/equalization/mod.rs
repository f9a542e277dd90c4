//! Equalization: channels of a tensor between two layers brought to like ranges by scaling the layers' weights.
//!
//! # What it does
//! `layer₂(f(layer₁(x)))` stays the same if output channel `c` of layer 1 (weights and bias) is divided by `s_c > 0` and the weights
//! that read channel `c` in layer 2 are multiplied by it, as long as `f(s·x) = s·f(x)`: Relu, LeakyRelu, or nothing. With one
//! weight scale per output channel, dividing costs layer 1 nothing. A depthwise layer 2 also has a scale of its own for each channel,
//! so there `s_c ∝ a_c`, the channel's largest magnitude, makes all channels alike for free. A dense layer 2 shares one scale
//! among the input channels of an output; there the ranges are shared evenly between activation and weights:
//! `s_c ∝ √(a_c / r_c)` with `r_c` the largest weight on channel `c`.
//!
//! # When it helps
//! Networks without BatchNormalization-friendly ranges: channels of one tensor that differ by a factor of ten or more.
//!
//! # When it fails
//! Behind Clip, SiLU and other functions that do not scale, and for tensors with several readers: these are left alone.
//!
//! # Cost
//! Channel extremes of a few samples; one multiplication per weight.
//!
//! # Config
//! None.
//!
//! # Source
//! Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), §4.1.
//!
//! # Departures
//! Activation ranges instead of the weight ranges of layer 1, since per-channel scales make these irrelevant; the depthwise case;
//! no absorption of biases.

mod silu;

pub use silu::silu_patches;

use fewbits_graph::{Graph, Op, Tensor};
use fewbits_quant::Stats;
use std::{collections::BTreeMap, sync::Arc};

/// Largest factor between two channels' scales, either way from their middle: smaller ranges are noise.
const MOST: f64 = 256.0;

/// Two layers with a scalable tensor between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Position of the layer that writes the tensor.
    pub first: usize,
    /// Position of the layer that reads it.
    pub second: usize,
    /// What layer 2 reads.
    pub tensor: String,
}

/// The pairs of layers that can be equalized.
pub fn pairs(graph: &Graph) -> Vec<Pair> {
    let (producers, consumers) = (graph.producers(), graph.consumers());
    let only_reader = |name: &str| match consumers.get(name).map(Vec::as_slice) {
        Some([one]) if !graph.is_output(name) => Some(*one),
        _ => None,
    };
    let own = |name: Option<&str>| name.is_none_or(|n| graph.constant(n).is_some() && consumers[n].len() == 1);
    let is_layer = |i: usize| {
        let node = &graph.nodes[i];
        matches!(node.op, Op::Conv(_)) && node.input(1).is_some() && own(node.input(1)) && own(node.input(2))
    };
    let pair = |second: usize| {
        let tensor = graph.nodes[second].inputs[0].clone();
        only_reader(&tensor)?;
        let mut first = *producers.get(tensor.as_str())?;
        if matches!(graph.nodes[first].op, Op::Relu(_) | Op::LeakyRelu(_)) {
            let before = graph.nodes[first].inputs[0].as_str();
            only_reader(before)?;
            first = *producers.get(before)?;
        }
        (is_layer(first) && input_groups(graph, second).is_some()).then_some(Pair { first, second, tensor })
    };
    (0..graph.nodes.len()).filter(|&i| is_layer(i)).filter_map(pair).collect()
}

/// Whether the layer is dense (`Some(false)`) or depthwise (`Some(true)`); other groupings are not handled.
fn input_groups(graph: &Graph, layer: usize) -> Option<bool> {
    let node = &graph.nodes[layer];
    let Op::Conv(conv) = &node.op else { return None };
    let dims = &graph.constant(node.input(1)?)?.dims;
    match conv.group {
        1 => Some(false),
        group if group == dims[0] && dims[1] == 1 => Some(true),
        _ => None,
    }
}

/// Replacement weights and biases that equalize every pair whose tensor has statistics by channel.
pub fn patches(graph: &Graph, stats: &Stats) -> BTreeMap<String, Arc<Tensor>> {
    let mut patched = graph.clone();
    let mut changed = Vec::new();
    for Pair { first, second, tensor } in pairs(graph) {
        let Some(channels) = stats.0.get(&tensor).and_then(|s| s.channels.as_ref()) else { continue };
        let Some(depthwise) = input_groups(graph, second) else { continue };
        let (first, second) = (&graph.nodes[first], &graph.nodes[second]);
        let Some(reads) = patched.constant(&second.inputs[1]).cloned() else { continue };
        let largest = channels.largest();
        let Some(scales) = scales(&largest, &reads, depthwise) else { continue };
        let divide = |c: usize| 1.0 / scales[c];
        let bias = first.input(2).into_iter().map(|name| (name, 0, &divide as &dyn Fn(usize) -> f64));
        let multiply = |c: usize| scales[c];
        let edits = [
            (first.inputs[1].as_str(), 0, &divide as &dyn Fn(usize) -> f64),
            (second.inputs[1].as_str(), usize::from(!depthwise), &multiply as &dyn Fn(usize) -> f64),
        ];
        for (name, axis, factor) in edits.into_iter().chain(bias) {
            let Some(scaled) = patched.constant(name).and_then(|t| scaled(t, axis, scales.len(), factor)) else { continue };
            patched.constants.insert(name.into(), Arc::new(scaled));
            changed.push(name.to_string());
        }
    }
    changed.into_iter().filter_map(|name| Some((name.clone(), patched.constant(&name)?.clone()))).collect()
}

/// `s_c` with geometric mean one; `None` if there is nothing to equalize or the shapes do not fit.
fn scales(largest: &[f32], reads: &Tensor, depthwise: bool) -> Option<Vec<f64>> {
    let weight = largest_per_channel(reads, usize::from(!depthwise))?;
    let count = weight.len();
    if count != largest.len() || largest.iter().any(|v| !v.is_finite()) {
        return None;
    }
    let raw = |c: usize| match (f64::from(largest[c]), f64::from(weight[c])) {
        (a, r) if a <= 0.0 || r <= 0.0 => None,
        (a, _) if depthwise => Some(a),
        (a, r) => Some((a / r).sqrt()),
    };
    let raw: Vec<Option<f64>> = (0..count).map(raw).collect();
    let known: Vec<f64> = raw.iter().flatten().map(|s| s.ln()).collect();
    let middle = known.iter().sum::<f64>() / known.len().max(1) as f64;
    // Silent channels stay as they are.
    let limit = |s: Option<f64>| s.map_or(1.0, |s| (s.ln() - middle).exp().clamp(1.0 / MOST, MOST));
    (known.len() > 1).then(|| raw.into_iter().map(limit).collect())
}

/// Largest magnitude for each index along `axis`; `None` if an element is not finite.
fn largest_per_channel(tensor: &Tensor, axis: usize) -> Option<Vec<f32>> {
    let values = tensor.as_f32().filter(|v| v.iter().all(|x| x.is_finite()))?;
    let (count, inner) = (*tensor.dims.get(axis)?, tensor.dims.get(axis + 1..)?.iter().product::<usize>());
    let mut largest = vec![0f32; count];
    for (i, v) in values.iter().enumerate() {
        let c = i / inner.max(1) % count;
        largest[c] = largest[c].max(v.abs());
    }
    Some(largest)
}

fn scaled(tensor: &Tensor, axis: usize, channels: usize, factor: &dyn Fn(usize) -> f64) -> Option<Tensor> {
    let inner: usize = tensor.dims.get(axis + 1..)?.iter().product();
    let values = tensor.as_f32().filter(|_| tensor.dims.get(axis) == Some(&channels))?;
    let times = |(i, &w): (usize, &f32)| (f64::from(w) * factor(i / inner.max(1) % channels)) as f32;
    Some(Tensor::f32(&tensor.dims, values.iter().enumerate().map(times).collect()))
}

#[cfg(test)]
mod tests;
