use super::{Executor, Mode};
use crate::{
    attrs::{Attr, Attrs},
    error::GraphError,
    graph::{Graph, Node, ValueInfo},
    op::Op,
    tensor::{DType, Tensor},
};
use fewbits_kernels::Threads;
use std::sync::Arc;

#[test]
fn tensors_that_no_memory_holds_are_refused_by_the_name_of_the_node() {
    let ints = |v: &[i64]| Tensor::i64(&[v.len()], v.to_vec());
    let scales = |s: f32| Tensor::f32(&[4], vec![1.0, 1.0, s, s]);
    let cases = [
        ("Resize", vec![("scales", scales(1e30))]),
        ("Resize", vec![("scales", scales(1e7))]),
        ("Tile", vec![("repeats", ints(&[1, 1, 1 << 31, 1 << 31]))]),
        ("Expand", vec![("shape", ints(&[1 << 20, 1 << 20, 2, 2]))]),
        ("Pad", vec![("pads", ints(&[0, 0, 1 << 30, 1 << 30, 0, 0, 0, 0]))]),
        ("Mul", vec![("long", Tensor::f32(&[1 << 18, 1, 1, 1, 1], vec![1.0; 1 << 18]))]),
    ];
    for (op_type, operands) in cases {
        let attrs = if op_type == "Resize" {
            Attrs::default().with("mode", Attr::Str("nearest".into()))
        } else {
            Attrs::default()
        };
        let value = |name: &str| ValueInfo { name: name.into(), dtype: DType::F32, dims: None };
        let mut inputs = vec!["x".to_string()];
        inputs.extend((op_type == "Resize").then(String::new));
        inputs.extend(operands.iter().map(|(name, _)| name.to_string()));
        let op = Op::from_attrs(op_type, &attrs).unwrap();
        let graph = Graph {
            nodes: vec![Node { name: "the node".into(), op, inputs, outputs: vec!["y".into()] }],
            inputs: vec![value("x")],
            outputs: vec![value("y")],
            constants: operands.into_iter().map(|(name, t)| (name.to_string(), Arc::new(t))).collect(),
            ..Graph::default()
        };
        let threads = Threads::new(1);
        let side = if op_type == "Mul" { 256 } else { 2 };
        let x = Tensor::f32(&[1, 1, side, side], vec![1.0; side * side]);
        let error = Executor::new(&graph, Mode::Float, &threads).run(&[x]).unwrap_err();
        let GraphError::Node { node, source, .. } = &error else { panic!("{op_type}: {error}") };
        assert!(node == "the node" && source.to_string().contains("a tensor of shape"), "{op_type}: {source}");
    }
}

#[test]
fn outputs_that_an_operator_does_not_have() {
    let value = |name: &str| ValueInfo { name: name.into(), dtype: DType::F32, dims: None };
    let run = |second: &str| {
        let op = Op::from_attrs("Relu", &Attrs::default()).unwrap();
        let outputs = vec!["y".into(), second.into()];
        let graph = Graph {
            nodes: vec![Node { name: "the node".into(), op, inputs: vec!["x".into()], outputs }],
            inputs: vec![value("x")],
            outputs: vec![value("y")],
            ..Graph::default()
        };
        Executor::new(&graph, Mode::Float, &Threads::new(1)).run(&[Tensor::f32(&[2], vec![-1.0, 1.0])])
    };
    let error = run("z").unwrap_err();
    let GraphError::Node { node, source, .. } = &error else { panic!("{error}") };
    assert!(node == "the node" && source.to_string().contains("output `z`"), "{source}");
    assert_eq!(run("").unwrap()[0].as_f32().unwrap(), [0.0, 1.0]);
}
