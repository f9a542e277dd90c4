//! Lifting and emitting quantization: on a small network made here, and on files of ONNX Runtime's own quantizer.

use fewbits_graph::{
    Attr, Attrs, DType, Data, Dim, Graph, Grid, Grids, Node, Op, QuantParams, Tensor, TensorQuant, ValueInfo,
    passes::with_layer_input_slots,
};
use fewbits_onnx::{BITS_KEY, EmitOptions, Lifted, emit_qdq, export, import, import_bytes, lift, write};
use fewbits_testing::{models, python};
use std::sync::Arc;

const SAME_OUTPUTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/same_outputs.py");
const ORT_QUANTIZE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ort_quantize.py");

fn node(op_type: &str, attrs: Attrs, inputs: &[&str], output: &str) -> Node {
    Node {
        name: format!("node_{output}"),
        op: Op::from_attrs(op_type, &attrs).unwrap(),
        inputs: inputs.iter().map(|s| s.to_string()).collect(),
        outputs: vec![output.into()],
    }
}

fn value(name: &str, dims: &[usize]) -> ValueInfo {
    let mut dims: Vec<Dim> = dims.iter().map(|&d| Dim::Fixed(d)).collect();
    dims[0] = Dim::Symbol("N".into());
    ValueInfo { name: name.into(), dtype: DType::F32, dims: Some(dims) }
}

fn noise(len: usize, step: f32) -> Vec<f32> {
    (0..len).map(|i| ((i * 37 + 11) % 101) as f32 * step - 50.0 * step).collect()
}

/// x → Conv → Relu → MaxPool → Flatten → Gemm → y, every tensor on a grid; `r` and `y` on 4 bits, `w` on 3.
fn network() -> (Graph, Grids) {
    let mut graph = Graph {
        name: "small".into(),
        inputs: vec![value("x", &[0, 2, 6, 6])],
        outputs: vec![value("y", &[0, 5])],
        opset: 11,
        ..Graph::default()
    };
    let constants = [
        ("w", Tensor::f32(&[3, 2, 3, 3], noise(54, 0.02))),
        ("b", Tensor::f32(&[3], vec![0.5, -0.25, 0.125])),
        ("fc_w", Tensor::f32(&[5, 12], noise(60, 0.01))),
        ("fc_b", Tensor::f32(&[5], noise(5, 0.1))),
    ];
    graph.constants = constants.into_iter().map(|(name, t)| (name.into(), Arc::new(t))).collect();
    let pool = Attrs::default().with("kernel_shape", Attr::Ints(vec![2, 2])).with("strides", Attr::Ints(vec![2, 2]));
    graph.nodes = vec![
        node("Conv", Attrs::default(), &["x", "w", "b"], "c"),
        node("Relu", Attrs::default(), &["c"], "r"),
        node("MaxPool", pool, &["r"], "p"),
        node("Flatten", Attrs::default(), &["p"], "f"),
        node("Gemm", Attrs::default().with("transB", Attr::Int(1)), &["f", "fc_w", "fc_b"], "y"),
    ];
    let own = |bits, scale, zero| TensorQuant::Quantized(QuantParams::per_tensor(Grid::activations(bits), scale, zero));
    let weights = |bits, axis, scale: Vec<f32>| {
        TensorQuant::Quantized(QuantParams::per_channel(Grid::weights(bits), axis, scale))
    };
    let bias = |input: &str, weight: &str| TensorQuant::BiasOf { input: input.into(), weight: weight.into() };
    let entries = [
        ("x", own(8, 0.02, 131)),
        ("r", own(4, 0.21, 0)),
        ("p", TensorQuant::SameAs("r".into())),
        ("y", own(4, 0.4, 5)),
        ("w", weights(3, 0, vec![0.3, 0.25, 0.35])),
        ("fc_w", weights(8, 0, vec![0.004, 0.005, 0.004, 0.003, 0.006])),
        ("b", bias("x", "w")),
        ("fc_b", bias("f", "fc_w")),
    ];
    let mut grids = Grids(entries.map(|(name, state)| (name.to_string(), state)).into());
    grids.0.insert("f".into(), TensorQuant::SameAs("p".into()));
    (graph, grids)
}

