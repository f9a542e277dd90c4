//! Bias correction: the mean that quantization adds to each channel of a layer's output, taken off its bias.
//!
//! # What it does
//! A layer computes `W x + b`; with rounded weights, `Ŵ x + b`. Per output channel the two differ in the mean by
//! `(W − Ŵ)·E[x]`, which is added to `b`. There are three forms.
//!
//! - Empirical ([`means`]): `E[x]` is the mean per input channel over calibration samples of the float network, so that all layers are
//!   corrected at once. A tap of the kernel that zero padding covers for some outputs counts for the others only.
//! - Analytic ([`crate::expectation`]): `E[x]` follows from what BatchNormalizations remember, without samples.
//! - Sequential ([`sequential`]): layer by layer, `b += mean(y − ŷ)` over samples, with the inputs of `ŷ` as the network quantized so far
//!   makes them. It makes up for what earlier layers and rounded activations add to the mean, too.
//!
//! # When it helps
//! Nearly always; most for depthwise and thin layers, where rounding errors do not average out.
//!
//! # When it fails
//! Where means say little: a handful of samples, or a network whose inputs have mean zero. The analytic form where inputs of a layer are
//! far from clipped normals, or positions at the border from those inside.
//!
//! # Cost
//! Channel sums during calibration; the arithmetic here is one multiply-add per weight. Sequential: a pass over the samples for each
//! layer.
//!
//! # Config
//! None.
//!
//! # Source
//! Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), §4.2 and appendix; the
//! per-layer empirical form is that of fast bias correction.
//!
//! # Departures
//! The first two forms: inputs are those of the float network, not of the network quantized so far. The mean that clipping takes from
//! the input is not made up for: it belongs to rare large elements, and a constant in its place hurts every other sample. Sequential:
//! samples that are held back decide for each layer whether it is corrected.

use crate::bn_tune::{self, BnTune};
use fewbits_graph::{Graph, Grids, Node, Op, Tensor, exec::rounded_constant, op::Fact, ops::window::Window};
use fewbits_quant::Stats;
use std::{collections::BTreeMap, sync::Arc};

/// The sequential form: [`BnTune`] without deviations.
pub fn sequential() -> BnTune {
    BnTune { config: bn_tune::Config { deviation: false, ..Default::default() } }
}

/// `E[x]` by channel of every tensor, as samples have it.
pub fn means(stats: &Stats) -> BTreeMap<String, Vec<f64>> {
    stats.0.iter().filter_map(|(name, seen)| Some((name.clone(), seen.channels.as_ref()?.mean()))).collect()
}

/// Replacement biases by name.
///
/// `inputs` holds `E[x]` by channel of layer inputs, `facts` the shapes of all tensors. A bias that several layers share is left alone.
pub fn corrections(
    graph: &Graph,
    grids: &Grids,
    facts: &BTreeMap<String, Fact>,
    inputs: &BTreeMap<String, Vec<f64>>,
) -> BTreeMap<String, Arc<Tensor>> {
    corrections_of(graph, graph, grids, facts, inputs)
}

/// The same where weights were rounded before: those of `quantized` under `grids` stand against those of `graph`.
pub fn corrections_of(
    graph: &Graph,
    quantized: &Graph,
    grids: &Grids,
    facts: &BTreeMap<String, Fact>,
    inputs: &BTreeMap<String, Vec<f64>>,
) -> BTreeMap<String, Arc<Tensor>> {
    let mut patches = BTreeMap::new();
    let consumers = graph.consumers();
    for (node, weight_name, bias_name) in layers(graph, grids) {
        let shared = consumers.get(bias_name).is_some_and(|readers| readers.len() > 1);
        let (Some(weight), Some(bias)) = (graph.constant(weight_name), graph.constant(bias_name)) else { continue };
        let (Some(input), Some(input_fact)) = (inputs.get(&node.inputs[0]), facts.get(&node.inputs[0])) else {
            continue;
        };
        let rounded = rounded_constant(weight_name, quantized.constant(weight_name).unwrap_or(weight), grids);
        let (Some(weights), Some(rounded), Some(old)) = (weight.as_f32(), rounded.as_f32(), bias.as_f32()) else {
            continue;
        };
        let errors: Vec<f64> = weights.iter().zip(rounded).map(|(w, r)| f64::from(*w) - f64::from(*r)).collect();
        let Some(shift) = response(node, &errors, &weight.dims, input_fact, input) else { continue };
        if shared || shift.len() != old.len() || shift.iter().any(|s| !s.is_finite()) {
            continue;
        }
        let new = old.iter().zip(&shift).map(|(b, s)| (f64::from(*b) + s) as f32).collect();
        patches.insert(bias_name.to_string(), Arc::new(Tensor::f32(&bias.dims, new)));
    }
    patches
}

