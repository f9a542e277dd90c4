//! An Identity between a tensor and the layers that multiply it, where something else reads the tensor too.
//!
//! Low-bit networks round what layers multiply, and leave precise what is added, pooled or put out. A tensor that is read both ways
//! has two grids: its own, and that of the slot. All layers that read one tensor share one slot. A slot where both grids would have
//! the same width is dropped before placement.

use super::apply;
use crate::{
    error::GraphError,
    graph::{Graph, Node},
    op::{Op, OutRule},
    ops::Identity,
};
use std::collections::{BTreeSet, HashMap};

/// What the slot of a tensor writes is called after it.
const SUFFIX: &str = "_layer_input";

/// The same graph with a slot behind every tensor that layers and others read, directly or through operators that only move elements.
///
/// The tensor `x` gets the slot `x_layer_input`. Folding a BatchNormalization into the layer before it changes nothing about which
/// tensors have one, since the tensor between the two has a single reader.
///
/// # Errors
/// [`GraphError`] if the graph is malformed.
pub fn with_layer_input_slots(graph: &Graph) -> Result<Graph, GraphError> {
    Ok(apply(graph, &[("layers given a slot at their input", insert)])?.0)
}

/// Whether `node` is such a slot.
pub fn is_layer_input_slot(node: &Node) -> bool {
    matches!(node.op, Op::Identity(_)) && node.output().strip_suffix(SUFFIX) == node.input(0)
}

/// The graph without the slots that `neutral` says, by the tensor they write, do nothing.
pub fn drop_layer_input_slots(graph: &Graph, neutral: impl Fn(&str) -> bool) -> Graph {
    let mut graph = graph.clone();
    let drops = |node: &Node| is_layer_input_slot(node) && neutral(node.output());
    let (dropped, kept) = std::mem::take(&mut graph.nodes).into_iter().partition(drops);
    graph.nodes = kept;
    for slot in dropped {
        graph.redirect(slot.output(), &slot.inputs[0]);
    }
    graph
}

/// Inserts the slots.
pub(super) fn insert(graph: &mut Graph) -> Result<usize, GraphError> {
    let readers = Readers { graph, producers: graph.producers(), consumers: graph.consumers() };
    let multiplied: BTreeSet<&str> =
        graph.nodes.iter().filter(|node| is_layer(graph, node)).map(|node| node.inputs[0].as_str()).collect();
    let shared = |name: &&str| graph.constant(name).is_none() && readers.other_than_layers(readers.origin(name));
    let tensors: Vec<String> = multiplied.into_iter().filter(shared).map(String::from).collect();
    for tensor in &tensors {
        let slot = format!("{tensor}{SUFFIX}");
        for i in 0..graph.nodes.len() {
            if is_layer(graph, &graph.nodes[i]) && graph.nodes[i].inputs[0] == *tensor {
                graph.nodes[i].inputs[0].clone_from(&slot);
            }
        }
        graph.nodes.push(Node {
            name: slot.clone(),
            op: Identity.into(),
            inputs: vec![tensor.clone()],
            outputs: vec![slot],
        });
    }
    Ok(tensors.len())
}

/// Whether `node` multiplies its first input by a constant.
fn is_layer(graph: &Graph, node: &Node) -> bool {
    matches!(node.op, Op::Conv(_) | Op::ConvTranspose(_) | Op::Gemm(_) | Op::MatMul(_))
        && node.input(1).is_some_and(|weight| graph.constant(weight).is_some())
}

struct Readers<'a> {
    graph: &'a Graph,
    producers: HashMap<&'a str, usize>,
    consumers: HashMap<&'a str, Vec<usize>>,
}

impl<'a> Readers<'a> {
    /// Whether `node` only moves elements, so that its output has the grid of its input.
    fn moves(&self, node: &Node) -> bool {
        node.op.def().quant_rule().output == OutRule::SameAsInput && !is_layer_input_slot(node)
    }

