//! Products and sums with a constant for each channel, directly behind a layer or a BatchNormalization, become part of it: what
//! exporters make of Caffe's Scale and of biases that frameworks keep apart.

use super::{
    affine::{Affine, store},
    is_spatial, only_reader,
};
use crate::{
    error::GraphError,
    graph::Graph,
    op::{Op, Role},
    tensor::Tensor,
};

pub(super) fn fold(graph: &mut Graph) -> Result<usize, GraphError> {
    let mut folded = 0;
    for node in 0..graph.nodes.len() {
        let tensor = graph.nodes[node].present_inputs().find(|name| graph.constant(name).is_none()).map(String::from);
        let Some(tensor) = tensor.filter(|name| only_reader(graph, name) == Some(node)) else { continue };
        let Some(before) = graph.nodes.iter().position(|n| n.outputs[..] == [tensor.clone()]) else { continue };
        let Some((channels, rank)) = channels_and_rank(graph, before) else { continue };
        let Some(affine) = of_constant(graph, node, channels, rank) else { continue };
        if affine.fold_into_layer(graph, before) || into_norm(&affine, graph, before) {
            graph.nodes[before].outputs = std::mem::take(&mut graph.nodes[node].outputs);
            folded += 1;
        }
    }
    graph.nodes.retain(|n| !n.outputs.is_empty());
    Ok(folded)
}

/// Channels that a layer or a BatchNormalization puts out, and the axes of its output.
fn channels_and_rank(graph: &Graph, node: usize) -> Option<(usize, usize)> {
    let node = &graph.nodes[node];
    let operand = graph.constant(node.input(1)?)?;
    match (&node.op, node.op.def().quant_rule().role(1)) {
        (Op::BatchNormalization(_), _) => is_spatial(graph, node.input(0)?).then_some((operand.len(), 4)),
        (_, Role::Weight { channel_axis }) => Some((*operand.dims.get(channel_axis)?, operand.dims.len())),
        _ => None,
    }
}

/// What `node` does with a constant, if it does the same to all of a channel.
fn of_constant(graph: &Graph, node: usize, channels: usize, rank: usize) -> Option<Affine> {
    let node = &graph.nodes[node];
    let [left, right] = [node.input(0)?, node.input(1)?].map(|name| graph.constant(name));
    let constant = by_channel(left.or(right)?, channels, rank)?;
    let all = |value: f64| vec![value; channels];
    let (a, b) = match (&node.op, left.is_some()) {
        (Op::Add(_), _) => (all(1.0), constant),
        (Op::Mul(_), _) => (constant, all(0.0)),
        (Op::Sub(_), false) => (all(1.0), constant.iter().map(|c| -c).collect()),
        (Op::Sub(_), true) => (all(-1.0), constant),
        (Op::Div(_), false) => (constant.iter().map(|c| 1.0 / c).collect(), all(0.0)),
        _ => return None,
    };
    a.iter().chain(&b).all(|v| v.is_finite()).then_some(Affine { a, b })
}

/// `tensor` as one number per channel, if it broadcasts like that against `[N, channels, …]` with `rank` axes.
pub(super) fn by_channel(tensor: &Tensor, channels: usize, rank: usize) -> Option<Vec<f64>> {
    let values: Vec<f64> = tensor.as_f32()?.iter().map(|&v| v.into()).collect();
    if tensor.dims.len() > rank {
        return None;
    }
    match &values[..] {
        [value] => Some(vec![*value; channels]),
        _ => {
            let (leading, trailing) = tensor.dims.split_at(tensor.dims.len().checked_sub(rank.checked_sub(2)?)?);
            let fits = leading.last() == Some(&channels) && trailing.iter().all(|&d| d == 1);
            (fits && values.len() == channels).then_some(values)
        }
    }
}

