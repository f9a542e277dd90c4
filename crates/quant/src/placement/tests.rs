use super::*;
use crate::{WeightRule, calibrate::Policy};
use fewbits_graph::{Attr, Attrs, DType, Tensor, ValueInfo};
use std::sync::Arc;

fn op(name: &str, attrs: &[(&str, Attr)]) -> Op {
    let attrs = attrs.iter().fold(Attrs::default(), |all, (name, value)| all.with(name, value.clone()));
    Op::from_attrs(name, &attrs).unwrap()
}

/// A graph from `x` to the last node's output; every node is named after what it writes, and `w` is a weight.
fn graph(nodes: &[(Op, &[&str], &str)]) -> Graph {
    let value = |name: &str| ValueInfo { name: name.into(), dtype: DType::F32, dims: None };
    let node = |(op, inputs, output): &(Op, &[&str], &str)| Node {
        name: output.to_string(),
        op: op.clone(),
        inputs: inputs.iter().map(|s| s.to_string()).collect(),
        outputs: vec![output.to_string()],
    };
    let constants = [
        ("w", Tensor::f32(&[2, 2, 1, 1], vec![0.5; 4])),
        ("b", Tensor::f32(&[2], vec![0.5; 2])),
        ("two", Tensor::i64(&[1], vec![2])),
    ];
    Graph {
        nodes: nodes.iter().map(node).collect(),
        inputs: vec![value("x")],
        outputs: vec![value(nodes[nodes.len() - 1].2)],
        constants: constants.map(|(name, tensor)| (name.to_string(), Arc::new(tensor))).into(),
        ..Graph::default()
    }
}

fn placed(nodes: &[(Op, &[&str], &str)]) -> Placement {
    place(&graph(nodes), &"ort".parse().unwrap(), &BTreeSet::new())
}

fn runs_in_integers(placement: &Placement, node: &str) -> bool {
    placement.nodes.iter().find(|n| n.node == node).unwrap().integer
}

#[test]
fn sizes_computed_from_shapes_have_no_grid() {
    let placement = placed(&[
        (op("Conv", &[]), &["x", "w", "b"], "a"),
        (op("Shape", &[]), &["a"], "s"),
        (op("Mul", &[]), &["s", "two"], "t"),
        (op("Reshape", &[]), &["a", "t"], "r"),
        (op("Conv", &[]), &["r", "w", "b"], "y"),
    ]);
    assert!(!runs_in_integers(&placement, "s") && !runs_in_integers(&placement, "t"));
    assert!(!placement.sites.contains_key("s") && !placement.sites.contains_key("t"));
    assert_eq!(placement.sites["r"], Site::SameAs("a".into()));
}

#[test]
fn an_expectation_over_a_softmax_is_no_layer() {
    let placement = placed(&[
        (op("Conv", &[]), &["x", "w", "b"], "a"),
        (op("Softmax", &[("axis", Attr::Int(1))]), &["a"], "p"),
        (op("Transpose", &[]), &["p"], "t"),
        (op("Conv", &[]), &["t", "w", "b"], "y"),
    ]);
    assert!(runs_in_integers(&placement, "a") && !runs_in_integers(&placement, "y"));
    assert!(!placement.sites.contains_key("t") && !placement.sites.contains_key("y"));
}

#[test]
fn decoded_boxes_have_no_grid() {
    let nodes = [
        (op("Conv", &[]), &["x", "w", "b"][..], "a"),
        (op("Transpose", &[("perm", Attr::Ints(vec![0, 2, 3, 1]))]), &["a"], "t"),
        (op("Exp", &[]), &["t"], "e"),
        (op("Add", &[]), &["t", "grid"], "g"),
        (op("Mul", &[]), &["g", "stride"], "m"),
        (op("Concat", &[("axis", Attr::Int(3))]), &["m", "e"], "boxes"),
        (op("MatMul", &[]), &["boxes", "corners"], "y"),
    ];
    let mut graph = graph(&nodes);
    let square = Tensor::f32(&[4, 4], [[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]].concat().repeat(2));
    for (name, tensor) in
        [("grid", Tensor::f32(&[2], vec![3.0, 7.0])), ("stride", Tensor::f32(&[1], vec![8.0])), ("corners", square)]
    {
        graph.constants.insert(name.into(), Arc::new(tensor));
    }
    for target in ["ort", "tensorrt", "generic"] {
        let placement = place(&graph, &target.parse().unwrap(), &BTreeSet::new());
        assert!(runs_in_integers(&placement, "a"), "{target}");
        for (_, _, name) in &nodes[2..] {
            assert!(!runs_in_integers(&placement, name) && !placement.sites.contains_key(*name), "{target}: {name}");
        }
        assert!(!placement.sites.contains_key("corners"), "{target}");
        let matmul = placement.nodes.iter().find(|n| n.node == "y").unwrap();
        assert!(matmul.reason.contains("boxes"), "{target}: {}", matmul.reason);
    }
    // A product with more than boxes is a layer.
    graph.constants.insert("corners".into(), Arc::new(Tensor::f32(&[4, 5], vec![0.5; 20])));
    let placement = place(&graph, &"ort".parse().unwrap(), &BTreeSet::new());
    assert!(runs_in_integers(&placement, "y"));
}

