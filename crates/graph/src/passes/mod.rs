//! Preparation: rewrites of a float graph that keep what it computes and make it easier to quantize.
//!
//! Tensor names survive: a folded convolution writes the tensor that the folded node wrote. Nothing here knows of grids.

mod affine;
mod average_pool;
mod batch_norm;
mod bias;
mod constant_operands;
mod constants;
mod identity;
mod layer_input_slots;
mod lone_batch_norm;
mod output_slots;
mod reduce_mean;
mod silu_slots;
#[cfg(test)]
mod testing;
mod unread;
mod zero_pad;

use crate::{error::GraphError, graph::Graph, op::Op};
pub use layer_input_slots::{drop_layer_input_slots, is_layer_input_slot, with_layer_input_slots};
pub use output_slots::{OutputSlot, drop_neutral_slots, output_slots};
pub use silu_slots::{SiluSlot, silu_slots};
use std::fmt;

/// What one pass did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What was done, in words.
    pub what: &'static str,
    /// To how many nodes.
    pub nodes: usize,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.what, self.nodes)
    }
}

/// A pass: edits the graph and returns how many nodes it changed.
type Pass = fn(&mut Graph) -> Result<usize, GraphError>;

/// What any runtime does before it runs a network, in this order: each pass makes work for the next.
const FOLD: &[(&str, Pass)] = &[
    ("constant nodes folded", constants::fold),
    ("unread outputs dropped", unread::drop_outputs),
    ("identities removed", identity::remove),
    ("borders of zeros moved into convolutions", zero_pad::into_convolutions),
    ("products and sums with constants folded into the layer before", constant_operands::fold),
    ("batch normalizations moved in front of Concat and Flatten", lone_batch_norm::move_to_layers),
    ("batch normalizations folded into the layer before", batch_norm::fold_backward),
    ("batch normalizations folded into the layer behind", batch_norm::fold_forward),
    ("batch normalizations turned into depthwise convolutions", lone_batch_norm::to_depthwise),
    ("absent padding of average pools counted no more", average_pool::count_no_absent_padding),
    ("ReduceMean over H, W turned into GlobalAveragePool", reduce_mean::to_global_average_pool),
    ("MatMul and addition joined into Gemm", bias::fold),
];

/// Places for methods to put their numbers, neutral until they do, and what keeps runtimes from mistaking a node.
const SLOTS: &[(&str, Pass)] = &[
    ("shared weights copied", constants::unshare),
    ("layers given a bias for each channel", bias::complete),
    ("SiLUs between layers given a scale", silu_slots::insert),
    ("last layers given an output scale", output_slots::insert),
    ("average pools kept apart from the grid behind them", average_pool::keep_apart),
    ("layers given a slot at their input", layer_input_slots::insert),
];

/// The graph with constants, identities and batch normalizations folded, and what was changed: the form to run.
///
/// # Errors
/// [`GraphError`] if the graph is malformed or a constant node cannot be computed.
pub fn fold(graph: &Graph) -> Result<(Graph, Vec<Change>), GraphError> {
    apply(graph, FOLD)
}

/// The folded graph with slots for methods, and what was folded: the form to quantize. Plans are for this graph.
///
/// # Errors
/// As [`fold`].
pub fn prepare(graph: &Graph) -> Result<(Graph, Vec<Change>), GraphError> {
    let (folded, changes) = fold(graph)?;
    Ok((apply(&folded, SLOTS)?.0, changes))
}

/// What is done before training: nothing that joins parameters.
const TRAINABLE: &[(&str, Pass)] = &[
    ("constant nodes folded", constants::fold),
    ("unread outputs dropped", unread::drop_outputs),
    ("identities removed", identity::remove),
    ("borders of zeros moved into convolutions", zero_pad::into_convolutions),
    ("products and sums with constants folded into the layer before", constant_operands::fold),
    ("shared weights copied", constants::unshare),
    ("batch normalizations moved in front of Concat and Flatten", lone_batch_norm::move_to_layers),
    ("shared normalizations copied", constants::unshare_normalizations),
    ("ReduceMean over H, W turned into GlobalAveragePool", reduce_mean::to_global_average_pool),
    ("MatMul and addition joined into Gemm", bias::fold),
];

/// The graph to train: BatchNormalizations stay (those behind a Concat or Flatten in front of it, as in [`fold`]) or, with `merge`,
/// are folded for good. Tensors that [`fold`] would leave keep their names.
///
/// # Errors
/// As [`fold`].
pub fn trainable(graph: &Graph, merge: bool) -> Result<Graph, GraphError> {
    let graph = if merge { fold(graph)?.0 } else { graph.clone() };
    Ok(apply(&graph, TRAINABLE)?.0)
}

fn apply(graph: &Graph, passes: &[(&'static str, Pass)]) -> Result<(Graph, Vec<Change>), GraphError> {
    let mut graph = graph.clone();
    let mut changes = Vec::new();
    for &(what, pass) in passes {
        let nodes = pass(&mut graph)?;
        // Pruning reads the nodes in order.
        graph.sort()?;
        graph.prune();
        if nodes > 0 {
            changes.push(Change { what, nodes });
        }
    }
    Ok((graph, changes))
}

/// The single node that reads `name`, if there is exactly one and `name` is no graph output.
fn only_reader(graph: &Graph, name: &str) -> Option<usize> {
    let mut readers = (0..graph.nodes.len()).filter(|&i| graph.nodes[i].present_inputs().any(|input| input == name));
    let first = readers.next()?;
    (readers.next().is_none() && !graph.is_output(name)).then_some(first)
}

/// Whether `name` is certain to be `[N, C, H, W]`: it comes from a two-dimensional convolution through operators that keep the rank.
fn is_spatial(graph: &Graph, name: &str) -> bool {
    let producers = graph.producers();
    let mut name = name;
    while let Some(&producer) = producers.get(name) {
        let node = &graph.nodes[producer];
        match &node.op {
            Op::Conv(_) => return node.input(1).and_then(|w| graph.constant(w)).is_some_and(|w| w.dims.len() == 4),
            Op::BatchNormalization(_) | Op::MaxPool(_) | Op::AveragePool(_) | Op::Concat(_) | Op::PRelu(_) => {}
            Op::Relu(_) | Op::LeakyRelu(_) | Op::Clip(_) | Op::HardSwish(_) | Op::Sigmoid(_) => {}
            // Broadcasting could raise the rank of one operand only to that of the other.
            Op::Add(_) | Op::Mul(_) => {}
            _ => return false,
        }
        let Some(input) = node.input(0) else { return false };
        name = input;
    }
    graph.inputs.iter().any(|v| v.name == name && v.dims.as_ref().is_some_and(|d| d.len() == 4))
}
