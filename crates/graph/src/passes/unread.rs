//! Optional outputs that nothing reads are dropped: exporters name the mask of a Dropout and the indices of a MaxPool all the same, and
//! a node with two outputs is no identity and has no integer kernel.

use crate::{error::GraphError, graph::Graph, op::Op};
use std::collections::BTreeSet;

pub(super) fn drop_outputs(graph: &mut Graph) -> Result<usize, GraphError> {
    let outputs = graph.outputs.iter().map(|o| o.name.clone());
    let read: BTreeSet<String> = graph.consumers().into_keys().map(String::from).chain(outputs).collect();
    let mut changed = 0;
    for node in &mut graph.nodes {
        // The outputs of a Split say how many parts there are; an unknown operator may mean anything.
        if matches!(node.op, Op::Split(_) | Op::Opaque(_)) {
            continue;
        }
        let wanted = |name: &String| read.contains(name);
        let count = node.outputs.iter().rposition(wanted).map_or(1, |last| last + 1);
        if count < node.outputs.len() {
            node.outputs.truncate(count);
            changed += 1;
        }
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        op::Op,
        ops::{Dropout, MaxPool, Relu, Split, window::Window},
        passes::testing::Maker,
        tensor::Tensor,
    };

    #[test]
    fn only_what_is_read_stays() {
        let pool = MaxPool { window: Window::square(2, 1, 0), ceil_mode: false, column_major: false };
        let mut maker = Maker::default();
        maker.constant("parts", Tensor::i64(&[2], vec![1, 2]));
        let nodes: [(Op, &[&str], [&str; 2]); 3] = [
            (pool.into(), &["x"], ["m", "indices"]),
            (Dropout { seed: None }.into(), &["m"], ["d", "mask"]),
            (Split { axis: 1, num_outputs: None }.into(), &["d", "parts"], ["s", "rest"]),
        ];
        for (op, inputs, outputs) in nodes {
            maker.node(op, inputs, outputs[0]);
            let node = maker.0.nodes.last_mut().expect("a node was added");
            node.outputs.push(outputs[1].into());
        }
        maker.node(Relu {}, &["s"], "y");
        let mut graph = maker.0.clone();
        assert_eq!(drop_outputs(&mut graph).unwrap(), 2);
        assert_eq!(graph.nodes.iter().map(|n| n.outputs.len()).collect::<Vec<_>>(), [1, 1, 2, 1]);
        // Then the Dropout is an identity.
        assert!(maker.graph("y").nodes.iter().all(|n| !matches!(n.op, Op::Dropout(_))));
    }
}
