//! Whether the images of a batch can be computed some at a time: a whole network for a few images, whose activations stay in the
//! cache, is faster than every layer for all images.
//!
//! What enters: a graph and shapes for a batch. What leaves: how many images to compute together, if their results are the same.

use super::lower;
use crate::{
    error::OpError,
    graph::{Graph, Node},
    op::{self, Fact, Op, normal_axis},
    ops::{dispatch::Tables, slice},
};
use std::collections::BTreeMap;

/// Most images computed together: enough to read the weights of late layers less often, few enough for the cache.
const TOGETHER: usize = 4;
/// Parts of a large batch for each thread at least: enough to keep all of them evenly busy.
pub(super) const PARTS_PER_THREAD: usize = 4;

/// The shapes for the number of images that is computed at a time, and how many such parts there are; `None` where a tensor
/// does not hold one row per image or an operator might look across images.
pub(super) fn split(graph: &Graph, shapes: &[Vec<usize>], threads: usize) -> Option<(Vec<Vec<usize>>, usize)> {
    let images = *shapes.first()?.first()?;
    if shapes.iter().any(|dims| dims.first() != Some(&images)) {
        return None;
    }
    if images < 2 {
        return None;
    }
    let part =
        (1..=(images / (PARTS_PER_THREAD * threads)).clamp(1, TOGETHER)).rev().find(|n| images.is_multiple_of(*n))?;
    Some((fits(graph, shapes, part).ok()?, images / part))
}

/// Why the images of the batch cannot be computed apart, each from its own row of the inputs; `None` if they can.
pub(crate) fn joined(graph: &Graph, shapes: &[Vec<usize>]) -> Option<String> {
    let images = shapes.first().and_then(|dims| dims.first());
    if shapes.iter().any(|dims| dims.first() != images) {
        return Some("its inputs differ in their first axis".into());
    }
    fits(graph, shapes, 1).err()
}

/// The shapes for `part` images, if they can be computed apart; else why not.
fn fits(graph: &Graph, shapes: &[Vec<usize>], part: usize) -> Result<Vec<Vec<usize>>, String> {
    let images = shapes.first().and_then(|dims| dims.first()).copied().ok_or("its input has no batch axis")?;
    let with_images = |dims: &Vec<usize>| [&[part], &dims[1..]].concat();
    let part_shapes: Vec<Vec<usize>> = shapes.iter().map(with_images).collect();
    // A graph that refuses fewer images, say by a fixed shape, is computed as a whole.
    let infer = |shapes: &[Vec<usize>]| lower::infer(graph, shapes).map_err(|e| format!("batches of {shapes:?}: {e}"));
    let facts = Facts { few: infer(&part_shapes)?, all: infer(shapes)?, part, images };
    if let Some(node) = graph.nodes.iter().find(|node| !facts.apart(node)) {
        return Err(format!("node `{}` ({}) may look across images", node.name, node.op.name()));
    }
    match graph.outputs.iter().find(|o| !facts.rows(&o.name)) {
        Some(output) => Err(format!("output `{}` has no row for each image", output.name)),
        None => Ok(part_shapes),
    }
}

/// What is known of every tensor for a part of the images and for all.
struct Facts {
    few: BTreeMap<String, Fact>,
    all: BTreeMap<String, Fact>,
    part: usize,
    images: usize,
}

