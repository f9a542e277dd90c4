//! A neutral `·1 + 0` per channel behind every last convolution, for output scaling to fill.

use super::only_reader;
use crate::{
    error::GraphError,
    graph::{Graph, Node},
    op::Op,
    ops::{Add, Mul},
    tensor::Tensor,
};
use std::sync::Arc;

/// The place behind a last convolution where its output is scaled back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputSlot {
    /// Position of the convolution.
    pub layer: usize,
    /// What the convolution, or the Relu behind it, writes.
    pub tensor: String,
    /// Whether there is such a Relu.
    pub rectified: bool,
    /// Name of the per-channel factor.
    pub scale: String,
    /// Name of the per-channel summand.
    pub offset: String,
}

const SCALE: &str = "_output_scale";
const OFFSET: &str = "_output_offset";

/// Inserts the slots.
pub(super) fn insert(graph: &mut Graph) -> Result<usize, GraphError> {
    let mut leads_to_layer = vec![false; graph.nodes.len()];
    let (consumers, producers) = (graph.consumers(), graph.producers());
    let is_layer = |i: usize| {
        matches!(graph.nodes[i].op, Op::Conv(_) | Op::ConvTranspose(_) | Op::Gemm(_) | Op::MatMul(_) | Op::Opaque(_))
            && !graph.decodes_boxes(i, &producers)
    };
    for i in (0..graph.nodes.len()).rev() {
        let readers = graph.nodes[i].outputs.iter().filter_map(|o| consumers.get(o.as_str())).flatten();
        leads_to_layer[i] = readers.into_iter().any(|&r| is_layer(r) || leads_to_layer[r]);
    }
    let candidates: Vec<bool> =
        leads_to_layer.iter().enumerate().map(|(i, leads_on)| !leads_on && is_layer(i)).collect();
    let mut inserted = 0;
    for (layer, last) in candidates.into_iter().enumerate() {
        let node = &graph.nodes[layer];
        let channels = node.input(1).and_then(|w| graph.constant(w)).filter(|w| w.dims.len() == 4).map(|w| w.dims[0]);
        let (Op::Conv(_), Some(channels), true) = (&node.op, channels, last) else { continue };
        let reader = only_reader(graph, node.output());
        let writer = match reader.map(|r| &graph.nodes[r].op) {
            Some(Op::Relu(_)) => reader.expect("it was just looked at"),
            // Other activations are absorbed with bounds that a scale would move.
            Some(Op::Clip(_)) => continue,
            _ => layer,
        };
        let output = graph.nodes[writer].output().to_string();
        let raw = graph.fresh_name(&format!("{output}_unscaled"));
        let scaled = graph.fresh_name(&format!("{output}_scaled"));
        let (scale, offset) = (format!("{raw}{SCALE}"), format!("{raw}{OFFSET}"));
        graph.nodes[writer].outputs[0].clone_from(&raw);
        let plane = |value: f32| Arc::new(Tensor::f32(&[channels, 1, 1], vec![value; channels]));
        graph.constants.extend([(scale.clone(), plane(1.0)), (offset.clone(), plane(0.0))]);
        graph.nodes.extend([
            Node { name: scale.clone(), op: Mul.into(), inputs: vec![raw, scale], outputs: vec![scaled.clone()] },
            Node { name: offset.clone(), op: Add.into(), inputs: vec![scaled, offset], outputs: vec![output] },
        ]);
        inserted += 1;
    }
    Ok(inserted)
}

/// The slots of a prepared graph.
pub fn output_slots(graph: &Graph) -> Vec<OutputSlot> {
    let producers = graph.producers();
    let slot = |node: &Node| {
        let tensor = node.inputs[0].clone();
        let scale = node.inputs.get(1).filter(|name| **name == format!("{tensor}{SCALE}"))?.clone();
        let writer = *producers.get(tensor.as_str())?;
        let rectified = matches!(graph.nodes[writer].op, Op::Relu(_));
        let layer = if rectified { *producers.get(graph.nodes[writer].inputs[0].as_str())? } else { writer };
        Some(OutputSlot { layer, rectified, scale, offset: format!("{tensor}{OFFSET}"), tensor })
    };
    graph.nodes.iter().filter(|n| matches!(n.op, Op::Mul(_))).filter_map(slot).collect()
}

/// The graph without neutral slots of either kind; tensors keep the names that outputs and readers know.
pub fn drop_neutral_slots(graph: &Graph) -> Graph {
    let mut graph = graph.clone();
    for slot in output_slots(&graph) {
        for (constant, neutral) in [(&slot.offset, 0.0), (&slot.scale, 1.0)] {
            let values = graph.constant(constant).and_then(|t| t.as_f32());
            if !values.is_some_and(|v| v.iter().all(|&x| x == neutral)) {
                continue;
            }
            let Some(position) = graph.nodes.iter().position(|n| n.inputs.get(1) == Some(constant)) else { continue };
            let node = graph.nodes.remove(position);
            let Some(writer) = graph.nodes.iter_mut().find(|n| n.outputs.contains(&node.inputs[0])) else { continue };
            for name in writer.outputs.iter_mut().filter(|name| **name == node.inputs[0]) {
                name.clone_from(&node.outputs[0]);
            }
            graph.redirect(&node.inputs[0], &node.outputs[0]);
        }
    }
    super::silu_slots::drop_neutral(&mut graph);
    graph.prune();
    graph
}