#[test]
fn a_transposed_convolution_between_grids_has_rounded_weights() {
    let conv = op("Conv", &[]);
    let transposed = op("ConvTranspose", &[]);
    let mut nodes: Vec<(Op, &[&str], &str)> = vec![
        (conv.clone(), &["x", "v", "b"], "a"),
        (transposed, &["a", "w", "b2"], "t"),
        (conv, &["t", "v", "b"], "y"),
    ];
    let with = |nodes: &[(Op, &[&str], &str)]| {
        let mut graph = graph(nodes);
        for (name, of) in [("v", "w"), ("b2", "b")] {
            let tensor = graph.constants[of].clone();
            graph.constants.insert(name.into(), tensor);
        }
        place(&graph, &"ort".parse().unwrap(), &BTreeSet::new())
    };
    let placement = with(&nodes);
    assert!(!runs_in_integers(&placement, "t"));
    assert!(matches!(placement.sites["w"], Site::Weight { axis: 1, .. }) && placement.sites.contains_key("b2"));
    // Behind the last layer no grid follows: ONNX Runtime leaves the weights alone, and so do we.
    nodes.truncate(2);
    assert!(!with(&nodes).sites.contains_key("w"));
}

#[test]
fn a_tensor_that_is_multiplied_and_added_has_two_grids() {
    let conv = op("Conv", &[]);
    let placement = placed(&[
        (conv.clone(), &["x", "w", "b"], "a"),
        (conv.clone(), &["a", "w", "b"], "c"),
        (op("Identity", &[]), &["c"], "c_layer_input"),
        (conv.clone(), &["c_layer_input", "w", "b"], "d"),
        (op("Add", &[]), &["c", "d"], "e"),
        (op("MaxPool", &[("kernel_shape", Attr::Ints(vec![1, 1]))]), &["e"], "p"),
        (conv.clone(), &["p", "w", "b"], "f"),
        (conv, &["f", "w", "b"], "y"),
    ]);
    let policy = Policy { weight_rule: WeightRule::MinMax, ..Policy::new(2, 2, 4) };
    let bits = |name: &&str| policy.activation_bits(name, &placement.sites[*name]);
    // First and last layers multiply `x` and `f`; summands and outputs are precise; `e` is read through a pool.
    let tensors = ["x", "a", "c", "c_layer_input", "d", "e", "f", "y"];
    assert_eq!(tensors.iter().map(bits).collect::<Vec<_>>(), [4, 2, 8, 2, 8, 2, 4, 8]);
    assert_eq!(placement.sites["p"], Site::SameAs("e".into()));
    assert!(!runs_in_integers(&placement, "c_layer_input"));
}

#[test]
fn what_stands_among_float_operators_stays_float() {
    let conv = op("Conv", &[]);
    let placement = placed(&[
        (conv.clone(), &["x", "w", "b"], "a"),
        (op("Neg", &[]), &["a"], "n"),
        (op("Exp", &[]), &["n"], "e"),
        (op("Add", &[]), &["e", "b"], "d"),
        (op("Div", &[]), &["a", "d"], "q"),
        (op("GlobalAveragePool", &[]), &["q"], "g"),
        (op("Flatten", &[]), &["g"], "f"),
        (op("Sqrt", &[]), &["f"], "s"),
        (op("Mul", &[]), &["q", "s"], "m"),
        (op("MaxPool", &[("kernel_shape", Attr::Ints(vec![1, 1]))]), &["m"], "p"),
        (conv, &["p", "w", "b"], "y"),
    ]);
    for float in ["d", "g"] {
        assert!(!runs_in_integers(&placement, float) && !placement.sites.contains_key(float), "{float}");
    }
    // The product is what a layer multiplies, moved about.
    assert!(runs_in_integers(&placement, "m"));
}

#[test]
fn absorbed_activations_are_no_float_operators() {
    let conv = op("Conv", &[]);
    let placement = placed(&[
        (conv.clone(), &["x", "w", "b"], "a"),
        (op("Relu", &[]), &["a"], "r"),
        (op("GlobalAveragePool", &[]), &["r"], "g"),
        (op("Sqrt", &[]), &["g"], "s"),
        (op("Exp", &[]), &["r"], "e"),
        (op("Add", &[]), &["s", "e"], "d"),
        (op("Relu", &[]), &["d"], "t"),
        (conv, &["t", "w", "b"], "y"),
    ]);
    for integer in ["g", "d", "t"] {
        assert!(runs_in_integers(&placement, integer), "{integer}");
    }
}