/// Layers with a quantized constant weight and a constant bias: node, weight name, bias name.
fn layers<'g>(graph: &'g Graph, grids: &'g Grids) -> impl Iterator<Item = (&'g Node, &'g str, &'g str)> {
    graph.nodes.iter().filter_map(|node| {
        let (weight, bias) = (node.input(1)?, node.input(2)?);
        let layer = matches!(node.op, Op::Conv(_) | Op::Gemm(_));
        let constant = graph.constant(weight).is_some() && graph.constant(bias).is_some();
        let quantized = grids.params(weight).is_some() && grids.params(&node.inputs[0]).is_some();
        (layer && constant && quantized).then_some((node, weight, bias))
    })
}

/// What a layer with `weights` of shape `dims` and no bias makes, on average over positions, of an input that is constant in each channel.
fn response(node: &Node, weights: &[f64], dims: &[usize], fact: &Fact, input: &[f64]) -> Option<Vec<f64>> {
    match &node.op {
        Op::Conv(conv) => Some(convolution(weights, dims, conv.group, &coverage(&conv.window, dims, fact)?, input)),
        Op::Gemm(gemm) => Some(product(weights, dims, gemm.trans_b, input)),
        _ => None,
    }
}

/// For each tap of the kernel, the share of outputs for which it lies inside the input, row-major.
pub(crate) fn coverage(window: &Window, dims: &[usize], input: &Fact) -> Option<Vec<f64>> {
    let frame = window.frame(input.dims.get(2..)?, dims.get(2..)?, false).ok()?;
    let share = |axis: usize, tap: usize| {
        let inside = |o: &usize| {
            let at = o * frame.stride[axis] + tap * frame.dilation[axis];
            (frame.pads[axis]..frame.pads[axis] + frame.input[axis]).contains(&at)
        };
        (0..frame.output[axis]).filter(inside).count() as f64 / frame.output[axis].max(1) as f64
    };
    let columns = |r: usize| (0..frame.kernel[1]).map(move |s| (r, s));
    Some((0..frame.kernel[0]).flat_map(columns).map(|(r, s)| share(0, r) * share(1, s)).collect())
}

/// `Σ w·x` per output channel of a convolution with weights `[O, I/groups, taps…]`; NaN where `input` is too short.
pub(crate) fn convolution(weights: &[f64], dims: &[usize], groups: usize, taps: &[f64], input: &[f64]) -> Vec<f64> {
    let (outputs, per_group) = (dims[0], dims[1]);
    let row = per_group * taps.len();
    let sum = |o: usize| {
        let first = o / (outputs / groups).max(1) * per_group;
        let term = |(i, &w): (usize, &f64)| {
            taps[i % taps.len()] * (w * input.get(first + i / taps.len()).unwrap_or(&f64::NAN))
        };
        weights[o * row..(o + 1) * row].iter().enumerate().map(term).sum()
    };
    (0..outputs).map(sum).collect()
}

/// The same for a matrix product with weights `[K, N]`, or `[N, K]` if transposed.
fn product(weights: &[f64], dims: &[usize], transposed: bool, input: &[f64]) -> Vec<f64> {
    let (inputs, outputs) = if transposed { (dims[1], dims[0]) } else { (dims[0], dims[1]) };
    let at = |k: usize, n: usize| if transposed { n * inputs + k } else { k * outputs + n };
    let term = |k: usize, n: usize| weights[at(k, n)] * input.get(k).unwrap_or(&f64::NAN);
    (0..outputs).map(|n| (0..inputs).map(|k| term(k, n)).sum()).collect()
}

#[cfg(test)]
mod tests;
