//! ReduceMean over the two spatial axes is GlobalAveragePool, which ONNX Runtime computes in integers.

use super::is_spatial;
use crate::{
    error::GraphError,
    graph::{Graph, Node},
    op::Op,
    ops::{Flatten, GlobalAveragePool},
};

pub(super) fn to_global_average_pool(graph: &mut Graph) -> Result<usize, GraphError> {
    let mut changed = 0;
    for i in 0..graph.nodes.len() {
        let Op::ReduceMean(mean) = &graph.nodes[i].op else { continue };
        let axes = graph.nodes[i].input(1).and_then(|name| graph.constant(name)).and_then(|t| t.to_i64());
        let Some(mut axes) = axes else { continue };
        axes.sort_unstable();
        // The axes alone do not say how many there are.
        let spatial = (axes == [2, 3] || axes == [-2, -1]) && is_spatial(graph, &graph.nodes[i].inputs[0]);
        if !spatial {
            continue;
        }
        let (keep, input, output) =
            (mean.keep_dims, graph.nodes[i].inputs[0].clone(), graph.nodes[i].output().to_string());
        graph.nodes[i].op = GlobalAveragePool.into();
        graph.nodes[i].inputs = vec![input];
        if !keep {
            let pooled = graph.fresh_name(&format!("{output}_pooled"));
            graph.nodes[i].outputs = vec![pooled.clone()];
            let name = graph.fresh_name(&format!("{}_flatten", graph.nodes[i].name));
            graph.nodes.push(Node {
                name,
                op: Flatten { axis: 1 }.into(),
                inputs: vec![pooled],
                outputs: vec![output],
            });
        }
        changed += 1;
    }
    Ok(changed)
}