    /// The tensor whose elements `tensor` holds.
    fn origin(&self, mut tensor: &'a str) -> &'a str {
        while let Some(mover) = self.producers.get(tensor).map(|&i| &self.graph.nodes[i]).filter(|n| self.moves(n)) {
            tensor = &mover.inputs[0];
        }
        tensor
    }

    /// Whether something else than a layer reads the elements of `tensor`. To read the shape only is not to read them.
    fn other_than_layers(&self, tensor: &str) -> bool {
        let reads = |node: &Node| match &node.op {
            Op::Shape(_) => false,
            _ if is_layer_input_slot(node) => false,
            _ if self.moves(node) && node.inputs[0] == tensor => node.outputs.iter().any(|o| self.other_than_layers(o)),
            _ => node.inputs[0] != tensor || !is_layer(self.graph, node),
        };
        let readers = self.consumers.get(tensor).map_or(&[][..], Vec::as_slice);
        self.graph.is_output(tensor) || readers.iter().any(|&i| reads(&self.graph.nodes[i]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        attrs::{Attr, Attrs},
        graph::ValueInfo,
        passes::fold,
        tensor::{DType, Tensor},
    };
    use std::sync::Arc;

    /// A graph from `x` to `outputs`; `w` is a weight, `s` are the four parameters of a normalization.
    fn graph(nodes: &[(&str, &[&str], &str)], outputs: &[&str]) -> Graph {
        let value = |name: &str| ValueInfo { name: name.into(), dtype: DType::F32, dims: None };
        let node = |(op, inputs, output): &(&str, &[&str], &str)| {
            let attrs = match *op {
                "MaxPool" => Attrs::default().with("kernel_shape", Attr::Ints(vec![1, 1])),
                _ => Attrs::default(),
            };
            Node {
                name: output.to_string(),
                op: Op::from_attrs(op, &attrs).unwrap(),
                inputs: inputs.iter().map(|s| s.to_string()).collect(),
                outputs: vec![output.to_string()],
            }
        };
        let constants = [("w", Tensor::f32(&[2, 2, 1, 1], vec![0.5; 4])), ("s", Tensor::f32(&[2], vec![0.5; 2]))];
        Graph {
            nodes: nodes.iter().map(node).collect(),
            inputs: vec![value("x")],
            outputs: outputs.iter().map(|name| value(name)).collect(),
            constants: constants.map(|(name, tensor)| (name.to_string(), Arc::new(tensor))).into(),
            ..Graph::default()
        }
    }

    fn slots(graph: &Graph) -> Vec<&str> {
        graph.nodes.iter().filter(|n| is_layer_input_slot(n)).map(Node::output).collect()
    }

    #[test]
    fn tensors_that_layers_and_others_read_get_one_slot() {
        let plain = graph(
            &[
                ("Conv", &["x", "w"], "a"),
                ("MaxPool", &["a"], "p"),
                ("Conv", &["p", "w"], "b"),
                ("Conv", &["p", "w"], "c"),
                ("Conv", &["b", "w"], "d"),
                ("Conv", &["b", "w"], "e"),
                ("Add", &["a", "c"], "f"),
                ("Add", &["d", "e"], "g"),
                ("Conv", &["g", "w"], "h"),
            ],
            &["f", "g", "h"],
        );
        // `a` is added, and layers read it pooled; `g` is put out; `b` only layers read.
        let with = with_layer_input_slots(&plain).unwrap();
        assert_eq!(slots(&with), ["p_layer_input", "g_layer_input"]);
        let reads = |output: &str| with.nodes.iter().find(|n| n.output() == output).unwrap().inputs[0].clone();
        assert_eq!(["b", "c", "d", "f", "h"].map(reads), ["p_layer_input", "p_layer_input", "b", "a", "g_layer_input"]);
        assert_eq!(with_layer_input_slots(&with).unwrap(), with);
        assert_eq!(drop_layer_input_slots(&with, |_| true).nodes, plain.nodes);
        assert_eq!(slots(&drop_layer_input_slots(&with, |slot| slot == "g_layer_input")), ["p_layer_input"]);
    }

    #[test]
    fn folding_normalizations_changes_no_slot() {
        let normalized = graph(
            &[
                ("Conv", &["x", "w"], "a"),
                ("BatchNormalization", &["a", "s", "s", "s", "s"], "b"),
                ("Relu", &["b"], "c"),
                ("Conv", &["c", "w"], "d"),
                ("BatchNormalization", &["d", "s", "s", "s", "s"], "e"),
                ("Add", &["c", "e"], "f"),
                ("Relu", &["f"], "y"),
            ],
            &["y"],
        );
        let folded = fold(&normalized).unwrap().0;
        assert_eq!(folded.nodes.len(), 5);
        for graph in [normalized, folded] {
            assert_eq!(slots(&with_layer_input_slots(&graph).unwrap()), ["c_layer_input"]);
        }
    }
}
