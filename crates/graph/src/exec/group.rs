//! Finds nodes that one kernel computes together: a convolution or matrix product, the residual addition behind it, and the
//! activation behind that.

use crate::{
    exec::Mode,
    graph::Graph,
    op::{Facts, Op},
};
use fewbits_kernels::float::Activation;
use std::collections::{BTreeSet, HashMap};

/// Nodes computed as one: `output = activation(head + residual)`.
#[derive(Debug)]
pub(super) struct Group {
    /// Position of the convolution or matrix product.
    pub head: usize,
    /// The tensor added to it.
    pub residual: Option<String>,
    /// Applied last.
    pub activation: Activation,
    /// The tensor that the group writes.
    pub output: String,
    /// Positions of the nodes, in order.
    pub members: Vec<usize>,
}

/// The groups of `graph`, by the position of their last node; and the positions of the nodes that they swallow.
/// A tensor inside a group has no reader outside, is no graph output, carries no grid and is not observed.
pub(super) fn groups(
    graph: &Graph,
    mode: Mode,
    observed: &BTreeSet<String>,
) -> (HashMap<usize, Group>, BTreeSet<usize>) {
    let consumers = graph.consumers();
    let readers = |name: &str| consumers.get(name).map_or(&[][..], Vec::as_slice);
    let hidden = |name: &str| {
        !graph.is_output(name)
            && !observed.contains(name)
            && mode.grids().is_none_or(|grids| grids.params(name).is_none())
    };
    let (mut found, mut taken) = (HashMap::new(), BTreeSet::new());
    // Later heads first: of two convolutions that are added, the later one absorbs the addition.
    for head in (0..graph.nodes.len()).rev() {
        if !is_head(graph, mode, head) || taken.contains(&head) {
            continue;
        }
        let mut group = Group {
            head,
            residual: None,
            activation: Activation::Identity,
            output: graph.nodes[head].output().into(),
            members: vec![head],
        };
        loop {
            if !hidden(&group.output) {
                break;
            }
            let step = match readers(&group.output) {
                [one] if !taken.contains(one) => follow(graph, &group, *one).map(|change| (change, vec![*one])),
                [a, b] if !taken.contains(a) && !taken.contains(b) => silu(graph, &group, *a, *b, &hidden, &readers),
                _ => None,
            };
            let Some((change, nodes)) = step else { break };
            match change {
                Change::Residual(name) => group.residual = Some(name),
                Change::Activation(activation) => group.activation = activation,
            }
            group.members.extend(&nodes);
            group.output = graph.nodes[*nodes.last().expect("a step has nodes")].output().into();
            if group.activation != Activation::Identity {
                break;
            }
        }
        if let [_, .., last] = group.members[..] {
            taken.extend(&group.members);
            found.insert(last, group);
        }
    }
    for last in found.keys() {
        taken.remove(last);
    }
    (found, taken)
}

/// Layers; and additions of codes, which clamp for free.
fn is_head(graph: &Graph, mode: Mode, node: usize) -> bool {
    let node = &graph.nodes[node];
    match (&node.op, mode) {
        (Op::Conv(_) | Op::Gemm(_) | Op::MatMul(_), _) => true,
        (Op::Add(_), Mode::Integer(grids)) => node.inputs.iter().all(|name| grids.params(name).is_some()),
        _ => false,
    }
}

enum Change {
    Residual(String),
    Activation(Activation),
}

/// What the single reader `node` of the group's output adds to the group.
fn follow(graph: &Graph, group: &Group, node: usize) -> Option<Change> {
    let node = &graph.nodes[node];
    if let Op::Add(_) = node.op {
        let other = node.inputs.iter().find(|name| **name != group.output)?;
        let constant = graph.constant(other).is_some();
        return (group.residual.is_none() && !constant).then(|| Change::Residual(other.clone()));
    }
    if node.input(0) != Some(&group.output) {
        return None;
    }
    let bounds: Vec<_> =
        node.inputs.iter().map(|name| graph.constant(name).cloned().map(crate::op::Fact::constant)).collect();
    let facts: Vec<_> = bounds.iter().map(Option::as_ref).collect();
    let bounds_known = node.inputs[1..].iter().all(|name| name.is_empty() || graph.constant(name).is_some());
    let facts: Facts = &facts;
    if bounds_known { node.op.def().activation(facts).map(Change::Activation) } else { None }
}

/// Recognises `x · Sigmoid(x)` behind the group.
fn silu<'a>(
    graph: &Graph,
    group: &Group,
    a: usize,
    b: usize,
    hidden: &impl Fn(&str) -> bool,
    readers: &impl Fn(&str) -> &'a [usize],
) -> Option<(Change, Vec<usize>)> {
    let [gate, product] = [a, b].map(|i| &graph.nodes[i]);
    let ops_fit = matches!(gate.op, Op::Sigmoid(_)) && matches!(product.op, Op::Mul(_));
    let inputs_fit = product.inputs.iter().all(|name| *name == group.output || name == gate.output());
    let gate_only = hidden(gate.output()) && readers(gate.output()) == [b];
    (ops_fit && inputs_fit && gate_only).then(|| (Change::Activation(Activation::Silu), vec![a, b]))
}