#[test]
fn a_gemm_that_does_more_than_a_layer_stays_float() {
    let with_addend = |dims: &[usize], gemm: Op| {
        let mut graph = graph(&[(gemm, &["x", "v", "c"], "y")]);
        graph.constants.insert("v".into(), Arc::new(Tensor::f32(&[2, 3], vec![0.5; 6])));
        graph.constants.insert("c".into(), Arc::new(Tensor::f32(dims, vec![0.5; dims.iter().product()])));
        runs_in_integers(&place(&graph, &"ort".parse().unwrap(), &BTreeSet::new()), "y")
    };
    let gemm = op("Gemm", &[]);
    assert!(with_addend(&[3], gemm.clone()) && with_addend(&[1, 3], gemm.clone()));
    for dims in [&[][..], &[1], &[4, 1], &[4, 3]] {
        assert!(!with_addend(dims, gemm.clone()), "{dims:?}");
    }
    for flag in [("transA", Attr::Int(1)), ("alpha", Attr::Float(0.5)), ("beta", Attr::Float(2.0))] {
        assert!(!with_addend(&[3], op("Gemm", std::slice::from_ref(&flag))), "{flag:?}");
    }
}

#[test]
fn a_product_with_a_stack_of_matrices_is_no_layer() {
    let with_weight = |dims: &[usize]| {
        let mut graph = graph(&[(op("MatMul", &[]), &["x", "v"], "y")]);
        graph.constants.insert("v".into(), Arc::new(Tensor::f32(dims, vec![0.5; dims.iter().product()])));
        place(&graph, &"ort".parse().unwrap(), &BTreeSet::new())
    };
    assert!(runs_in_integers(&with_weight(&[8, 9]), "y"));
    for dims in [&[1, 8, 9][..], &[4, 8, 9], &[8]] {
        let placement = with_weight(dims);
        assert!(!runs_in_integers(&placement, "y") && placement.sites.is_empty(), "{dims:?}");
    }
}

#[test]
fn bounds_without_zero_are_not_left_to_a_grid() {
    let with_bounds = |low: f32, high: f32| {
        let conv = op("Conv", &[]);
        let mut graph = graph(&[
            (conv.clone(), &["x", "w", "b"], "a"),
            (op("Clip", &[]), &["a", "low", "high"], "c"),
            (conv, &["c", "w", "b"], "y"),
        ]);
        for (name, bound) in [("low", low), ("high", high)] {
            graph.constants.insert(name.into(), Arc::new(Tensor::f32(&[], vec![bound])));
        }
        place(&graph, &"ort".parse().unwrap(), &BTreeSet::new())
    };
    for (low, high) in [(0.0, 6.0), (-1.0, 1.0), (-1.0, 0.0)] {
        let placement = with_bounds(low, high);
        assert!(runs_in_integers(&placement, "c") && !placement.sites.contains_key("a"), "{low} {high}");
    }
    for (low, high) in [(0.001, 6.0), (-2.0, -1.0)] {
        let placement = with_bounds(low, high);
        assert!(!runs_in_integers(&placement, "c") && placement.sites.contains_key("a"), "{low} {high}");
    }
}

#[test]
fn a_dilated_average_pool_has_no_integer_kernel() {
    let kernel = ("kernel_shape", Attr::Ints(vec![2, 2]));
    let with = |dilations: Vec<i64>| {
        placed(&[
            (op("Conv", &[]), &["x", "w", "b"], "a"),
            (op("AveragePool", &[kernel.clone(), ("dilations", Attr::Ints(dilations))]), &["a"], "p"),
            (op("Conv", &[]), &["p", "w", "b"], "y"),
        ])
    };
    assert!(runs_in_integers(&with(vec![1, 1]), "p"));
    let dilated = with(vec![2, 2]);
    assert!(!runs_in_integers(&dilated, "p") && dilated.nodes[1].reason.contains("this form"));
}

#[test]
fn a_border_has_the_grid_of_its_image_but_is_made_in_float() {
    let nodes = [
        (op("Conv", &[]), &["x", "w", "b"][..], "a"),
        (op("Pad", &[]), &["a", "pads"], "p"),
        (op("Conv", &[]), &["p", "w", "b"], "y"),
    ];
    let mut graph = graph(&nodes);
    graph.constants.insert("pads".into(), Arc::new(Tensor::i64(&[8], vec![0, 0, 1, 1, 0, 0, 1, 1])));
    for (target, integer) in [("ort", false), ("generic", true)] {
        let placement = place(&graph, &target.parse().unwrap(), &BTreeSet::new());
        assert_eq!(placement.sites["p"], Site::SameAs("a".into()));
        assert_eq!(runs_in_integers(&placement, "p"), integer, "{target}");
    }
}
