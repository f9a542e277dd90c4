//! Which signs the elements of each tensor have, as far as operators tell.

use crate::quantizers::Signs;
use fewbits_graph::{
    Graph, Node, Op,
    op::{Activation, Fact},
};
use std::collections::BTreeMap;

/// Which signs the elements of each tensor have, as far as operators tell.
pub(super) fn signs(graph: &Graph, facts: &BTreeMap<String, Fact>) -> BTreeMap<String, Signs> {
    let mut known: BTreeMap<String, Signs> = BTreeMap::new();
    for node in &graph.nodes {
        let of = |i: usize| node.input(i).and_then(|name| known.get(name)).copied().unwrap_or(Signs::Both);
        let ins: Vec<Option<&Fact>> = node.inputs.iter().map(|n| facts.get(n)).collect();
        let sign = match (&node.op, node.op.def().activation(&ins)) {
            (Op::Identity(_), _) => of(0),
            (_, Some(Activation::Clamp { min, .. })) if min >= 0.0 => Signs::Positive,
            (_, Some(Activation::Sigmoid | Activation::HardSigmoid { .. } | Activation::Exp)) => Signs::Positive,
            (_, Some(Activation::HardSwish | Activation::Silu)) => Signs::Lobe,
            (Op::Mul(_), _) => product_sign(graph, node, of(0), of(1)),
            (Op::Add(_) | Op::Concat(_), _) => {
                let all: Vec<Signs> = (0..node.inputs.len()).map(of).collect();
                let least = |a: Signs, b: &Signs| match (a, b) {
                    (Signs::Both, _) | (_, Signs::Both) => Signs::Both,
                    (Signs::Lobe, _) | (_, Signs::Lobe) => Signs::Lobe,
                    _ => Signs::Positive,
                };
                all.iter().fold(Signs::Positive, least)
            }
            (Op::AveragePool(_) | Op::GlobalAveragePool(_) | Op::MaxPool(_) | Op::ReduceMean(_), _) => of(0),
            (Op::Flatten(_) | Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) | Op::Split(_) | Op::Pad(_), _) => of(0),
            _ => Signs::Both,
        };
        known.extend(node.outputs.iter().map(|name| (name.clone(), sign)));
    }
    known
}

/// The sign of a product: SiLU's lobe, or the other factor's sign if one is positive.
fn product_sign(graph: &Graph, node: &Node, a: Signs, b: Signs) -> Signs {
    let gates = |gate: usize, x: usize| {
        let maker = graph.nodes.iter().find(|n| Some(n.output()) == node.input(gate));
        maker.is_some_and(|n| matches!(n.op, Op::Sigmoid(_) | Op::HardSigmoid(_)) && n.input(0) == node.input(x))
    };
    match (a, b) {
        _ if gates(0, 1) || gates(1, 0) => Signs::Lobe,
        (Signs::Positive, other) | (other, Signs::Positive) => other,
        _ => Signs::Both,
    }
}
