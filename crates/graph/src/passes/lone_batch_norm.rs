//! BatchNormalizations that no layer stands directly before: moved to where one does, or made layers of their own.

use super::{is_spatial, only_reader};
use crate::{
    error::GraphError,
    graph::{Graph, Node},
    op::{Op, Role},
    ops::{BatchNormalization, Conv, window::Window},
    tensor::Tensor,
};
use std::sync::Arc;

/// Moves BatchNormalizations in front of the Concat or Flatten that stands between them and layers.
pub(super) fn move_to_layers(graph: &mut Graph) -> Result<usize, GraphError> {
    let mut moved = 0;
    for norm in 0..graph.nodes.len() {
        let Op::BatchNormalization(op) = graph.nodes[norm].op.clone() else { continue };
        let input = graph.nodes[norm].inputs[0].clone();
        let Some(joint) = graph.nodes.iter().position(|n| n.outputs[..] == [input.clone()]) else { continue };
        let joins = matches!(&graph.nodes[joint].op, Op::Concat(concat) if concat.axis == 1);
        let flattens = matches!(&graph.nodes[joint].op, Op::Flatten(flatten) if flatten.axis == 1);
        if only_reader(graph, &input) != Some(norm) || !(joins || flattens) {
            continue;
        }
        let parts = if joins { graph.nodes[joint].inputs.clone() } else { vec![graph.nodes[joint].inputs[0].clone()] };
        let widths: Option<Vec<usize>> = parts.iter().map(|part| layer_channels(graph, part, joint)).collect();
        // Where a layer has as many channels as its flattened output has columns, there is one pixel.
        let total = graph.nodes[norm].input(1).and_then(|name| graph.constant(name)).map(|t| t.len());
        let Some(widths) = widths.filter(|w| Some(w.iter().sum::<usize>()) == total) else { continue };
        let parameters: Option<Vec<Vec<f32>>> = (1..5)
            .map(|i| {
                Some(graph.constant(graph.nodes[norm].input(i)?)?.as_f32().filter(|v| Some(v.len()) == total)?.to_vec())
            })
            .collect();
        let Some(parameters) = parameters else { continue };
        let mut start = 0;
        for (i, (part, width)) in parts.iter().zip(widths).enumerate() {
            let normalized = graph.fresh_name(&format!("{part}_normalized"));
            let mut inputs = vec![part.clone()];
            for (values, kind) in parameters.iter().zip(["scale", "shift", "mean", "variance"]) {
                let name = graph.fresh_name(&format!("{normalized}_{kind}"));
                let slice = Tensor::f32(&[width], values[start..start + width].to_vec());
                graph.constants.insert(name.clone(), Arc::new(slice));
                inputs.push(name);
            }
            let name = graph.fresh_name(&format!("{}_{i}", graph.nodes[norm].name));
            graph.nodes[joint].inputs[i].clone_from(&normalized);
            graph.nodes.push(Node { name, op: op.clone().into(), inputs, outputs: vec![normalized] });
            start += width;
        }
        graph.nodes[joint].outputs = std::mem::take(&mut graph.nodes[norm].outputs);
        graph.nodes[joint].outputs.truncate(1);
        moved += 1;
    }
    graph.nodes.retain(|n| !n.outputs.is_empty());
    Ok(moved)
}

/// The output channels of the convolution or matrix product that writes `name`, which only `reader` reads, once.
fn layer_channels(graph: &Graph, name: &str, reader: usize) -> Option<usize> {
    let layer = graph.nodes.iter().find(|n| n.outputs.iter().any(|o| o == name))?;
    let once = graph.nodes[reader].inputs.iter().filter(|input| *input == name).count() == 1;
    let Role::Weight { channel_axis } = layer.op.def().quant_rule().role(1) else { return None };
    let folds = matches!(layer.op, Op::Conv(_) | Op::Gemm(_)) && once && only_reader(graph, name) == Some(reader);
    folds.then(|| graph.constant(layer.input(1)?)?.dims.get(channel_axis).copied())?
}

/// A BatchNormalization of images between layers becomes a 1×1 convolution with one channel per group, which targets
/// compute in integers.
pub(super) fn to_depthwise(graph: &mut Graph) -> Result<usize, GraphError> {
    let mut changed = 0;
    for norm in 0..graph.nodes.len() {
        let Op::BatchNormalization(op) = graph.nodes[norm].op.clone() else { continue };
        let input = graph.nodes[norm].inputs[0].clone();
        if !is_spatial(graph, &input) || !leads_to_layer(graph, graph.nodes[norm].output()) {
            continue;
        }
        let Some([weight, bias]) = factors(graph, &op, norm) else { continue };
        let channels = bias.len();
        let stem = graph.nodes[norm].output().to_string();
        let mut inputs = vec![input];
        for (kind, tensor) in [("factor", weight), ("shift", bias)] {
            let name = graph.fresh_name(&format!("{stem}_{kind}"));
            graph.constants.insert(name.clone(), Arc::new(tensor));
            inputs.push(name);
        }
        graph.nodes[norm].op = Conv { window: Window::square(1, 1, 0), group: channels }.into();
        graph.nodes[norm].inputs = inputs;
        graph.nodes[norm].outputs.truncate(1);
        changed += 1;
    }
    Ok(changed)
}

/// Weight `[C, 1, 1, 1]` and bias `[C]` of the convolution that `norm` is, if its parameters are constants.
fn factors(graph: &Graph, op: &BatchNormalization, norm: usize) -> Option<[Tensor; 2]> {
    let values = |i: usize| graph.constant(graph.nodes[norm].input(i)?)?.as_f32();
    let parameters = [values(1)?, values(2)?, values(3)?, values(4)?];
    let channels = parameters[0].len();
    let one_output = graph.nodes[norm].outputs.iter().skip(1).all(String::is_empty);
    if !one_output || parameters.iter().any(|p| p.len() != channels) {
        return None;
    }
    let [scale, shift] = op.scale_shift(parameters);
    Some([Tensor::f32(&[channels, 1, 1, 1], scale), Tensor::f32(&[channels], shift)])
}

/// Whether a convolution or matrix product follows `name`, however far behind.
fn leads_to_layer(graph: &Graph, name: &str) -> bool {
    let consumers = graph.consumers();
    let (mut seen, mut open) = (vec![false; graph.nodes.len()], vec![name]);
    while let Some(name) = open.pop() {
        for &reader in consumers.get(name).map_or(&[][..], Vec::as_slice) {
            match graph.nodes[reader].op {
                Op::Conv(_) | Op::Gemm(_) | Op::MatMul(_) => return true,
                Op::Shape(_) => {}
                _ if seen[reader] => {}
                _ => open.extend(graph.nodes[reader].outputs.iter().map(String::as_str)),
            }
            seen[reader] = true;
        }
    }
    false
}

#[cfg(test)]
mod tests;
