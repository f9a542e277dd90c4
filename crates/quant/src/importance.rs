//! How much each channel of a tensor matters to the layers that read it.
//!
//! An error `e` in channel `c` of a layer's input adds `Σ W[·, c, ·]²·e²` to the squared error of its output. These sums, scaled to
//! a mean of one for each layer, are passed back through operators that keep channels apart. A tensor whose channels are all
//! alike to its readers, or whose readers are not understood, has no entry.

use fewbits_graph::{Graph, Node, Op, op::Fact, op::normal_axis};
use std::collections::BTreeMap;

/// What a mean channel counts as, in the integer weights of [`weights`].
const ONE: f64 = 64.0;
/// No channel counts for more than this many mean ones.
const MOST: f64 = 256.0;

/// Integer weights per channel by tensor name, for [`crate::stats::ImageStats::of`].
pub fn weights(graph: &Graph, facts: &BTreeMap<String, Fact>) -> BTreeMap<String, Vec<u32>> {
    let integers = |shares: Vec<f64>| shares.iter().map(|s| (s.min(MOST) * ONE).round() as u32).collect();
    importance(graph, facts).into_iter().map(|(name, shares)| (name, integers(shares))).collect()
}

/// Shares per channel by tensor name; their mean is one.
pub fn importance(graph: &Graph, facts: &BTreeMap<String, Fact>) -> BTreeMap<String, Vec<f64>> {
    let mut found: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let channels = |name: &str| facts.get(name).and_then(|f| f.dims.get(1)).copied();
    for node in graph.nodes.iter().rev() {
        for (name, shares) in asked_of_inputs(graph, node, &found, facts) {
            if graph.constant(&name).is_some() || channels(&name) != Some(shares.len()) {
                continue;
            }
            let total = found.entry(name).or_insert_with(|| vec![0.0; shares.len()]);
            total.iter_mut().zip(normalized(shares)).for_each(|(t, s)| *t += s);
        }
    }
    found.into_iter().map(|(name, shares)| (name, normalized(shares))).collect()
}

/// What `node` asks of its inputs, given what is asked of its output.
fn asked_of_inputs(
    graph: &Graph,
    node: &Node,
    found: &BTreeMap<String, Vec<f64>>,
    facts: &BTreeMap<String, Fact>,
) -> Vec<(String, Vec<f64>)> {
    let behind = found.get(node.output());
    match &node.op {
        Op::Conv(conv) => layer(graph, node, |weights, dims| {
            let (per_group, taps) = (dims[1], dims[2..].iter().product::<usize>());
            let outputs = dims[0] / conv.group.max(1);
            let mut shares = vec![0.0; per_group * conv.group];
            for (i, &w) in weights.iter().enumerate() {
                let (output, channel) = (i / (per_group * taps), i / taps % per_group);
                shares[output / outputs.max(1) * per_group + channel] += f64::from(w) * f64::from(w);
            }
            shares
        }),
        Op::Gemm(gemm) => layer(graph, node, |weights, dims| {
            let columns = dims[1];
            let mut shares = vec![0.0; if gemm.trans_b { columns } else { dims[0] }];
            for (i, &w) in weights.iter().enumerate() {
                shares[if gemm.trans_b { i % columns } else { i / columns }] += f64::from(w) * f64::from(w);
            }
            shares
        }),
        Op::Concat(concat) => {
            let rank = facts.get(node.output()).map_or(0, |f| f.dims.len());
            let Some(behind) = behind.filter(|_| normal_axis(concat.axis, rank) == Ok(1)) else { return vec![] };
            let mut first = 0;
            let part = |name: &String| {
                let count = facts.get(name)?.dims.get(1).copied()?;
                let share = behind.get(first..first + count)?.to_vec();
                first += count;
                Some((name.clone(), share))
            };
            node.inputs.iter().map_while(part).collect()
        }
        Op::Identity(_)
        | Op::Relu(_)
        | Op::Clip(_)
        | Op::LeakyRelu(_)
        | Op::PRelu(_)
        | Op::Sigmoid(_)
        | Op::HardSigmoid(_)
        | Op::HardSwish(_)
        | Op::Tanh(_)
        | Op::MaxPool(_)
        | Op::AveragePool(_)
        | Op::GlobalAveragePool(_)
        | Op::GlobalMaxPool(_)
        | Op::Resize(_)
        | Op::Flatten(_) => behind.map(|b| (node.inputs[0].clone(), b.clone())).into_iter().collect(),
        Op::Add(_) | Op::Sub(_) | Op::Mul(_) | Op::Div(_) => {
            behind.iter().flat_map(|b| node.inputs.iter().map(|name| (name.clone(), b.to_vec()))).collect()
        }
        _ => vec![],
    }
}

fn layer(graph: &Graph, node: &Node, shares: impl Fn(&[f32], &[usize]) -> Vec<f64>) -> Vec<(String, Vec<f64>)> {
    let weight = node.input(1).and_then(|name| graph.constant(name));
    let values = weight.and_then(|w| Some((w.as_f32()?, &w.dims[..]))).filter(|(_, dims)| dims.len() >= 2);
    values.map(|(values, dims)| (node.inputs[0].clone(), shares(values, dims))).into_iter().collect()
}

fn normalized(mut shares: Vec<f64>) -> Vec<f64> {
    let mean = shares.iter().sum::<f64>() / shares.len().max(1) as f64;
    let factor = if mean > 0.0 && mean.is_finite() { 1.0 / mean } else { 0.0 };
    shares.iter_mut().for_each(|s| *s = if factor > 0.0 { *s * factor } else { 1.0 });
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use fewbits_graph::{Attr, Attrs, DType, Tensor, ValueInfo, exec::infer};
    use std::sync::Arc;

    #[test]
    fn a_channel_counts_as_its_weights_do_and_through_activations() {
        let value = |name: &str| ValueInfo { name: name.into(), dtype: DType::F32, dims: None };
        let node = |op: &str, attrs: Attrs, inputs: &[&str], output: &str| Node {
            name: output.into(),
            op: Op::from_attrs(op, &attrs).unwrap(),
            inputs: inputs.iter().map(|s| s.to_string()).collect(),
            outputs: vec![output.into()],
        };
        let mut graph = Graph { inputs: vec![value("a"), value("b")], outputs: vec![value("y")], ..Graph::default() };
        let weights = vec![1.0, 2.0, 0.0, 1.0, 0.0, 4.0];
        graph.constants.insert("w".into(), Arc::new(Tensor::f32(&[2, 3, 1, 1], weights)));
        graph.nodes = vec![
            node("Concat", Attrs::default().with("axis", Attr::Int(1)), &["a", "b"], "c"),
            node("Relu", Attrs::default(), &["c"], "r"),
            node("Conv", Attrs::default(), &["r", "w"], "y"),
        ];
        let facts = infer(&graph, &[vec![1, 2, 1, 1], vec![1, 1, 1, 1]]).unwrap();
        let found = importance(&graph, &facts);
        // Σ w² per channel is 2, 4, 16; their mean is 22 / 3.
        let shares = [2.0, 4.0, 16.0].map(|s| s * 3.0 / 22.0);
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(close(&found["r"], &shares) && close(&found["c"], &shares));
        assert!(close(&found["a"], &[2.0 / 3.0, 4.0 / 3.0]), "{:?}", found["a"]);
        assert!(close(&found["b"], &[1.0]));
    }
}
