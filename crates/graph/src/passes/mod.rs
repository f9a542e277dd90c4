//! Preparation: rewrites of a float graph that keep what it computes and make it easier to quantize.
//!
//! Tensor names survive: a folded convolution writes the tensor that the folded node wrote. Nothing here knows of grids.

mod batch_norm;
mod bias;
mod constants;
mod identity;
mod output_slots;
mod reduce_mean;
mod silu_slots;

use crate::{error::GraphError, graph::Graph};
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

/// In this order: each pass makes work for the next.
const PASSES: &[(&str, Pass)] = &[
    ("constant nodes folded", constants::fold),
    ("identities removed", identity::remove),
    ("batch normalizations folded into the layer before", batch_norm::fold_backward),
    ("batch normalizations folded into the layer behind", batch_norm::fold_forward),
    ("additions folded into biases", bias::fold),
    ("layers given a bias of zero", bias::add_zero),
    ("ReduceMean over H, W turned into GlobalAveragePool", reduce_mean::to_global_average_pool),
    ("SiLUs between layers given a scale", silu_slots::insert),
    ("last layers given an output scale", output_slots::insert),
];

/// The prepared graph and what was changed.
///
/// # Errors
/// [`GraphError`] if the graph is malformed or a constant node cannot be computed.
pub fn prepare(graph: &Graph) -> Result<(Graph, Vec<Change>), GraphError> {
    let mut prepared = graph.clone();
    let mut changes = Vec::new();
    for &(what, pass) in PASSES {
        let nodes = pass(&mut prepared)?;
        // Pruning reads the nodes in order.
        prepared.sort()?;
        prepared.prune();
        if nodes > 0 {
            changes.push(Change { what, nodes });
        }
    }
    Ok((prepared, changes))
}

/// The single node that reads `name`, if there is exactly one and `name` is no graph output.
fn only_reader(graph: &Graph, name: &str) -> Option<usize> {
    let mut readers = (0..graph.nodes.len()).filter(|&i| graph.nodes[i].present_inputs().any(|input| input == name));
    let first = readers.next()?;
    (readers.next().is_none() && !graph.is_output(name)).then_some(first)
}
