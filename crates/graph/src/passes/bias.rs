//! An addition of a constant behind a MatMul of matrices becomes its bias: it is then a Gemm.

use super::{constant_operands::by_channel, is_spatial, only_reader};
use crate::{
    error::GraphError,
    graph::Graph,
    op::{Op, Role},
    ops::Gemm,
    tensor::Tensor,
};
use std::sync::Arc;

pub(super) fn fold(graph: &mut Graph) -> Result<usize, GraphError> {
    let mut folded = 0;
    for layer in 0..graph.nodes.len() {
        let node = &graph.nodes[layer];
        if node.outputs.is_empty() || !matches!(node.op, Op::MatMul(_)) {
            continue;
        }
        let Some(add) = only_reader(graph, node.output()) else { continue };
        let Op::Add(_) = graph.nodes[add].op else { continue };
        let Some(constant) = graph.nodes[add].inputs.iter().find(|name| *name != node.output()).cloned() else {
            continue;
        };
        let weight = node.input(1).and_then(|name| graph.constant(name));
        let Some([_, channels]) = weight.map(|w| &w.dims[..]) else { continue };
        let Some(bias) = graph.constant(&constant).and_then(|t| by_channel(t, *channels, 2)) else { continue };
        if !is_matrix(graph, &node.inputs[0]) {
            continue;
        }
        let bias = Tensor::f32(&[bias.len()], bias.iter().map(|&b| b as f32).collect());
        let name = graph.fresh_name(&format!("{constant}_bias"));
        graph.constants.insert(name.clone(), Arc::new(bias));
        graph.nodes[layer].op = Gemm { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: false }.into();
        graph.nodes[layer].inputs.truncate(2);
        graph.nodes[layer].inputs.push(name);
        graph.nodes[layer].outputs = std::mem::take(&mut graph.nodes[add].outputs);
        folded += 1;
    }
    graph.nodes.retain(|n| !n.outputs.is_empty());
    Ok(folded)
}

/// Every convolution and matrix product with a constant weight has a bias of a number for each channel, for corrections to go into:
/// zeros if it had none, copies if it had a single one.
pub(super) fn complete(graph: &mut Graph) -> Result<usize, GraphError> {
    let mut added = 0;
    for layer in 0..graph.nodes.len() {
        let node = &graph.nodes[layer];
        if !(matches!(node.op, Op::Conv(_)) || is_plain_gemm(&node.op)) {
            continue;
        }
        let Role::Weight { channel_axis } = node.op.def().quant_rule().role(1) else { continue };
        let Some(weight) = node.input(1).map(String::from) else { continue };
        let Some(&channels) = graph.constant(&weight).and_then(|w| w.dims.get(channel_axis)) else { continue };
        let value = match node.input(2).map(|bias| graph.constant(bias)) {
            None => 0.0,
            Some(Some(one)) if one.dims.len() < 2 && channels > 1 => match one.as_f32() {
                Some(&[value]) => value,
                _ => continue,
            },
            Some(_) => continue,
        };
        let name = graph.fresh_name(&format!("{weight}_bias"));
        graph.constants.insert(name.clone(), Arc::new(Tensor::f32(&[channels], vec![value; channels])));
        graph.nodes[layer].inputs.truncate(2);
        graph.nodes[layer].inputs.push(name);
        added += 1;
    }
    Ok(added)
}

/// Whether `name` certainly has two axes.
fn is_matrix(graph: &Graph, name: &str) -> bool {
    let producers = graph.producers();
    let producer = |name: &str| producers.get(name).map(|&i| &graph.nodes[i]);
    let mut name = name;
    while let Some(node) = producer(name) {
        let operands = || node.input(1).and_then(|operand| graph.constant(operand)).map(|t| t.len());
        let Some(input) = node.input(0) else { return false };
        match &node.op {
            Op::Flatten(_) | Op::Gemm(_) => return true,
            Op::Reshape(_) => return operands() == Some(2),
            Op::Squeeze(_) => {
                let pooled =
                    producer(input).filter(|n| matches!(n.op, Op::GlobalAveragePool(_) | Op::GlobalMaxPool(_)));
                let image = pooled.and_then(|n| n.input(0)).unwrap_or(input);
                return operands() == Some(2) && is_spatial(graph, image);
            }
            Op::Relu(_) | Op::Clip(_) | Op::Sigmoid(_) | Op::Dropout(_) | Op::BatchNormalization(_) => name = input,
            _ => return false,
        }
    }
    graph.inputs.iter().any(|v| v.name == name && v.dims.as_ref().is_some_and(|d| d.len() == 2))
}

