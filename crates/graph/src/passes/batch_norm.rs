//! BatchNormalization as part of a convolution or matrix product: `y = a·x + b` per channel with `a = γ/√(σ² + ε)`, `b = β − a·μ`.

use super::only_reader;
use crate::{
    error::GraphError,
    graph::Graph,
    op::{Op, Role},
    ops::window::AutoPad,
    tensor::Tensor,
};
use std::sync::Arc;

/// `a` and `b` of a BatchNormalization whose statistics are constants, in f64.
fn affine(graph: &Graph, node: usize) -> Option<(Vec<f64>, Vec<f64>)> {
    let node = &graph.nodes[node];
    let Op::BatchNormalization(op) = &node.op else { return None };
    let values = |i: usize| -> Option<Vec<f64>> {
        let tensor = graph.constant(node.input(i)?)?;
        Some(tensor.as_f32()?.iter().map(|&v| v.into()).collect())
    };
    let (gamma, beta, mean, variance) = (values(1)?, values(2)?, values(3)?, values(4)?);
    let scale = |(g, v): (&f64, &f64)| g / (v + f64::from(op.epsilon)).sqrt();
    let a: Vec<f64> = gamma.iter().zip(&variance).map(scale).collect();
    let b = beta.iter().zip(&a).zip(&mean).map(|((b, a), m)| b - a * m).collect();
    (node.outputs.iter().skip(1).all(String::is_empty)).then_some((a, b))
}

/// The layer's weight name and the number of output channels along the axis that its quantization rule names.
fn weight_of(graph: &Graph, layer: usize) -> Option<(String, usize, usize)> {
    let node = &graph.nodes[layer];
    let Role::Weight { channel_axis } = node.op.def().quant_rule().role(1) else { return None };
    let weight = node.input(1)?;
    let tensor = graph.constant(weight)?;
    tensor.as_f32()?;
    Some((weight.into(), channel_axis, *tensor.dims.get(channel_axis)?))
}

/// Whether `a·layer(x) + b` is a layer of the same kind with other weights.
fn absorbs_scale(op: &Op) -> bool {
    match op {
        Op::Conv(_) => true,
        Op::ConvTranspose(conv) => conv.group == 1,
        Op::Gemm(gemm) => gemm.alpha == 1.0 && gemm.beta == 1.0,
        _ => false,
    }
}

/// Multiplies the weight along `axis` by `factor` and returns it as a new constant next to the old one.
fn scaled_weight(graph: &mut Graph, name: &str, axis: usize, factor: impl Fn(usize) -> f64) -> Option<String> {
    let tensor = graph.constant(name)?.clone();
    let inner: usize = tensor.dims[axis + 1..].iter().product();
    let channels = tensor.dims[axis];
    let scaled = |(i, &w): (usize, &f32)| (f64::from(w) * factor(i / inner % channels)) as f32;
    let data = tensor.as_f32()?.iter().enumerate().map(scaled).collect();
    Some(store(graph, name, Tensor::f32(&tensor.dims, data)))
}

/// Stores a changed constant: under its old name if one node reads it, else under a fresh one.
fn store(graph: &mut Graph, name: &str, tensor: Tensor) -> String {
    let target = if only_reader(graph, name).is_some() { name.to_string() } else { graph.fresh_name(name) };
    graph.constants.insert(target.clone(), Arc::new(tensor));
    target
}

