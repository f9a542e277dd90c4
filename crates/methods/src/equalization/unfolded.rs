//! Equalization of a network before its normalizations are folded: the form that is trained.
//!
//! Where the folded network has a layer that writes channel `c`, this one has a layer and a BatchNormalization behind it, whose `γ_c` and
//! `β_c` are divided by `s_c` in place of the layer's weight and bias. Layers that read the channel are scaled as in the folded network.

use super::{Axes, Edit, Group, edited};
use fewbits_graph::{Graph, Op, Tensor};
use std::{collections::BTreeMap, sync::Arc};

/// What each element of a constant of `graph` is multiplied by so that the channels of `moved`, groups of `folded`, its folded form, are scaled.
/// Nodes and tensors of one name are the same in both; groups with a layer that reads what is not there when folded are left alone.
pub fn unfolded_factors(graph: &Graph, folded: &Graph, moved: &[(Group, Vec<f64>)]) -> BTreeMap<String, Arc<Tensor>> {
    let mut ones = graph.clone();
    for tensor in ones.constants.values_mut().filter(|tensor| tensor.as_f32().is_some()) {
        *tensor = Arc::new(Tensor::f32(&tensor.dims, vec![1.0; tensor.len()]));
    }
    let mut factors = BTreeMap::new();
    for (group, scales) in moved {
        if let Some(new) = applied(&ones, folded, group, scales) {
            factors.extend(new.iter().cloned());
            ones.constants.extend(new);
        }
    }
    factors
}

/// As [`super::applied`].
fn applied(graph: &Graph, folded: &Graph, group: &Group, scales: &[f64]) -> Option<Vec<(String, Arc<Tensor>)>> {
    let (divide, multiply) = (|c: usize| 1.0 / scales[c], |c: usize| scales[c]);
    let mut edits: Vec<Edit> = Vec::new();
    for &writer in &group.writers {
        let tensor = folded.nodes[writer].output();
        let layer = graph.nodes.iter().position(|node| node.output() == tensor)?;
        let node = &graph.nodes[layer];
        if let Op::BatchNormalization(_) = node.op {
            edits.extend([(node.input(1)?, 0, &divide as &dyn Fn(usize) -> f64), (node.input(2)?, 0, &divide)]);
            continue;
        }
        edits.push((node.input(1)?, Axes::of(graph, layer)?.written, &divide));
        if let Some(bias) = node.input(2) {
            edits.push((bias, graph.constant(bias)?.dims.len().checked_sub(1)?, &divide));
        }
    }
    let shared = folded.producers();
    for &reader in &group.readers {
        let layer = graph.nodes.iter().position(|node| node.name == folded.nodes[reader].name)?;
        // A normalization in front of it that it takes in would have to be scaled.
        shared.get(graph.nodes[layer].input(0)?)?;
        edits.push((graph.nodes[layer].input(1)?, Axes::of(graph, layer)?.read, &multiply));
    }
    let readers = graph.consumers();
    let is_own = |(name, ..): &Edit| readers.get(name).is_some_and(|readers| readers.len() == 1);
    edits.iter().all(is_own).then(|| edited(graph, edits, scales.len()))?
}
