//! The sizes of a network as papers state them.

use fewbits_graph::{Graph, GraphError, Op, exec};

/// Numbers that a training changes: weights and biases of convolutions and matrix products, scales and biases of batch
/// normalizations; their running statistics are not among them.
pub fn parameters(graph: &Graph) -> usize {
    let trained = |op: &Op| match op {
        Op::Conv(_) | Op::Gemm(_) | Op::BatchNormalization(_) => 1..3,
        _ => 0..0,
    };
    let of_node = |node: &fewbits_graph::Node| -> usize {
        trained(&node.op).filter_map(|i| graph.constant(node.input(i)?)).map(|tensor| tensor.len()).sum()
    };
    graph.nodes.iter().map(of_node).sum()
}

/// Multiply-accumulates of one image: those of convolutions and matrix products.
///
/// # Errors
/// As [`exec::infer`].
pub fn macs(graph: &Graph, input: [usize; 3]) -> Result<u64, GraphError> {
    let [channels, height, width] = input;
    let facts = exec::infer(graph, &[vec![1, channels, height, width]])?;
    let of_node = |node: &fewbits_graph::Node| {
        let ins: Vec<_> = node.inputs.iter().map(|name| facts.get(name)).collect();
        let outs: Vec<_> = node.outputs.iter().filter_map(|name| facts.get(name).cloned()).collect();
        node.op.def().macs(&ins, &outs)
    };
    Ok(graph.nodes.iter().map(of_node).sum())
}