/// The same with every shared grid written out.
fn resolved(grids: &Grids) -> Vec<(String, Option<QuantParams>, Option<Vec<f32>>)> {
    grids.0.keys().map(|k| (k.clone(), grids.params(k).cloned(), grids.bias_scales(k))).collect()
}

#[test]
fn float_layers_between_grids_are_guarded_and_read_back_without() {
    let (graph, mut grids) = network();
    for name in ["w", "b", "fc_w", "fc_b"] {
        grids.0.remove(name);
    }
    let written = emit_qdq(&graph, &grids, &EmitOptions::default()).unwrap();
    // The Gemm reads what a pool and a Flatten made of a DequantizeLinear.
    let guards: Vec<&str> = written.nodes.iter().filter(|n| n.op.name() == "Max").map(|n| n.name.as_str()).collect();
    assert_eq!(guards, ["node_c_guard", "node_y_guard"]);
    let again = lift(&written).unwrap();
    assert_eq!(again.graph.nodes, graph.nodes);
    // A layer whose output has no grid is left alone by ONNX Runtime.
    grids.0.remove("y");
    let written = emit_qdq(&graph, &grids, &EmitOptions::default()).unwrap();
    assert_eq!(written.nodes.iter().filter(|n| n.op.name() == "Max").count(), 1);
}

#[test]
fn lifting_undoes_emission() {
    let (graph, grids) = network();
    for packed_weights in [false, true] {
        let options = EmitOptions { packed_weights, ..EmitOptions::default() };
        let emitted = emit_qdq(&graph, &grids, &options).unwrap();
        let bytes = export(&emitted, 13).unwrap();
        let Lifted { graph: lifted, grids: found, kept } = lift(&import_bytes(&bytes, None).unwrap()).unwrap();
        assert_eq!(kept, []);
        assert_eq!(lifted.nodes, graph.nodes);
        assert_eq!((&lifted.inputs, &lifted.outputs), (&graph.inputs, &graph.outputs));
        assert_eq!(resolved(&found), resolved(&grids));
        assert_eq!(found.0["p"], TensorQuant::SameAs("r".into()));
        assert_eq!(lifted.constants.keys().collect::<Vec<_>>(), ["b", "fc_b", "fc_w", "w"]);
        let again = export(&emit_qdq(&lifted, &found, &options).unwrap(), 13).unwrap();
        assert!(again == bytes, "packed_weights {packed_weights}");
    }
}

/// x → Conv → t, which is added to what a second Conv makes of it: `t` on 8 bits, the second Conv reads it on 2. Weights have one
/// scale and every code of their width.
fn residual_network(bits: u8) -> (Graph, Grids) {
    let graph = Graph {
        inputs: vec![value("x", &[0, 2, 6, 6])],
        outputs: vec![value("y", &[0, 2, 6, 6])],
        constants: ["v", "w"].map(|name| (name.into(), Arc::new(Tensor::f32(&[2, 2, 1, 1], noise(4, 0.02))))).into(),
        nodes: vec![
            node("Conv", Attrs::default(), &["x", "v"], "t"),
            node("Conv", Attrs::default(), &["t", "w"], "c"),
            node("Add", Attrs::default(), &["t", "c"], "y"),
        ],
        opset: 13,
        ..Graph::default()
    };
    let own = |bits, scale, zero| TensorQuant::Quantized(QuantParams::per_tensor(Grid::activations(bits), scale, zero));
    let full = Grid { bits, signed: true, narrow: false };
    // The lowest weight, −0.78, has the lowest code.
    let weight = TensorQuant::Quantized(QuantParams::per_tensor(full, 0.75 / -full.qmin() as f32, 0));
    let entries = [
        ("x", own(8, 0.02, 131)),
        ("t", own(8, 0.015, 120)),
        ("t_layer_input", own(2, 0.9, 2)),
        ("c", own(8, 0.02, 131)),
        ("y", own(8, 0.03, 128)),
        ("v", weight.clone()),
        ("w", weight),
    ];
    let graph = with_layer_input_slots(&graph).unwrap();
    (graph, Grids(entries.map(|(name, state)| (name.to_string(), state)).into()))
}

