//! An addition of a constant behind a convolution or matrix product without bias becomes its bias; MatMul then becomes Gemm.

use super::only_reader;
use crate::{
    error::GraphError,
    graph::Graph,
    op::{Op, Role},
    ops::Gemm,
    tensor::Tensor,
};
use std::sync::Arc;

pub(super) fn fold(graph: &mut Graph) -> Result<usize, GraphError> {
    let mut folded = 0;
    for layer in 0..graph.nodes.len() {
        let node = &graph.nodes[layer];
        let is_layer = matches!(node.op, Op::Conv(_) | Op::MatMul(_)) || is_plain_gemm(&node.op);
        if node.outputs.is_empty() || !is_layer || node.input(2).is_some() {
            continue;
        }
        let Some(add) = only_reader(graph, node.output()) else { continue };
        let Op::Add(_) = graph.nodes[add].op else { continue };
        let Some(constant) = graph.nodes[add].inputs.iter().find(|name| *name != node.output()).cloned() else {
            continue;
        };
        let Role::Weight { channel_axis } = node.op.def().quant_rule().role(1) else { continue };
        let weight = node.input(1).and_then(|name| graph.constant(name));
        let Some(channels) = weight.and_then(|w| w.dims.get(channel_axis).copied()) else { continue };
        let matrices = weight.is_some_and(|w| w.dims.len() == 2) && is_matrix(graph, &node.inputs[0]);
        let rank_fits = !matches!(node.op, Op::MatMul(_)) || matrices;
        // A convolution's channels are followed by the spatial axes, a matrix product's by none.
        let trailing = if let Op::Conv(_) = node.op { weight.map_or(0, |w| w.dims.len() - 2) } else { 0 };
        let Some(bias) = graph.constant(&constant).and_then(|t| per_channel(t, channels, trailing)) else { continue };
        if !rank_fits {
            continue;
        }
        let name = graph.fresh_name(&format!("{constant}_bias"));
        graph.constants.insert(name.clone(), Arc::new(bias));
        if let Op::MatMul(_) = graph.nodes[layer].op {
            graph.nodes[layer].op = Gemm { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: false }.into();
        }
        graph.nodes[layer].inputs.truncate(2);
        graph.nodes[layer].inputs.push(name);
        graph.nodes[layer].outputs = std::mem::take(&mut graph.nodes[add].outputs);
        folded += 1;
    }
    graph.nodes.retain(|n| !n.outputs.is_empty());
    Ok(folded)
}

/// Every convolution and matrix product with a constant weight has a bias of a number for each channel, for corrections to go into:
/// zeros if it had none, copies if it had a single one.
pub(super) fn complete(graph: &mut Graph) -> Result<usize, GraphError> {
    let mut added = 0;
    for layer in 0..graph.nodes.len() {
        let node = &graph.nodes[layer];
        if !(matches!(node.op, Op::Conv(_)) || is_plain_gemm(&node.op)) {
            continue;
        }
        let Role::Weight { channel_axis } = node.op.def().quant_rule().role(1) else { continue };
        let Some(weight) = node.input(1).map(String::from) else { continue };
        let Some(&channels) = graph.constant(&weight).and_then(|w| w.dims.get(channel_axis)) else { continue };
        let value = match node.input(2).map(|bias| graph.constant(bias)) {
            None => 0.0,
            Some(Some(one)) if one.dims.len() < 2 && channels > 1 => match one.as_f32() {
                Some(&[value]) => value,
                _ => continue,
            },
            Some(_) => continue,
        };
        let name = graph.fresh_name(&format!("{weight}_bias"));
        graph.constants.insert(name.clone(), Arc::new(Tensor::f32(&[channels], vec![value; channels])));
        graph.nodes[layer].inputs.truncate(2);
        graph.nodes[layer].inputs.push(name);
        added += 1;
    }
    Ok(added)
}

/// Whether `name` certainly has two axes.
fn is_matrix(graph: &Graph, name: &str) -> bool {
    let declared = graph.inputs.iter().any(|v| v.name == name && v.dims.as_ref().is_some_and(|d| d.len() == 2));
    let producer = graph.nodes.iter().find(|n| n.outputs.iter().any(|o| o == name));
    declared || producer.is_some_and(|n| matches!(n.op, Op::Flatten(_) | Op::Gemm(_)))
}

fn is_plain_gemm(op: &Op) -> bool {
    matches!(op, Op::Gemm(gemm) if gemm.alpha == 1.0 && gemm.beta == 1.0)
}

/// `tensor` as one number per channel if it broadcasts like that against `[…, channels, 1 × trailing]`.
fn per_channel(tensor: &Tensor, channels: usize, trailing: usize) -> Option<Tensor> {
    let values = tensor.as_f32()?;
    let split = tensor.dims.len().checked_sub(trailing)?;
    let (leading, spatial) = tensor.dims.split_at(split);
    let spatial_ones = spatial.iter().all(|&d| d == 1);
    let fits = spatial_ones && leading.last() == Some(&channels) && values.len() == channels;
    fits.then(|| Tensor::f32(&[channels], values.to_vec()))
}
