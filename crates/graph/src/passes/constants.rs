//! Nodes whose inputs are all constants become constants.

use crate::{
    error::GraphError,
    exec::constant,
    graph::{Graph, Node},
    op::{Fact, Op, Role},
};
use fewbits_kernels::Threads;
use std::{collections::BTreeSet, sync::Arc};

pub(super) fn fold(graph: &mut Graph) -> Result<usize, GraphError> {
    let threads = Threads::new(1);
    let mut folded = 0;
    for i in 0..graph.nodes.len() {
        let node = &graph.nodes[i];
        let known = |name: &String| name.is_empty() || graph.constants.contains_key(name);
        if matches!(node.op, Op::Opaque(_)) || node.inputs.is_empty() || !node.inputs.iter().all(known) {
            continue;
        }
        let facts: Vec<_> = node.inputs.iter().map(|n| graph.constant(n).cloned().map(Fact::constant)).collect();
        let facts: Vec<_> = facts.iter().map(Option::as_ref).collect();
        // A node that refuses its constants is left to the executor, which reports it with its inputs.
        let Ok(outs) = node.op.def().infer(&facts) else { continue };
        let Ok(Some(values)) = constant::fold(&node.op, &facts, &outs, &threads) else { continue };
        for (name, value) in node.outputs.clone().into_iter().zip(values) {
            if !name.is_empty() {
                graph.constants.insert(name, Arc::new(value));
            }
        }
        // A node without outputs is pruned below.
        graph.nodes[i].outputs.clear();
        folded += 1;
    }
    graph.nodes.retain(|n| !n.outputs.is_empty());
    Ok(folded)
}

/// Every layer gets weights and a bias of its own, so that methods can change them layer by layer.
pub(super) fn unshare(graph: &mut Graph) -> Result<usize, GraphError> {
    copy_shared(graph, |node, k| matches!(node.op.def().quant_rule().role(k), Role::Weight { .. } | Role::Bias))
}

/// Every BatchNormalization gets constants of its own: files join those that are equal, and training makes them differ.
pub(super) fn unshare_normalizations(graph: &mut Graph) -> Result<usize, GraphError> {
    copy_shared(graph, |node, k| k > 0 && matches!(node.op, Op::BatchNormalization(_)))
}

/// Copies constants so that no two of the inputs that `belongs` names are the same one.
fn copy_shared(graph: &mut Graph, belongs: impl Fn(&Node, usize) -> bool) -> Result<usize, GraphError> {
    let mut seen = BTreeSet::new();
    let mut copied = 0;
    for i in 0..graph.nodes.len() {
        for k in 0..graph.nodes[i].inputs.len() {
            let name = graph.nodes[i].inputs[k].clone();
            let owned = belongs(&graph.nodes[i], k) && graph.constants.contains_key(&name);
            if !owned || seen.insert(name.clone()) {
                continue;
            }
            let copy = graph.fresh_name(&name);
            graph.constants.insert(copy.clone(), graph.constants[&name].clone());
            seen.insert(copy.clone());
            graph.nodes[i].inputs[k] = copy;
            copied += 1;
        }
    }
    Ok(copied)
}
