//! What a network takes to deploy, to the byte.
//!
//! The convention: weights bit-packed at their true widths, each output channel from a whole byte on, with 4 bytes per scale;
//! 4 bytes for every bias and every parameter that stays float; 5 bytes (scale, zero point) per grid of an activation;
//! normalization is folded. First and last layers count like all others.

use fewbits_graph::{
    Graph, Grids, Node, Op,
    op::{Fact, Role},
};
use fewbits_quant::placement::{Placement, Site};
use std::collections::BTreeMap;

/// Bytes of a prepared graph under its grids.
pub fn packed(graph: &Graph, grids: &Grids, placement: &Placement) -> u64 {
    let mut bytes = 0;
    for (name, tensor) in &graph.constants {
        let Some(values) = tensor.as_f32() else { continue };
        bytes += match grids.params(name) {
            Some(params) => {
                let axis = weight_axis(graph, placement, name);
                let scales = if axis.is_some() { params.scale.len() } else { 0 };
                weight_bytes(&tensor.dims, axis, params.grid.bits, scales)
            }
            None if is_learned(graph, name) => 4 * values.len() as u64,
            None => 0,
        };
    }
    let activations = placement.sites.iter().filter(|(_, site)| matches!(site, Site::Activation { .. }));
    let params = activations.filter_map(|(name, _)| grids.params(name));
    bytes + params.map(|p| 5 * p.scale.len() as u64).sum::<u64>()
}

/// Bytes of a weight of `bits` bits with this many scales and output channels along `axis`. Zero points of weights are 0 and take
/// nothing.
pub fn weight_bytes(dims: &[usize], axis: Option<usize>, bits: u8, scales: usize) -> u64 {
    let count = dims.iter().product::<usize>() as u64;
    let rows = axis.and_then(|axis| dims.get(axis)).map_or(1, |&n| n.max(1) as u64);
    rows * (count / rows * u64::from(bits)).div_ceil(8) + 4 * scales as u64
}

/// Multiply-accumulates of `node` for one image of the batch.
pub fn macs(node: &Node, facts: &BTreeMap<String, Fact>) -> u64 {
    let ins: Vec<Option<&Fact>> = node.inputs.iter().map(|name| facts.get(name)).collect();
    let outs: Option<Vec<Fact>> = node.outputs.iter().map(|name| facts.get(name).cloned()).collect();
    let batch = ins.first().copied().flatten().and_then(|fact| fact.dims.first()).map_or(1, |&n| n.max(1) as u64);
    outs.map_or(0, |outs| node.op.def().macs(&ins, &outs)) / batch
}

/// The axis of the output channels of constant `name`, if it is the weight of a layer.
pub fn weight_axis(graph: &Graph, placement: &Placement, name: &str) -> Option<usize> {
    match placement.sites.get(name) {
        Some(Site::Weight { axis, .. }) => Some(*axis),
        _ => is_float_weight(graph, name).then_some(0),
    }
}

/// Whether constant `name` is the weight of a layer; asked of those that have no grid.
fn is_float_weight(graph: &Graph, name: &str) -> bool {
    let reads =
        |node: &Node| node.input(1) == Some(name) && matches!(node.op.def().quant_rule().role(1), Role::Weight { .. });
    graph.nodes.iter().any(reads)
}

/// Parameters that training learns: every float constant but the statistics of BatchNormalization and bounds.
pub fn parameters(graph: &Graph) -> u64 {
    let floats = graph.constants.iter().filter(|(name, t)| t.as_f32().is_some() && is_learned(graph, name));
    floats.map(|(_, t)| t.len() as u64).sum()
}

/// Whether the float constant `name` is no statistic of BatchNormalization and no bound.
fn is_learned(graph: &Graph, name: &str) -> bool {
    let is_input_from = |node: &Node, first: usize| node.inputs.iter().skip(first).any(|i| i == name);
    !graph.nodes.iter().any(|node| match node.op {
        Op::BatchNormalization(_) => is_input_from(node, 3),
        Op::Clip(_) => is_input_from(node, 1),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use fewbits_graph::TensorQuant;

    #[test]
    fn rows_start_at_whole_bytes() {
        // 16 filters of 9 weights at 3 bits: 27 bits are 4 bytes, and each has a scale.
        assert_eq!(weight_bytes(&[16, 1, 3, 3], Some(0), 3, 16), 16 * 4 + 64);
        assert_eq!(weight_bytes(&[9, 16], Some(1), 3, 1), 16 * 4 + 4);
        assert_eq!(weight_bytes(&[5], None, 32, 0), 20);
        assert_eq!(weight_bytes(&[0, 3], Some(0), 4, 0), 0);
    }

    #[test]
    fn the_network_takes_what_its_weights_take_and_a_rest_that_does_not_depend_on_bits() {
        let network = testing::network();
        let of_weights = |bits: &dyn Fn(&str) -> u8| -> u64 {
            let weights = network.layers().into_iter().map(|layer| {
                let dims = &network.graph.constants[&layer.weight].dims;
                weight_bytes(dims, Some(layer.axis), bits(&layer.weight), dims[layer.axis])
            });
            weights.sum()
        };
        let with = |bits: &dyn Fn(&str) -> u8| {
            let mut grids = network.grids.clone();
            for (name, quant) in &mut grids.0 {
                if let (TensorQuant::Quantized(params), Some(Site::Weight { .. })) =
                    (quant, network.placement.sites.get(name))
                {
                    params.grid.bits = bits(name);
                }
            }
            packed(&network.graph, &grids, &network.placement) - of_weights(bits)
        };
        let by_name = |name: &str| 2 + (name.len() % 6) as u8;
        let biases: usize =
            network.layers().iter().filter_map(|l| l.bias.as_ref()).map(|b| network.graph.constants[b].len()).sum();
        let grids = network.placement.sites.values().filter(|site| matches!(site, Site::Activation { .. })).count();
        assert_eq!(with(&|_| 4), (4 * biases + 5 * grids) as u64);
        assert_eq!(with(&by_name), with(&|_| 4));
    }

    #[test]
    fn macs_of_a_convolution() {
        let network = testing::network();
        let first = &network.graph.nodes[network.layers()[0].node];
        let (weight, out) = (&network.graph.constants[first.input(1).unwrap()], &network.facts[first.output()]);
        assert_eq!(macs(first, &network.facts), (weight.len() * out.dims[2] * out.dims[3]) as u64);
    }
}