#[test]
fn layer_input_slots_and_full_range_weights_survive_lifting() {
    for (bits, packed_weights) in [(2, false), (2, true), (3, false), (3, true), (4, false), (4, true), (8, false)] {
        let (graph, grids) = residual_network(bits);
        let options = EmitOptions { packed_weights, ..EmitOptions::default() };
        let emitted = emit_qdq(&graph, &grids, &options).unwrap();
        let types: Vec<&str> = emitted.nodes.iter().map(|n| n.op.name()).collect();
        let slot = types.iter().position(|&t| t == "Identity").unwrap();
        assert_eq!(
            types[slot - 1..slot + 4].join(" "),
            "DequantizeLinear Identity Clip QuantizeLinear DequantizeLinear"
        );
        let bytes = export(&emitted, if packed_weights { 25 } else { 13 }).unwrap();
        let Lifted { graph: lifted, grids: found, kept } = lift(&import_bytes(&bytes, None).unwrap()).unwrap();
        assert_eq!((kept, &lifted.nodes, &found), (vec![], &graph.nodes, &grids), "{bits} bits, {packed_weights}");
    }
}

#[test]
fn names_follow_onnx_runtime() {
    let (graph, grids) = network();
    let emitted = emit_qdq(&graph, &grids, &EmitOptions::default()).unwrap();
    let names: Vec<&str> = emitted.nodes.iter().flat_map(|n| n.outputs.iter().map(String::as_str)).collect();
    for expected in [
        "x_QuantizeLinear_Output",
        "x_DequantizeLinear_Output",
        "w_DequantizeLinear_Output",
        "b_DequantizeLinear_Output",
        "y_float",
        "y_QuantizeLinear_Output",
        "y",
    ] {
        assert!(names.contains(&expected), "{expected} is not in {names:?}");
    }
    for expected in ["w_quantized", "w_scale", "w_zero_point", "b_quantized", "b_quantized_scale"] {
        assert!(emitted.constants.contains_key(expected), "{expected}");
    }
    let codes = emitted.constants["w_quantized"].as_i8().unwrap();
    assert!(codes.iter().all(|q| (-3..=3).contains(q)) && codes.contains(&3));
    assert_eq!(emitted.metadata[BITS_KEY], r#"{"f":4,"p":4,"r":4,"w":3,"y":4}"#);
}

#[test]
fn float_biases_stay_float() {
    let (graph, grids) = network();
    let options = EmitOptions { float_bias: true, ..EmitOptions::default() };
    let emitted = emit_qdq(&graph, &grids, &options).unwrap();
    assert_eq!(emitted.constants["b"], graph.constants["b"]);
    assert_eq!(emitted.nodes.iter().find(|n| n.name == "node_c").unwrap().inputs[2], "b");
}

#[test]
fn a_grid_for_an_unknown_tensor_is_refused() {
    let (graph, mut grids) = network();
    grids.0.insert("nowhere".into(), TensorQuant::Float);
    let error = emit_qdq(&graph, &grids, &EmitOptions::default()).unwrap_err();
    assert!(error.to_string().contains("nowhere"), "{error}");
}

#[test]
fn emitted_network_runs_as_its_lifted_copy() {
    let folder = tempfile::tempdir().unwrap();
    let (graph, grids) = network();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    write(path("a.onnx").as_ref(), &emit_qdq(&graph, &grids, &EmitOptions::default()).unwrap(), 13).unwrap();
    let packed = EmitOptions { packed_weights: true, ..EmitOptions::default() };
    write(path("b.onnx").as_ref(), &emit_qdq(&graph, &grids, &packed).unwrap(), 13).unwrap();
    python(SAME_OUTPUTS, &[&path("a.onnx"), &path("b.onnx")]);
}

/// Files of ONNX Runtime's quantizer, lifted and emitted again, compute the same when fused.
#[test]
fn onnx_runtime_files_survive_lifting() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let cases = [("squeezenet1_1.onnx", "qdq", 26), ("cifar10_resnet20.onnx", "qoperator", 1)];
    for (name, form, biases) in cases {
        for model in models().iter().filter(|m| m.ends_with(name)) {
            if python(ORT_QUANTIZE, &[model.to_str().unwrap(), &path("in.onnx"), form]).is_none() {
                return;
            }
            let Lifted { graph, grids, kept } = lift(&import(path("in.onnx").as_ref()).unwrap()).unwrap();
            assert_eq!(kept, [], "{form} {name}");
            let bias = |state: &&TensorQuant| matches!(state, TensorQuant::BiasOf { .. });
            assert_eq!(grids.0.values().filter(bias).count(), biases);
            write(path("out.onnx").as_ref(), &emit_qdq(&graph, &grids, &EmitOptions::default()).unwrap(), 13).unwrap();
            python(SAME_OUTPUTS, &[&path("in.onnx"), &path("out.onnx"), "--optimized"]);
        }
    }
}

