//! Where a network is cut so that it can be worked on piece by piece.

use crate::{Ground, Layer, draft::layers};
use fewbits_graph::{DType, Graph, GraphError, Op, ValueInfo};
use std::collections::{BTreeMap, BTreeSet};

/// Layers from which a block may end where one tensor is all that leads on.
const LEAST_LAYERS: usize = 2;
/// Layers from which it may end where several do.
const MANY_LAYERS: usize = 6;

/// Consecutive nodes of a graph: a residual block, or a few layers of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Activations that it reads, in the order in which they are given to [`Block::part`].
    pub inputs: Vec<String>,
    /// Activations that it makes and others read, and graph outputs that it makes.
    pub outputs: Vec<String>,
    /// Its quantized layers, in graph order.
    pub layers: Vec<Layer>,
    /// Activations that are read behind it.
    pub(super) live: BTreeSet<String>,
}

impl Block {
    /// The part of `graph` from the block's inputs to `outputs`, as a graph of its own.
    ///
    /// # Errors
    /// As [`Graph::slice`].
    pub fn part(&self, graph: &Graph, outputs: &[&str]) -> Result<Graph, GraphError> {
        let info = |name: &String| ValueInfo { name: name.clone(), dtype: DType::F32, dims: None };
        let inputs: Vec<ValueInfo> = self.inputs.iter().map(info).collect();
        let mut part = graph.slice(&inputs, outputs)?;
        // A part that reads fewer of the inputs is still given all of them.
        part.inputs = inputs;
        Ok(part)
    }
}

/// Cuts the network where a single tensor with a grid leads on, not behind a depthwise convolution, or, in a long stretch without such a
/// place, where several do. Every node is
/// in one block; what follows the last layer belongs to the last.
pub fn blocks(ground: &Ground<'_>) -> Vec<Block> {
    let graph = ground.float;
    let mut last_reader: BTreeMap<&str, usize> = BTreeMap::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        for name in node.present_inputs().filter(|n| graph.constant(n).is_none()) {
            last_reader.insert(name, i);
        }
    }
    let mut ahead = layers(graph, ground.placement).into_iter().peekable();
    let mut blocks = Vec::new();
    let mut live: BTreeSet<&str> = graph.inputs.iter().map(|v| v.name.as_str()).collect();
    let mut open = Open::default();
    for (i, node) in graph.nodes.iter().enumerate() {
        open.nodes.push(i);
        if let Some(layer) = ahead.next_if(|layer| layer.node == i) {
            open.layers.push(layer);
        }
        live.extend(node.outputs.iter().map(String::as_str));
        live.retain(|name| last_reader.get(name).is_some_and(|&reader| reader > i));
        let gridded = |name: &&str| {
            let float = ground.facts.get(*name).is_some_and(|fact| fact.dtype == DType::F32);
            float && ground.placement.sites.contains_key(*name)
        };
        let ready = match live.len() {
            0 => false,
            // A depthwise convolution and the layer behind it are halves of one.
            1 if open.ends_depthwise(graph) && open.layers.len() < MANY_LAYERS => false,
            1 => open.layers.len() >= LEAST_LAYERS,
            _ => open.layers.len() >= MANY_LAYERS,
        };
        if ready && ahead.peek().is_some() && live.iter().all(gridded) {
            blocks.push(std::mem::take(&mut open).close(graph, &live));
        }
    }
    if !open.nodes.is_empty() {
        blocks.push(open.close(graph, &BTreeSet::new()));
    }
    blocks
}

#[derive(Default)]
struct Open {
    nodes: Vec<usize>,
    layers: Vec<Layer>,
}

impl Open {
    /// Whether the last layer mixes no channels.
    fn ends_depthwise(&self, graph: &Graph) -> bool {
        let last = self.layers.last().map(|layer| &graph.nodes[layer.node]);
        last.is_some_and(|node| {
            let channels =
                node.input(1).and_then(|weight| graph.constant(weight)).and_then(|w| w.dims.first().copied());
            matches!(&node.op, Op::Conv(conv) if conv.group > 1 && Some(conv.group) == channels)
        })
    }

    fn close(self, graph: &Graph, live: &BTreeSet<&str>) -> Block {
        let made: BTreeSet<&str> =
            self.nodes.iter().flat_map(|&i| graph.nodes[i].outputs.iter().map(String::as_str)).collect();
        let read = self.nodes.iter().flat_map(|&i| graph.nodes[i].present_inputs());
        let inputs: BTreeSet<&str> = read.filter(|n| !made.contains(n) && graph.constant(n).is_none()).collect();
        let outputs = made.iter().filter(|name| live.contains(*name) || graph.is_output(name));
        Block {
            inputs: inputs.iter().map(ToString::to_string).collect(),
            outputs: outputs.map(ToString::to_string).collect(),
            layers: self.layers,
            live: live.iter().map(ToString::to_string).collect(),
        }
    }
}
