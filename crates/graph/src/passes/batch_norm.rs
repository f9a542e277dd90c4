//! BatchNormalization as part of a convolution or matrix product.

use super::{
    affine::{Affine, bias_of, scaled_weight, set_bias, weight_of},
    only_reader,
};
use crate::{error::GraphError, graph::Graph, op::Op, ops::window::AutoPad, tensor::Tensor};

/// layer → BatchNormalization becomes layer; it writes what the BatchNormalization wrote.
pub(super) fn fold_backward(graph: &mut Graph) -> Result<usize, GraphError> {
    let mut folded = 0;
    for layer in 0..graph.nodes.len() {
        if graph.nodes[layer].outputs.is_empty() {
            continue;
        }
        let Some(norm) = only_reader(graph, graph.nodes[layer].output()) else { continue };
        if graph.nodes[norm].input(0) != Some(graph.nodes[layer].output()) {
            continue;
        }
        let Some(affine) = Affine::of_norm(graph, norm) else { continue };
        if affine.fold_into_layer(graph, layer) {
            let output = std::mem::take(&mut graph.nodes[norm].outputs);
            graph.nodes[layer].outputs = vec![output[0].clone()];
            folded += 1;
        }
    }
    graph.nodes.retain(|n| !n.outputs.is_empty());
    Ok(folded)
}

/// BatchNormalization → layer becomes layer, where that is exact: `W(a·x + b) = (W·a)·x + W·b` needs no zero padding around
/// `a·x + b` (or `b = 0`), one group, and no other reader.
pub(super) fn fold_forward(graph: &mut Graph) -> Result<usize, GraphError> {
    let mut folded = 0;
    for norm in 0..graph.nodes.len() {
        if graph.nodes[norm].outputs.is_empty() {
            continue;
        }
        let Some(Affine { a, b }) = Affine::of_norm(graph, norm) else { continue };
        let Some(layer) = only_reader(graph, graph.nodes[norm].output()) else { continue };
        let Op::Conv(conv) = &graph.nodes[layer].op else { continue };
        let padding_free = matches!(conv.window.auto_pad, AutoPad::NotSet | AutoPad::Valid);
        let unpadded = conv.window.pads.iter().all(|&p| p == 0) && padding_free;
        if conv.group != 1 || !(unpadded || b.iter().all(|&b| b == 0.0)) {
            continue;
        }
        let Some((weight, _, outputs)) = weight_of(graph, layer) else { continue };
        let Some(tensor) = graph.constant(&weight).cloned() else { continue };
        let (Some(values), Some(old_bias)) = (tensor.as_f32(), bias_of(graph, layer, outputs)) else { continue };
        if tensor.dims.get(1) != Some(&a.len()) {
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