impl Facts {
    /// Whether each row of the node's outputs depends on the same row of its inputs only, and in the same way for any number
    /// of rows. Operators that keep the first axis in place in all their forms are listed; the others are taken to mix.
    fn apart(&self, node: &Node) -> bool {
        if node.outputs.iter().all(|name| name.is_empty() || self.known(name)) {
            return true;
        }
        let (data, known): (Vec<&String>, Vec<&String>) =
            node.inputs.iter().filter(|name| !name.is_empty()).partition(|name| !self.known(name));
        let rank = |name: &str| self.all[name].dims.len();
        let rows =
            node.outputs.iter().filter(|name| !name.is_empty()).chain(data.iter().copied()).all(|name| self.rows(name));
        let one_rank = data.windows(2).all(|pair| rank(pair[0]) == rank(pair[1]));
        let same = || known.iter().all(|name| self.few[*name].value == self.all[*name].value);
        let keeps = match &node.op {
            // Their known inputs are shapes, which the rows above account for.
            Op::Reshape(_) | Op::Resize(_) => true,
            Op::Softmax(softmax) => normal_axis(softmax.axis, rank(&node.inputs[0])).is_ok_and(|axis| axis > 0),
            Op::LogSoftmax(softmax) => normal_axis(softmax.axis, rank(&node.inputs[0])).is_ok_and(|axis| axis > 0),
            Op::ArgMax(largest) => normal_axis(largest.axis, rank(&node.inputs[0])).is_ok_and(|axis| axis > 0),
            Op::Slice(_) => same() && self.leaves_rows(node, slice::tables),
            Op::Pad(pad) => same() && self.leaves_rows(node, |ins| pad.tables(ins)),
            op => pointwise(op) && same(),
        };
        rows && one_rank && keeps
    }

    /// Whether an operator that picks elements by index tables picks the rows as they are.
    fn leaves_rows(&self, node: &Node, tables: impl Fn(op::Facts) -> Result<Tables, OpError>) -> bool {
        [&self.few, &self.all].into_iter().all(|facts| {
            let ins: Vec<Option<&Fact>> = node.inputs.iter().map(|name| facts.get(name)).collect();
            let rows = facts[&node.inputs[0]].dims[0];
            tables(&ins)
                .is_ok_and(|tables| tables[0].as_ref().is_none_or(|rows_of| rows_of.iter().copied().eq(0..rows)))
        })
    }

    fn known(&self, name: &str) -> bool {
        self.few.get(name).is_some_and(|f| f.value.is_some()) && self.all.get(name).is_some_and(|f| f.value.is_some())
    }

    /// Whether the tensor is computed, with one row per image.
    fn rows(&self, name: &str) -> bool {
        let (Some(few), Some(all)) = (self.few.get(name), self.all.get(name)) else { return false };
        let same_rows = few.dims.len() == all.dims.len() && few.dims.iter().zip(&all.dims).skip(1).all(|(a, b)| a == b);
        let computed = few.value.is_none() && all.value.is_none();
        computed && same_rows && few.dims.first() == Some(&self.part) && all.dims.first() == Some(&self.images)
    }
}

