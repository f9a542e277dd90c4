//! Identity, Dropout (inference) and Max of one operand disappear; their readers read the input. One that writes a graph output from a graph input or
//! constant stays.

use crate::{error::GraphError, graph::Graph, op::Op};

pub(super) fn remove(graph: &mut Graph) -> Result<usize, GraphError> {
    let mut removed = 0;
    for i in 0..graph.nodes.len() {
        let node = &graph.nodes[i];
        let mask_used = node.outputs.get(1).is_some_and(|mask| !mask.is_empty());
        let of_one = matches!(node.op, Op::Max(_)) && node.inputs.len() == 1;
        if !(of_one || matches!(node.op, Op::Identity(_) | Op::Dropout(_))) || mask_used {
            continue;
        }
        let (from, to) = (node.inputs[0].clone(), node.output().to_string());
        if graph.is_output(&to) {
            // The producer writes the graph output itself, unless its tensor has another public name.
            let producer = graph.nodes.iter().position(|n| n.outputs.contains(&from));
            let Some(producer) = producer.filter(|_| !graph.is_output(&from)) else { continue };
            graph.nodes[i].outputs.clear();
            for name in &mut graph.nodes[producer].outputs {
                if *name == from {
                    name.clone_from(&to);
                }
            }
            graph.redirect(&from, &to);
        } else {
            graph.nodes[i].outputs.clear();
            graph.redirect(&to, &from);
        }
        removed += 1;
    }
    graph.nodes.retain(|n| !n.outputs.is_empty());
    Ok(removed)
}