/// x → Q → DQ → Conv(w, b) → y with the given zero point tensors and bias codes; returns why nodes were kept.
fn reasons(zero_q: Tensor, zero_dq: Tensor, bias: i32, second_reader: bool) -> Vec<&'static str> {
    let mut graph = Graph {
        inputs: vec![value("x", &[0, 1, 3, 3])],
        outputs: vec![value("y", &[0, 1, 3, 3])],
        opset: 21,
        ..Graph::default()
    };
    let constants = [
        ("s", Tensor::f32(&[], vec![0.5])),
        ("zq", zero_q),
        ("zd", zero_dq),
        ("w_quantized", Tensor::i8(&[1, 1, 1, 1], vec![3])),
        ("ws", Tensor::f32(&[], vec![0.25])),
        ("wz", Tensor::i8(&[], vec![0])),
        ("b_quantized", Tensor::i32(&[1], vec![bias])),
        ("bs", Tensor::f32(&[], vec![0.125])),
    ];
    graph.constants = constants.into_iter().map(|(name, t)| (name.into(), Arc::new(t))).collect();
    graph.nodes = vec![
        node("QuantizeLinear", Attrs::default(), &["x", "s", "zq"], "xq"),
        node("DequantizeLinear", Attrs::default(), &["xq", "s", "zd"], "xd"),
        node("DequantizeLinear", Attrs::default(), &["w_quantized", "ws", "wz"], "wd"),
        node("DequantizeLinear", Attrs::default(), &["b_quantized", "bs"], "bd"),
        node("Conv", Attrs::default(), &["xd", "wd", "bd"], "c"),
        node("Add", Attrs::default(), &["c", if second_reader { "x" } else { "c" }], "y"),
    ];
    let Lifted { graph: lifted, grids, kept } = lift(&graph).unwrap();
    let literal = lifted.nodes.iter().filter(|n| n.op.name().ends_with("quantizeLinear")).count()
        + lifted.nodes.iter().filter(|n| n.op.name() == "QuantizeLinear").count();
    assert_eq!(literal, kept.len());
    assert!(grids.0.contains_key("w"));
    let exported = export(&emit_qdq(&lifted, &grids, &EmitOptions::default()).unwrap(), 21).unwrap();
    let constants = import_bytes(&exported, None).unwrap().constants;
    match constants.get("b_quantized") {
        Some(codes) => assert_eq!(codes.as_i32(), Some(&[bias][..])),
        // Without a quantized input there is no grid for the bias: it is a float constant of the same value.
        None => assert_eq!(constants["b"].as_f32(), Some(&[bias as f32 * 0.125][..])),
    }
    kept.iter().map(|k| k.reason).collect()
}

#[test]
fn what_cannot_be_lifted_exactly_stays() {
    let zero = |z| Tensor::u8(&[], vec![z]);
    assert_eq!(reasons(zero(5), zero(5), 16_777_216, false), Vec::<&str>::new());
    assert_eq!(reasons(zero(5), zero(5), 16_777_217, false), ["float32 cannot hold the bias codes"]);
    assert_eq!(reasons(zero(5), zero(5), 2_000_000_001, false), ["float32 cannot hold the bias codes"]);
    let unequal = "QuantizeLinear and DequantizeLinear have different parameters";
    assert_eq!(reasons(zero(5), zero(6), 7, false)[0], unequal);
    assert_eq!(reasons(zero(5), zero(5), 7, true)[0], "the tensor is also read unquantized");
    let wide = || Tensor { dims: vec![], data: Data::Raw { data_type: 4, bytes: vec![0, 1] } };
    assert_eq!(reasons(wide(), wide(), 7, false)[0], "16-bit or other wide codes");
}
