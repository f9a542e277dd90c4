//! The graph that is quantized: prepared, with changed constants and the slots that it needs.

use super::{Patches, Settings};
use fewbits_graph::{Graph, Grids, passes};
use fewbits_quant::placement::{Placement, Site, place};
use std::collections::BTreeSet;

/// The graph that is quantized: `prepared` with changed constants, without the slots that stayed neutral.
pub fn laid_out(prepared: &Graph, patches: &Patches, grids: &Grids) -> Graph {
    let graph = passes::drop_neutral_slots(&patched(prepared, patches));
    passes::drop_layer_input_slots(&graph, |slot| grids.params(slot).is_none())
}

/// The same before there are grids, and where they will be: a layer input that would have 8 bits needs no slot, since the tensor
/// behind it has 8 as well.
pub(super) fn placed(prepared: &Graph, patches: &Patches, settings: &Settings) -> (Graph, Placement) {
    let graph = passes::drop_neutral_slots(&patched(prepared, patches));
    let place = |graph: &Graph| place(graph, &settings.target, &settings.keep_float);
    let sites = place(&graph).sites;
    let bits = |slot: &str| sites.get(slot).map_or(8, |site| settings.policy.activation_bits(slot, site));
    let graph = passes::drop_layer_input_slots(&graph, |slot| bits(slot) == 8);
    let placement = place(&graph);
    (graph, placement)
}

/// `graph` with `patches` in place of its constants.
pub(super) fn patched(graph: &Graph, patches: &Patches) -> Graph {
    let mut graph = graph.clone();
    graph.constants.extend(patches.iter().map(|(name, tensor)| (name.clone(), tensor.clone())));
    graph
}

/// The tensors whose statistics are needed: those with a grid of their own, and what layers multiply, by whose means biases are corrected.
pub(super) fn observed_tensors(graph: &Graph, placement: &Placement) -> Vec<String> {
    let own = |(name, site): (&String, &Site)| match site {
        Site::Activation { .. } => Some(name.clone()),
        Site::Weight { input, .. } => Some(input.clone()),
        _ => None,
    };
    let names: BTreeSet<String> = placement.sites.iter().filter_map(own).collect();
    names.into_iter().filter(|name| graph.constant(name).is_none()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo;

    #[test]
    fn what_layers_multiply_is_observed_behind_operators_that_move_codes_too() {
        let (graph, _) = passes::prepare(&demo::model().unwrap().graph).unwrap();
        let placement = place(&graph, &"ort".parse().unwrap(), &BTreeSet::new());
        let observed = observed_tensors(&graph, &placement);
        let input = |site: &Site| match site {
            Site::Weight { input, .. } => Some(input.clone()),
            _ => None,
        };
        let inputs: Vec<String> = placement.sites.values().filter_map(input).collect();
        assert!(inputs.iter().all(|name| observed.contains(name)), "{observed:?}");
        let moved = |name: &String| !matches!(placement.sites.get(name), Some(Site::Activation { .. }));
        assert!(inputs.iter().any(moved), "a layer behind a Flatten: {inputs:?}");
    }
}