/// `a·(γ·x̂ + β) + b` is a BatchNormalization with other `γ` and `β`.
fn into_norm(affine: &Affine, graph: &mut Graph, norm: usize) -> bool {
    let Affine { a, b } = affine;
    let node = &graph.nodes[norm];
    let values = |i: usize| graph.constant(node.input(i)?)?.as_f32().filter(|v| v.len() == a.len());
    let (Op::BatchNormalization(_), Some(gamma), Some(beta)) = (&node.op, values(1), values(2)) else { return false };
    let scale = gamma.iter().zip(a).map(|(&g, a)| (a * f64::from(g)) as f32).collect();
    let shift = beta.iter().zip(a).zip(b).map(|((&beta, a), b)| (a * f64::from(beta) + b) as f32).collect();
    for (input, data) in [(1, scale), (2, shift)] {
        let old = graph.nodes[norm].inputs[input].clone();
        graph.nodes[norm].inputs[input] = store(graph, &old, Tensor::f32(&[a.len()], data));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::super::testing::Maker;
    use crate::{
        op::Op,
        ops::{Add, BatchNormalization, Div, Mul, Relu, Sub, samples::varied},
        tensor::Tensor,
    };

    fn chain(maker: &mut Maker, from: &str, steps: &[(Op, [usize; 3], bool)]) -> String {
        let mut name = from.to_string();
        for (i, (op, dims, first)) in steps.iter().enumerate() {
            let (constant, next) = (format!("{from}_constant{i}"), format!("{from}_step{i}"));
            let values = varied(dims, i as u32).as_f32().unwrap().iter().map(|v| v.abs() + 0.5).collect();
            maker.constant(&constant, Tensor::f32(dims, values));
            let inputs = if *first { [&constant[..], &name] } else { [&name[..], &constant] };
            maker.node(op.clone(), &inputs, &next);
            name = next;
        }
        name
    }

    #[test]
    fn constants_behind_layers_and_normalizations_become_part_of_them() {
        let by_channel = [5, 1, 1];
        let steps: [(Op, [usize; 3], bool); 6] = [
            (Mul {}.into(), by_channel, false),
            (Add {}.into(), by_channel, true),
            (Sub {}.into(), [1; 3], false),
            (Div {}.into(), by_channel, false),
            (Sub {}.into(), by_channel, true),
            (Mul {}.into(), [1; 3], true),
        ];
        let mut maker = Maker::default();
        maker.conv("x", "c", [5, 3, 1, 1]);
        let c = chain(&mut maker, "c", &steps);
        maker.node(Relu {}, &[&c], "r");
        maker.norm("r", "n", 5);
        let n = chain(&mut maker, "n", &steps);
        maker.conv(&n, "y", [4, 5, 1, 1]);
        let graph = maker.graph("y");
        let left: Vec<&str> = graph.nodes.iter().map(|n| n.op.name()).collect();
        // The last two are the slot of the output.
        assert_eq!(left, ["Conv", "Relu", "Conv", "Mul", "Add"]);
    }

    #[test]
    fn constants_that_a_normalization_reads_twice_are_not_changed_for_both() {
        let mut maker = Maker::default();
        maker.conv("x", "c", [4, 3, 1, 1]);
        maker.node(Relu {}, &["c"], "r");
        maker.constant("ones", Tensor::f32(&[4], vec![1.0; 4]));
        maker.constant("zeros", Tensor::f32(&[4], vec![0.0; 4]));
        let norm = BatchNormalization { epsilon: 0.125, momentum: 0.9 };
        maker.node(norm, &["r", "ones", "zeros", "zeros", "ones"], "n");
        let n = chain(&mut maker, "n", &[(Mul {}.into(), [4, 1, 1], false), (Add {}.into(), [4, 1, 1], false)]);
        maker.conv(&n, "y", [4, 4, 1, 1]);
        // It computes the same: `prepared` holds the two together.
        assert!(!maker.prepared("y").contains(&"BatchNormalization".to_string()));
    }

    #[test]
    fn what_is_not_by_channel_or_read_elsewhere_stays() {
        for dims in [[1, 1, 4], [1, 4, 1], [1, 4, 4]] {
            let mut maker = Maker::default();
            maker.conv("x", "c", [4, 3, 3, 3]);
            let c = chain(&mut maker, "c", &[(Sub {}.into(), dims, false)]);
            maker.conv(&c, "y", [4, 4, 1, 1]);
            assert!(maker.prepared("y").contains(&"Sub".to_string()), "{dims:?}");
        }
        let mut maker = Maker::default();
        maker.conv("x", "c", [4, 3, 1, 1]);
        let c = chain(&mut maker, "c", &[(Sub {}.into(), [4, 1, 1], false)]);
        maker.node(Div {}, &["c", &c], "y");
        assert!(maker.prepared("y").contains(&"Sub".to_string()));
        // One divided by the tensor is not a multiple of it.
        let mut maker = Maker::default();
        maker.conv("x", "c", [4, 3, 1, 1]);
        let c = chain(&mut maker, "c", &[(Div {}.into(), [4, 1, 1], true)]);
        maker.conv(&c, "y", [4, 4, 1, 1]);
        assert!(maker.prepared("y").contains(&"Div".to_string()));
    }
}
