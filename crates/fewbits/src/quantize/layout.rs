//! The graph that is quantized: prepared, with changed constants and the slots that it needs.

use super::{Patches, Settings};
use fewbits_graph::{Graph, Grids, passes};
use fewbits_quant::placement::{Placement, Site, place};

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

/// The tensors whose statistics the placement needs.
pub(super) fn observed_tensors(graph: &Graph, placement: &Placement) -> Vec<String> {
    let own = |(name, site): (&String, &Site)| {
        (matches!(site, Site::Activation { .. }) && graph.constant(name).is_none()).then(|| name.clone())
    };
    placement.sites.iter().filter_map(own).collect()
}
