//! Shapes of a graph as far as they can be known, and the memory that follows from them.

use fewbits_graph::{DType, Graph, GraphError, Op, exec, op::Fact};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What is known of the tensors.
pub(super) struct Known {
    /// By name.
    pub facts: BTreeMap<String, Fact>,
    /// Why something is not known.
    pub missing: Option<String>,
}

/// Facts of every tensor that does not depend on a node that refuses its inputs or is unknown.
pub(super) fn known(graph: &Graph, shapes: &[Vec<usize>]) -> Known {
    let opaque = graph.nodes.iter().filter(|n| matches!(n.op, Op::Opaque(_)));
    let mut refusing: BTreeSet<String> = opaque.map(|n| n.name.clone()).collect();
    let mut missing = refusing.first().map(|name| format!("everything behind `{name}`, whose operator is unknown"));
    loop {
        match exec::infer(&without(graph, &refusing), shapes) {
            Ok(facts) => return Known { facts, missing },
            Err(GraphError::Node { node, source, .. }) if !refusing.contains(&node) => {
                missing.get_or_insert_with(|| format!("everything behind `{node}`: {source}"));
                refusing.insert(node);
            }
            Err(error) => return Known { facts: BTreeMap::new(), missing: Some(error.to_string()) },
        }
    }
}

/// The graph without the nodes named `refusing` and everything that depends on them.
fn without(graph: &Graph, refusing: &BTreeSet<String>) -> Graph {
    let mut available: BTreeSet<String> = graph.constants.keys().cloned().collect();
    available.extend(graph.inputs.iter().map(|v| v.name.clone()));
    let mut part = Graph { nodes: vec![], outputs: vec![], ..graph.clone() };
    for node in graph.nodes.iter().filter(|n| !refusing.contains(&n.name)) {
        if node.present_inputs().all(|name| available.contains(name)) {
            available.extend(node.outputs.iter().cloned());
            part.nodes.push(node.clone());
        }
    }
    part
}

/// Most bytes of computed tensors alive at once, in the order of the nodes.
pub(super) fn peak_bytes(graph: &Graph, facts: &BTreeMap<String, Fact>) -> u64 {
    let mut last_reader: HashMap<&str, usize> = HashMap::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        last_reader.extend(node.present_inputs().map(|name| (name, i)));
    }
    last_reader.extend(graph.outputs.iter().map(|o| (o.name.as_str(), graph.nodes.len())));
    let size = |name: &str| {
        facts.get(name).filter(|f| f.value.is_none()).map_or(0, |f| f.len() as u64 * element_bytes(f.dtype))
    };
    let mut alive: u64 = graph.inputs.iter().map(|v| size(&v.name)).sum();
    let mut peak = alive;
    for (i, node) in graph.nodes.iter().enumerate() {
        alive += node.outputs.iter().map(|o| size(o)).sum::<u64>();
        peak = peak.max(alive);
        let read: BTreeSet<&str> = node.present_inputs().chain(node.outputs.iter().map(String::as_str)).collect();
        let dead = read.into_iter().filter(|name| last_reader.get(name).is_none_or(|&last| last == i));
        alive -= dead.filter(|name| graph.constant(name).is_none()).map(size).sum::<u64>();
    }
    peak
}

fn element_bytes(dtype: DType) -> u64 {
    match dtype {
        DType::F32 | DType::I32 => 4,
        DType::I64 => 8,
        DType::U8 | DType::I8 | DType::Bool | DType::Raw(_) => 1,
    }
}
