//! Equalization of a network before its normalizations are folded: the form that is trained.
//!
//! Where the folded network has a layer that writes channel `c`, this one has a layer and a BatchNormalization behind it, whose `γ_c` and
//! `β_c` are divided by `s_c` in place of the layer's weight and bias. Layers that read the channel are scaled as in the folded network.

use super::{Group, applied};
use fewbits_graph::{Graph, Tensor};
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
        if let Some(new) = same_group(graph, folded, group).and_then(|group| applied(&ones, &group, scales)) {
            factors.extend(new.iter().cloned());
            ones.constants.extend(new);
        }
    }
    factors
}

/// The nodes of `graph` that write and read what those of `group` do in `folded`; `None` if others have a part in it.
fn same_group(graph: &Graph, folded: &Graph, group: &Group) -> Option<Group> {
    let (producers, shared, readers) = (graph.producers(), folded.producers(), graph.consumers());
    let writers = group.writers.iter().map(|&w| producers.get(folded.nodes[w].output()).copied());
    let reader = |&r: &usize| {
        let layer = graph.nodes.iter().position(|node| node.name == folded.nodes[r].name)?;
        // A normalization in front of it that it takes in would have to be scaled.
        shared.get(graph.nodes[layer].input(0)?)?;
        Some(layer)
    };
    let writers = writers.collect::<Option<Vec<usize>>>()?;
    let layers = group.readers.iter().map(reader).collect::<Option<Vec<usize>>>()?;
    let is_own = |name: Option<&str>| name.is_none_or(|name| readers.get(name).is_some_and(|all| all.len() == 1));
    let changed = writers.iter().flat_map(|&w| [1, 2].map(|i| graph.nodes[w].input(i)));
    let own = changed.chain(layers.iter().map(|&r| graph.nodes[r].input(1))).all(is_own);
    own.then_some(Group { writers, readers: layers, ..Group::default() })
}
