//! Scales of BatchNormalizations made positive.

use fewbits_graph::{Graph, Op, Tensor, op::Role};
use std::sync::Arc;

/// Turns negative scales of BatchNormalizations behind layers positive: the layer's channel changes its sign, and the network computes
/// the same. Folding then never mirrors a weight's grid, which has one negative code more than positive ones.
pub(super) fn make_scales_positive(graph: &mut Graph) {
    let readers = graph.consumers();
    let mut flips: Vec<(String, usize, Vec<bool>)> = Vec::new();
    for layer in &graph.nodes {
        let Role::Weight { channel_axis: axis } = layer.op.def().quant_rule().role(1) else { continue };
        let [one] = readers.get(layer.output()).map_or(&[][..], Vec::as_slice) else { continue };
        let norm = &graph.nodes[*one];
        if !matches!(norm.op, Op::BatchNormalization(_)) || graph.is_output(layer.output()) {
            continue;
        }
        let gamma = norm.input(1).and_then(|name| graph.constant(name)).and_then(|t| t.as_f32());
        let Some(negative) = gamma.map(|g| g.iter().map(|g| *g < 0.0).collect::<Vec<_>>()) else { continue };
        let mirrored = [(layer.input(1), axis), (layer.input(2), 0), (norm.input(1), 0), (norm.input(3), 0)];
        let mirrored = mirrored.into_iter().filter_map(|(name, axis)| Some((name?, axis)));
        let by_channel = |name: &str, axis: usize| graph.constant(name)?.dims.get(axis).copied();
        if !mirrored.clone().all(|(name, axis)| by_channel(name, axis) == Some(negative.len())) {
            continue;
        }
        flips.extend(mirrored.map(|(name, axis)| (name.to_string(), axis, negative.clone())));
    }
    for (name, axis, negative) in flips.into_iter().filter(|(.., negative)| negative.contains(&true)) {
        let Some(tensor) = graph.constants.get_mut(&name) else { continue };
        let Some(values) = tensor.as_f32() else { continue };
        let inner: usize = tensor.dims[axis + 1..].iter().product();
        let sign = |i: usize| if negative[i / inner.max(1) % negative.len()] { -1.0 } else { 1.0 };
        let values = values.iter().enumerate().map(|(i, v)| v * sign(i)).collect();
        *tensor = Arc::new(Tensor::f32(&tensor.dims, values));
    }
}
