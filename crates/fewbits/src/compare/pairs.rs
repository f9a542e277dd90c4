//! What of two networks belongs together: inputs, outputs, tensors of one name, and grids with the values that they hold.

use super::Side;
use crate::{Error, Model};
use fewbits_graph::{Op, QuantParams, TensorQuant};
use std::collections::{BTreeMap, BTreeSet};

/// Whether the inputs fit each other.
pub(super) fn check_inputs(a: Side<'_>, b: Side<'_>) -> Result<(), Error> {
    let (input_a, input_b) = (Model::input(a.graph)?, Model::input(b.graph)?);
    if input_a.name != input_b.name {
        return Err(mismatch(a, b, format!("inputs `{}` and `{}`", input_a.name, input_b.name)));
    }
    let Some((dims_a, dims_b)) = input_a.dims.as_ref().zip(input_b.dims.as_ref()) else { return Ok(()) };
    let agree = |(x, y): (&fewbits_graph::Dim, &fewbits_graph::Dim)| {
        use fewbits_graph::Dim::Fixed;
        !matches!((x, y), (Fixed(m), Fixed(n)) if m != n)
    };
    if dims_a.len() != dims_b.len() || !dims_a.iter().zip(dims_b).all(agree) {
        let list = |dims: &[fewbits_graph::Dim]| dims.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Err(mismatch(a, b, format!("input `{}`: [{}] and [{}]", input_a.name, list(dims_a), list(dims_b))));
    }
    Ok(())
}

/// Two networks that cannot be compared.
pub(super) fn mismatch(a: Side<'_>, b: Side<'_>, what: String) -> Error {
    Error::Usage {
        what: format!("`{}` and `{}` do not fit each other: {what}", a.path.display(), b.path.display()),
        hint: "compare a model with a version of itself; `fewbits inspect` prints inputs and outputs".into(),
    }
}

/// Positions of the outputs that belong together: of one name if all have a partner, else of one position.
pub(super) fn output_pairs(a: Side<'_>, b: Side<'_>) -> Result<Vec<(usize, usize)>, Error> {
    let (outs_a, outs_b) = (&a.graph.outputs, &b.graph.outputs);
    if outs_a.len() != outs_b.len() {
        return Err(mismatch(a, b, format!("{} outputs and {} outputs", outs_a.len(), outs_b.len())));
    }
    let partner = |i: usize| outs_b.iter().position(|o| o.name == outs_a[i].name).map(|j| (i, j));
    let by_name: Option<Vec<_>> = (0..outs_a.len()).map(partner).collect();
    Ok(by_name.unwrap_or_else(|| (0..outs_a.len()).map(|i| (i, i)).collect()))
}

/// Tensors that both graphs compute under one name and that may be looked at without changing how they are computed.
pub(super) fn common_tensors(a: Side<'_>, b: Side<'_>) -> Vec<String> {
    let made = |side: Side<'_>| -> BTreeSet<String> {
        let hidden = fused_away(side);
        let outputs = side.graph.nodes.iter().flat_map(|n| &n.outputs).filter(|o| !o.is_empty());
        outputs.filter(|o| !hidden.contains(o.as_str())).cloned().collect()
    };
    made(a).intersection(&made(b)).cloned().collect()
}

/// Tensors without a grid that only an operator with a grid on its output reads: integer kernels never make them.
fn fused_away(side: Side<'_>) -> BTreeSet<&str> {
    let Some(grids) = side.mode.grids() else { return BTreeSet::new() };
    let consumers = side.graph.consumers();
    let inner = |name: &str| match consumers.get(name).map_or(&[][..], Vec::as_slice) {
        [reader] => grids.params(side.graph.nodes[*reader].output()).is_some() && !side.graph.is_output(name),
        _ => false,
    };
    let outputs = side.graph.nodes.iter().flat_map(|n| &n.outputs).map(String::as_str);
    outputs.filter(|name| grids.params(name).is_none() && inner(name)).collect()
}

/// Grids that a network has of its own, by tensor.
pub(super) fn grids<'a>(side: Side<'a>) -> impl Iterator<Item = (&'a str, &'a QuantParams)> {
    let all = side.mode.grids().into_iter().flat_map(|grids| &grids.0);
    all.filter_map(|(name, quant)| match quant {
        TensorQuant::Quantized(params) => Some((name.as_str(), params)),
        _ => None,
    })
}

/// Grids by the tensor whose values they hold: its own, and that of an Identity that makes it coarser for a layer.
pub(super) type GridsByValues<'a> = BTreeMap<&'a str, Vec<(&'a str, &'a QuantParams)>>;

/// Every grid of `side` with the values that it holds.
pub(super) fn grids_by_values<'a>(side: Side<'a>) -> GridsByValues<'a> {
    let producers = side.graph.producers();
    let mut found = GridsByValues::new();
    for (name, params) in grids(side) {
        let copied = producers.get(name).map(|&i| &side.graph.nodes[i]);
        let values = copied.filter(|node| matches!(node.op, Op::Identity(_))).map_or(name, |node| &node.inputs[0]);
        found.entry(values).or_default().push((name, params));
    }
    found
}
