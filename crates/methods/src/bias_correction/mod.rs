//! Bias correction: the mean that quantization adds to each channel of a layer's output, taken off its bias.
//!
//! # What it does
//! A layer computes `W x + b`; with rounded weights, `Ŵ x + b`. Per output channel the two differ in the mean by
//! `(W − Ŵ)·E[x]`, which is added to `b`. `E[x]` is the mean per input channel over calibration samples of the float network, so
//! that all layers are corrected at once. A tap of the kernel that zero padding covers for some outputs counts for the others
//! only.
//!
//! # When it helps
//! Nearly always; most for depthwise and thin layers, where rounding errors do not average out.
//!
//! # When it fails
//! Where means say little: a handful of samples, or a network whose inputs have mean zero.
//!
//! # Cost
//! Channel sums during calibration; the arithmetic here is one multiply-add per weight.
//!
//! # Config
//! None.
//!
//! # Source
//! Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), §4.2, empirical form;
//! the per-layer form is that of fast bias correction.
//!
//! # Departures
//! Inputs are those of the float network, not of the network quantized so far. The mean that clipping takes from the input is not
//! made up for: it belongs to rare large elements, and a constant in its place hurts every other sample.

use fewbits_graph::{Graph, Grids, Node, Op, Tensor, exec::rounded_constant, op::Fact, ops::window::Window};
use fewbits_quant::Stats;
use std::{collections::BTreeMap, sync::Arc};

/// Replacement biases by name.
///
/// `stats` holds statistics by channel of layer inputs, `facts` the shapes of all tensors. A bias that several layers share is
/// left alone.
pub fn corrections(
    graph: &Graph,
    grids: &Grids,
    facts: &BTreeMap<String, Fact>,
    stats: &Stats,
) -> BTreeMap<String, Arc<Tensor>> {
    let mut patches = BTreeMap::new();
    let consumers = graph.consumers();
    for (node, weight_name, bias_name) in layers(graph, grids) {
        let shared = consumers.get(bias_name).is_some_and(|readers| readers.len() > 1);
        let (Some(weight), Some(bias)) = (graph.constant(weight_name), graph.constant(bias_name)) else { continue };
        let (Some(input), Some(input_fact)) =
            (stats.0.get(&node.inputs[0]).and_then(|s| s.channels.as_ref()), facts.get(&node.inputs[0]))
        else {
            continue;
        };
        let input = &input.mean();
        let rounded = rounded_constant(weight_name, weight, grids);
        let (Some(weights), Some(rounded), Some(old)) = (weight.as_f32(), rounded.as_f32(), bias.as_f32()) else {
            continue;
        };
        let shift = match &node.op {
            Op::Conv(conv) => {
                let Some(taps) = coverage(&conv.window, weight, input_fact) else { continue };
                convolution(weights, rounded, &weight.dims, conv.group, &taps, input)
            }
            Op::Gemm(gemm) => product(weights, rounded, &weight.dims, gemm.trans_b, input),
            _ => continue,
        };
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

/// For each tap of the kernel, the share of outputs for which it lies inside the input, row-major.
fn coverage(window: &Window, weight: &Tensor, input: &Fact) -> Option<Vec<f64>> {
    let frame = window.frame(input.dims.get(2..)?, weight.dims.get(2..)?, false).ok()?;
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

/// `Σ (W − Ŵ)·E[x]` per output channel of a convolution with weights `[O, I/groups, taps…]`.
fn convolution(
    weights: &[f32],
    rounded: &[f32],
    dims: &[usize],
    groups: usize,
    taps: &[f64],
    input: &[f64],
) -> Vec<f64> {
    let (outputs, per_group) = (dims[0], dims[1]);
    let row = per_group * taps.len();
    let shift = |o: usize| {
        let first = o / (outputs / groups).max(1) * per_group;
        let pairs = weights[o * row..(o + 1) * row].iter().zip(&rounded[o * row..(o + 1) * row]);
        let term = |(i, (&w, &r)): (usize, (&f32, &f32))| {
            let channel = first + i / taps.len();
            taps[i % taps.len()] * ((f64::from(w) - f64::from(r)) * input.get(channel).unwrap_or(&f64::NAN))
        };
        pairs.enumerate().map(term).sum()
    };
    (0..outputs).map(shift).collect()
}

/// The same for a matrix product with weights `[K, N]`, or `[N, K]` if transposed.
fn product(weights: &[f32], rounded: &[f32], dims: &[usize], transposed: bool, input: &[f64]) -> Vec<f64> {
    let (inputs, outputs) = if transposed { (dims[1], dims[0]) } else { (dims[0], dims[1]) };
    let at = |k: usize, n: usize| if transposed { n * inputs + k } else { k * outputs + n };
    let term = |k: usize, n: usize| {
        (f64::from(weights[at(k, n)]) - f64::from(rounded[at(k, n)])) * input.get(k).unwrap_or(&f64::NAN)
    };
    (0..outputs).map(|n| (0..inputs).map(|k| term(k, n)).sum()).collect()
}

#[cfg(test)]
mod tests;
