//! Keeps ONNX Runtime from quantizing layers that are meant to stay float.
//!
//! Between DequantizeLinear and QuantizeLinear, ONNX Runtime rounds the float weights of a convolution or Gemm by itself and computes
//! the node in integers. A Max of one operand in front of the layer hides the DequantizeLinear from it and changes no element.

use fewbits_graph::{Graph, Grids, Node, Op, op::OutRule};
use std::collections::{HashMap, HashSet};

/// The nodes of `graph` that need a guard at their data input when `grids` are written as nodes.
pub(crate) fn guarded(graph: &Graph, grids: &Grids) -> HashSet<String> {
    let (producers, consumers) = (graph.producers(), graph.consumers());
    let ends = Ends { graph, grids, producers, consumers };
    let is_float =
        |node: &Node| node.input(1).is_some_and(|w| graph.constant(w).is_some() && grids.params(w).is_none());
    let needs =
        |node: &&Node| is_layer(node) && is_float(node) && ends.start(&node.inputs[0]) && ends.end(node.output());
    graph.nodes.iter().filter(needs).map(|node| node.name.clone()).collect()
}

/// The graph without guards: a Max of one operand that only layers multiply.
pub(crate) fn without_guards(mut graph: Graph) -> Graph {
    let guards: Vec<usize> = {
        let consumers = graph.consumers();
        let alone = |node: &Node| {
            let readers = consumers.get(node.output()).map_or(&[][..], Vec::as_slice);
            let multiplies = |&r: &usize| {
                let reader = &graph.nodes[r];
                is_layer(reader) && reader.inputs.iter().position(|name| name == node.output()) == Some(0)
            };
            !readers.is_empty() && readers.iter().all(multiplies) && !graph.is_output(node.output())
        };
        let is_guard = |node: &Node| matches!(node.op, Op::Max(_)) && node.inputs.len() == 1 && alone(node);
        (0..graph.nodes.len()).filter(|&i| is_guard(&graph.nodes[i])).collect()
    };
    for &i in &guards {
        let (input, output) = (graph.nodes[i].inputs[0].clone(), graph.nodes[i].output().to_string());
        graph.redirect(&output, &input);
        graph.nodes[i].outputs.clear();
    }
    graph.nodes.retain(|node| !node.outputs.is_empty());
    graph
}

/// What ONNX Runtime rounds the weights of.
fn is_layer(node: &Node) -> bool {
    matches!(node.op, Op::Conv(_) | Op::ConvTranspose(_) | Op::Gemm(_))
}

/// Where grids are, as ONNX Runtime sees it after it has moved Q and DQ past operators that move elements.
struct Ends<'a> {
    graph: &'a Graph,
    grids: &'a Grids,
    producers: HashMap<&'a str, usize>,
    consumers: HashMap<&'a str, Vec<usize>>,
}

impl Ends<'_> {
    /// Whether `tensor` comes from a DequantizeLinear.
    fn start(&self, tensor: &str) -> bool {
        let mover = self.producers.get(tensor).map(|&p| &self.graph.nodes[p]).filter(|node| moves(node));
        self.grids.params(tensor).is_some() || mover.is_some_and(|node| self.start(&node.inputs[0]))
    }

    /// Whether `tensor` leads to a QuantizeLinear, also behind an activation that ONNX Runtime may see in its range.
    fn end(&self, tensor: &str) -> bool {
        let leads = |&r: &usize| {
            let reader = &self.graph.nodes[r];
            (moves(reader) || matches!(reader.op, Op::Relu(_) | Op::Clip(_))) && self.end(reader.output())
        };
        self.grids.params(tensor).is_some()
            || self.consumers.get(tensor).is_some_and(|readers| readers.iter().any(leads))
    }
}

fn moves(node: &Node) -> bool {
    node.op.def().quant_rule().output == OutRule::SameAsInput
}