/// Operators that cannot look across the first axis when it is the only one whose length varies, and varies alike in all their
/// inputs and outputs.
fn pointwise(op: &Op) -> bool {
    use Op::*;
    matches!(
        op,
        Abs(_)
            | Add(_)
            | AveragePool(_)
            | BatchNormalization(_)
            | Cast(_)
            | Ceil(_)
            | Clip(_)
            | Concat(_)
            | Conv(_)
            | ConvTranspose(_)
            | DequantizeLinear(_)
            | Div(_)
            | Dropout(_)
            | Exp(_)
            | Flatten(_)
            | Floor(_)
            | Gemm(_)
            | GlobalAveragePool(_)
            | GlobalMaxPool(_)
            | HardSigmoid(_)
            | HardSwish(_)
            | Identity(_)
            | LeakyRelu(_)
            | Lrn(_)
            | MatMul(_)
            | Max(_)
            | MaxPool(_)
            | Min(_)
            | Mul(_)
            | Neg(_)
            | PRelu(_)
            | QuantizeLinear(_)
            | ReduceL2(_)
            | ReduceMax(_)
            | ReduceMean(_)
            | ReduceMin(_)
            | ReduceSum(_)
            | Relu(_)
            | Round(_)
            | Sigmoid(_)
            | Split(_)
            | Sqrt(_)
            | Squeeze(_)
            | Sub(_)
            | Tanh(_)
            | Transpose(_)
            | Unsqueeze(_)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        attrs::Attrs,
        exec::{Executor, Mode},
        graph::{Dim, ValueInfo},
        ops::{Reshape, Slice, Softmax, Transpose},
        tensor::{DType, Tensor},
    };
    use fewbits_kernels::Threads;
    use std::sync::Arc;

    /// One operator after the other on `[N, 4, 5, 5]`, each with its constants.
    fn chain(ops: Vec<(Op, Vec<Tensor>)>) -> Graph {
        let info = |name: String, dims| ValueInfo { name, dtype: DType::F32, dims };
        let image = vec![Dim::Symbol("N".into()), Dim::Fixed(4), Dim::Fixed(5), Dim::Fixed(5)];
        let mut graph = Graph { inputs: vec![info("t0".into(), Some(image))], opset: 17, ..Graph::default() };
        for (i, (op, constants)) in ops.into_iter().enumerate() {
            let mut inputs = vec![format!("t{i}")];
            for (k, constant) in constants.into_iter().enumerate() {
                inputs.push(format!("c{i}.{k}"));
                graph.constants.insert(format!("c{i}.{k}"), Arc::new(constant));
            }
            let node = Node { name: format!("n{i}"), op, inputs, outputs: vec![format!("t{}", i + 1)] };
            graph.nodes.push(node);
        }
        graph.outputs = vec![info(format!("t{}", graph.nodes.len()), None)];
        graph
    }

    /// The operator of that name without attributes.
    fn plain(name: &str) -> Op {
        Op::from_attrs(name, &Attrs::default()).expect("it needs no attributes")
    }

    fn varied(dims: &[usize], seed: usize) -> Tensor {
        let len: usize = dims.iter().product();
        Tensor::f32(dims, (0..len).map(|i| ((i * 37 + seed * 11) % 101) as f32 * 0.02 - 1.0).collect())
    }

    fn parts(graph: &Graph, images: usize) -> Option<usize> {
        split(graph, &[vec![images, 4, 5, 5]], 2).map(|(_, parts)| parts)
    }

    fn reshape(dims: &[i64]) -> (Op, Vec<Tensor>) {
        (Reshape { allow_zero: false }.into(), vec![Tensor::i64(&[dims.len()], dims.to_vec())])
    }

    #[test]
    fn parts_give_the_results_of_the_batch_and_of_single_images() {
        let graph = chain(vec![
            (plain("Conv"), vec![varied(&[6, 4, 2, 2], 1), varied(&[6], 2)]),
            (plain("Relu"), vec![]),
            reshape(&[0, -1]),
            (plain("Gemm"), vec![varied(&[96, 7], 3)]),
            (Softmax { axis: -1 }.into(), vec![]),
        ]);
        for images in [1, 2, 7, 9, 16, 33, 64] {
            assert_eq!(parts(&graph, images).is_some(), images > 1);
            let x = varied(&[images, 4, 5, 5], 4);
            let values = x.as_f32().expect("floats");
            let one = Threads::new(1);
            let mut single = Executor::new(&graph, Mode::Float, &one);
            let expected: Vec<f32> = values
                .chunks(100)
                .flat_map(|image| {
                    let outputs = single.run(&[Tensor::f32(&[1, 4, 5, 5], image.to_vec())]).expect("the graph runs");
                    outputs[0].as_f32().expect("floats").to_vec()
                })
                .collect();
            for count in [1, 3] {
                let threads = Threads::new(count);
                let outputs = Executor::new(&graph, Mode::Float, &threads).run(std::slice::from_ref(&x));
                assert_eq!(outputs.expect("the graph runs"), [Tensor::f32(&[images, 7], expected.clone())]);
            }
        }
    }

    #[test]
    fn what_looks_across_images_is_left_whole() {
        let swap = Transpose { perm: Some(vec![1, 0, 2, 3]) };
        let reversed = [-1, i64::MIN, 0, -1].map(|v| Tensor::i64(&[1], vec![v])).to_vec();
        for ops in [
            vec![(Softmax { axis: 0 }.into(), vec![])],
            vec![(Softmax { axis: -4 }.into(), vec![])],
            vec![reshape(&[-1, 50])],
            vec![reshape(&[1, -1])],
            vec![(swap.into(), vec![])],
            vec![(Slice.into(), reversed)],
        ] {
            let graph = chain(ops);
            assert_eq!(parts(&graph, 8), None, "{:?}", graph.nodes);
        }
        assert_eq!(parts(&chain(vec![(plain("Relu"), vec![])]), 32), Some(8));
    }
}
