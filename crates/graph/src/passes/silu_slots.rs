//! A neutral `·1` per channel in front of the Sigmoid of each `x · Sigmoid(x)` between two convolutions, for equalization to fill:
//! `x' · Sigmoid(s·x')` with `x' = x / s` is `x · Sigmoid(x)` with channel `c` divided by `s_c`.

use super::only_reader;
use crate::{
    error::GraphError,
    graph::{Graph, Node},
    op::Op,
    ops::Mul,
    tensor::Tensor,
};
use std::sync::Arc;

/// A SiLU between two convolutions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiluSlot {
    /// Position of the convolution that writes `tensor`.
    pub first: usize,
    /// Position of the convolution that reads the product.
    pub second: usize,
    /// `x`
    pub tensor: String,
    /// Name of the per-channel factor.
    pub scale: String,
}

const SCALE: &str = "_silu_scale";
const SCALED: &str = "_silu_input";

/// Inserts the slots.
pub(super) fn insert(graph: &mut Graph) -> Result<usize, GraphError> {
    let mut inserted = 0;
    for gate in 0..graph.nodes.len() {
        let Some((first, channels)) = silu_between_layers(graph, gate) else { continue };
        let tensor = graph.nodes[first].output().to_string();
        let (scale, scaled) = (format!("{tensor}{SCALE}"), format!("{tensor}{SCALED}"));
        graph.constants.insert(scale.clone(), Arc::new(Tensor::f32(&[channels, 1, 1], vec![1.0; channels])));
        graph.nodes[gate].inputs[0].clone_from(&scaled);
        graph.nodes.push(Node {
            name: scale.clone(),
            op: Mul.into(),
            inputs: vec![tensor, scale],
            outputs: vec![scaled],
        });
        inserted += 1;
    }
    Ok(inserted)
}

/// The convolution in front of the SiLU whose Sigmoid is `gate`, and its channels, if the product has one reader, a convolution.
fn silu_between_layers(graph: &Graph, gate: usize) -> Option<(usize, usize)> {
    let node = &graph.nodes[gate];
    let Op::Sigmoid(_) = node.op else { return None };
    let tensor = node.input(0)?;
    let product = &graph.nodes[only_reader(graph, node.output())?];
    let fits = matches!(product.op, Op::Mul(_)) && product.inputs.iter().all(|i| i == tensor || i == node.output());
    let readers = graph.nodes.iter().filter(|n| n.present_inputs().any(|i| i == tensor)).count();
    let second = &graph.nodes[only_reader(graph, product.output())?];
    if !fits || readers != 2 || graph.is_output(tensor) || !matches!(second.op, Op::Conv(_)) {
        return None;
    }
    let first = graph.nodes.iter().position(|n| n.outputs.iter().any(|o| o == tensor))?;
    let weight = graph.nodes[first].input(1).and_then(|w| graph.constant(w)).filter(|w| w.dims.len() == 4)?;
    matches!(graph.nodes[first].op, Op::Conv(_)).then(|| (first, weight.dims[0]))
}

/// The slots of a prepared graph.
pub fn silu_slots(graph: &Graph) -> Vec<SiluSlot> {
    let slot = |node: &Node| {
        let tensor = node.inputs[0].clone();
        let scale = node.inputs.get(1).filter(|name| **name == format!("{tensor}{SCALE}"))?.clone();
        let gate = &graph.nodes[only_reader(graph, node.output())?];
        let product = &graph.nodes[only_reader(graph, gate.output())?];
        let second = only_reader(graph, product.output())?;
        let first = graph.nodes.iter().position(|n| n.outputs.contains(&tensor))?;
        Some(SiluSlot { first, second, tensor, scale })
    };
    graph.nodes.iter().filter(|n| matches!(n.op, Op::Mul(_))).filter_map(slot).collect()
}

/// Removes the multiplications whose factors are all one.
pub(super) fn drop_neutral(graph: &mut Graph) {
    for slot in silu_slots(graph) {
        let neutral = graph.constant(&slot.scale).and_then(|t| t.as_f32()).is_some_and(|v| v.iter().all(|&s| s == 1.0));
        let position = graph.nodes.iter().position(|n| n.inputs.get(1) == Some(&slot.scale));
        if let (true, Some(position)) = (neutral, position) {
            let node = graph.nodes.remove(position);
            graph.redirect(&node.outputs[0], &slot.tensor);
        }
    }
}