/// layer → BatchNormalization becomes layer; it writes what the BatchNormalization wrote.
pub(super) fn fold_backward(graph: &mut Graph) -> Result<usize, GraphError> {
    let mut folded = 0;
    for layer in 0..graph.nodes.len() {
        if graph.nodes[layer].outputs.is_empty() || !absorbs_scale(&graph.nodes[layer].op) {
            continue;
        }
        let Some(norm) = only_reader(graph, graph.nodes[layer].output()) else { continue };
        if graph.nodes[norm].input(0) != Some(graph.nodes[layer].output()) {
            continue;
        }
        let Some((a, b)) = affine(graph, norm) else { continue };
        let Some((weight, axis, channels)) = weight_of(graph, layer) else { continue };
        let old_bias = match graph.nodes[layer].input(2) {
            None => Some(vec![0.0; channels]),
            Some(name) => graph.constant(name).and_then(|t| t.as_f32().map(<[f32]>::to_vec)),
        };
        let Some(old_bias) = old_bias.filter(|bias| bias.len() == channels && a.len() == channels) else { continue };
        let Some(weight) = scaled_weight(graph, &weight, axis, |c| a[c]) else { continue };
        let bias = (0..channels).map(|c| (a[c] * f64::from(old_bias[c]) + b[c]) as f32).collect();
        set_bias(graph, layer, &weight, Tensor::f32(&[channels], bias));
        let output = std::mem::take(&mut graph.nodes[norm].outputs);
        graph.nodes[layer].inputs[1] = weight;
        graph.nodes[layer].outputs = vec![output[0].clone()];
        folded += 1;
    }
    graph.nodes.retain(|n| !n.outputs.is_empty());
    Ok(folded)
}

/// Gives `layer` a bias of its own, named after the old bias or the weight.
fn set_bias(graph: &mut Graph, layer: usize, weight: &str, bias: Tensor) {
    let name = match graph.nodes[layer].input(2).map(String::from) {
        Some(old) => store(graph, &old, bias),
        None => {
            let fresh = graph.fresh_name(&format!("{weight}_bias"));
            graph.constants.insert(fresh.clone(), Arc::new(bias));
            fresh
        }
    };
    let inputs = &mut graph.nodes[layer].inputs;
    inputs.resize(inputs.len().max(3), String::new());
    inputs[2] = name;
}

/// BatchNormalization → layer becomes layer, where that is exact: `W(a·x + b) = (W·a)·x + W·b` needs no zero padding around
/// `a·x + b` (or `b = 0`), one group, and no other reader.
pub(super) fn fold_forward(graph: &mut Graph) -> Result<usize, GraphError> {
    let mut folded = 0;
    for norm in 0..graph.nodes.len() {
        if graph.nodes[norm].outputs.is_empty() {
            continue;
        }
        let Some((a, b)) = affine(graph, norm) else { continue };
        let Some(layer) = only_reader(graph, graph.nodes[norm].output()) else { continue };
        let Op::Conv(conv) = &graph.nodes[layer].op else { continue };
        let padding_free = matches!(conv.window.auto_pad, AutoPad::NotSet | AutoPad::Valid);
        let unpadded = conv.window.pads.iter().all(|&p| p == 0) && padding_free;
        if conv.group != 1 || !(unpadded || b.iter().all(|&b| b == 0.0)) {
            continue;
        }
        let Some((weight, _, outputs)) = weight_of(graph, layer) else { continue };
        let Some(tensor) = graph.constant(&weight).cloned() else { continue };
        let old_bias = match graph.nodes[layer].input(2) {
            None => Some(vec![0.0; outputs]),
            Some(name) => graph.constant(name).and_then(|t| t.as_f32().map(<[f32]>::to_vec)),
        };
        let (Some(values), Some(old_bias)) = (tensor.as_f32(), old_bias) else { continue };
        if tensor.dims.get(1) != Some(&a.len()) || old_bias.len() != outputs {
            continue;
        }
        let taps: usize = tensor.dims[2..].iter().product();
        let per_output = a.len() * taps;
        let shift = |o: usize| -> f64 {
            let row = &values[o * per_output..(o + 1) * per_output];
            row.iter().enumerate().map(|(i, &w)| f64::from(w) * b[i / taps]).sum()
        };
        let bias = (0..outputs).map(|o| (f64::from(old_bias[o]) + shift(o)) as f32).collect();
        let Some(weight) = scaled_weight(graph, &weight, 1, |c| a[c]) else { continue };
        set_bias(graph, layer, &weight, Tensor::f32(&[outputs], bias));
        let input = graph.nodes[norm].inputs[0].clone();
        graph.nodes[norm].outputs.clear();
        graph.nodes[layer].inputs[0] = input;
        graph.nodes[layer].inputs[1] = weight;
        folded += 1;
    }
    graph.nodes.retain(|n| !n.outputs.is_empty());
    Ok(folded)
}