fn is_plain_gemm(op: &Op) -> bool {
    matches!(op, Op::Gemm(gemm) if gemm.alpha == 1.0 && gemm.beta == 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        attrs::{Attr, Attrs},
        graph::{Dim, Node, ValueInfo},
        passes::fold,
        tensor::DType,
    };

    /// A convolution of an image, `middle` with its further inputs, and a product with an addition behind it.
    fn folded(middle: &[(&str, Attrs, &[&str])]) -> Graph {
        let dims = [None, Some(3), Some(4), Some(4)].map(|d| d.map_or(Dim::Symbol("N".into()), Dim::Fixed));
        let value = |name: &str, dims| ValueInfo { name: name.into(), dtype: DType::F32, dims };
        let first: (&str, Attrs, &[&str]) = ("Conv", Attrs::default(), &["first"]);
        let last: [(&str, Attrs, &[&str]); 2] =
            [("MatMul", Attrs::default(), &["last"]), ("Add", Attrs::default(), &["addend"])];
        let nodes = std::iter::once(&first).chain(middle).chain(&last).enumerate().map(|(i, (op, attrs, operands))| {
            let inputs = std::iter::once(format!("t{i}")).chain(operands.iter().map(|s| s.to_string())).collect();
            let op = Op::from_attrs(op, attrs).unwrap();
            Node { name: format!("n{i}"), op, inputs, outputs: vec![format!("t{}", i + 1)] }
        });
        let constants = [
            ("first", Tensor::f32(&[8, 3, 1, 1], vec![0.5; 24])),
            ("last", Tensor::f32(&[8, 5], vec![0.5; 40])),
            ("addend", Tensor::f32(&[5], vec![0.5; 5])),
            ("axes", Tensor::i64(&[2], vec![2, 3])),
            ("axis", Tensor::i64(&[1], vec![3])),
            ("matrix", Tensor::i64(&[2], vec![-1, 8])),
            ("stack", Tensor::i64(&[3], vec![-1, 2, 8])),
        ];
        let graph = Graph {
            nodes: nodes.collect(),
            inputs: vec![value("t0", Some(dims.to_vec()))],
            outputs: vec![value(&format!("t{}", middle.len() + 3), None)],
            constants: constants.map(|(name, tensor)| (name.to_string(), Arc::new(tensor))).into(),
            ..Graph::default()
        };
        fold(&graph).unwrap().0
    }

    #[test]
    fn products_behind_every_form_of_pooling_take_their_bias() {
        let none = Attrs::default;
        let mean = |keep: i64| Attrs::default().with("keepdims", Attr::Int(keep));
        let pool: (&str, Attrs, &[&str]) = ("GlobalAveragePool", none(), &[]);
        type Middle<'a> = Vec<(&'a str, Attrs, &'a [&'a str])>;
        let matrices: [Middle; 5] = [
            vec![pool.clone(), ("Squeeze", none(), &["axes"])],
            vec![("ReduceMean", mean(1), &["axes"]), ("Squeeze", none(), &["axes"])],
            vec![("ReduceMean", mean(0), &["axes"])],
            vec![pool.clone(), ("Reshape", none(), &["matrix"])],
            vec![pool.clone(), ("Squeeze", none(), &["axes"]), ("Relu", none(), &[]), ("Sigmoid", none(), &[])],
        ];
        for middle in &matrices {
            let graph = folded(middle);
            let last = graph.nodes.iter().find(|n| n.output() == graph.outputs[0].name).unwrap();
            assert!(matches!(last.op, Op::Gemm(_)) && last.inputs.len() == 3, "{middle:?}: {last:?}");
        }
        let others: [Middle; 2] =
            [vec![pool.clone(), ("Squeeze", none(), &["axis"])], vec![pool, ("Reshape", none(), &["stack"])]];
        for middle in &others {
            assert!(folded(middle).nodes.iter().any(|n| matches!(n.op, Op::MatMul(_))), "{middle:?}");
        }
    }
}
