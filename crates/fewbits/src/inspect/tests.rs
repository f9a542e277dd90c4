use super::*;
use fewbits_graph::{Attr, Attrs, DType, Dim, Grid, Tensor, TensorQuant};
use fewbits_quant::TensorStats;
use std::sync::Arc;

fn op(name: &str, attrs: &[(&str, Attr)]) -> Op {
    let attrs = attrs.iter().fold(Attrs::default(), |attrs, (name, value)| attrs.with(name, value.clone()));
    Op::from_attrs(name, &attrs).unwrap()
}

fn node(name: &str, op: Op, inputs: &[&str], output: &str) -> Node {
    let inputs = inputs.iter().map(|s| s.to_string()).collect();
    Node { name: name.into(), op, inputs, outputs: vec![output.into()] }
}

/// Weights without a pattern, magnitudes 0.5 to 1.
fn varied(count: usize) -> Vec<f32> {
    (0..count).map(|i| (0.5 + (i * 37 % 101) as f32 / 202.0) * if i % 3 == 0 { -1.0 } else { 1.0 }).collect()
}

const PER_CHANNEL: usize = 2 * 9;

/// `x → first (8 channels) → relu → second (4 channels) → y` on 2×6×6 images, weights all alike.
fn healthy() -> Graph {
    let pads = || [("pads", Attr::Ints(vec![1, 1, 1, 1]))];
    let dims = [1, 2, 6, 6].map(Dim::Fixed).to_vec();
    Graph {
        nodes: vec![
            node("first", op("Conv", &pads()), &["x", "w1", "b1"], "c1"),
            node("relu", op("Relu", &[]), &["c1"], "r1"),
            node("second", op("Conv", &pads()), &["r1", "w2"], "y"),
        ],
        inputs: vec![ValueInfo { name: "x".into(), dtype: DType::F32, dims: Some(dims) }],
        outputs: vec![ValueInfo { name: "y".into(), dtype: DType::F32, dims: None }],
        constants: [
            ("w1".to_string(), Arc::new(Tensor::f32(&[8, 2, 3, 3], varied(8 * PER_CHANNEL)))),
            ("b1".to_string(), Arc::new(Tensor::f32(&[8], vec![0.1; 8]))),
            ("w2".to_string(), Arc::new(Tensor::f32(&[4, 8, 3, 3], varied(4 * 72)))),
        ]
        .into(),
        opset: 13,
        ..Graph::default()
    }
}

fn look(graph: Graph, grids: Option<Grids>, stats: &Stats) -> Inspection {
    inspect(&Model { path: "model.onnx".into(), graph, grids }, &"ort".parse().unwrap(), stats)
}

/// Kind and node of every warning.
fn kinds(graph: Graph) -> Vec<(&'static str, String)> {
    look(graph, None, &Stats::default()).warnings.into_iter().map(|w| (w.kind, w.node)).collect()
}

/// The healthy network after `change` of the first weights (8 channels of 18) and biases.
fn changed(change: impl Fn(&mut [f32], &mut [f32])) -> Graph {
    let mut graph = healthy();
    let floats = |name: &str| graph.constants[name].as_f32().unwrap().to_vec();
    let (mut weights, mut biases) = (floats("w1"), floats("b1"));
    change(&mut weights, &mut biases);
    graph.constants.insert("w1".into(), Arc::new(Tensor::f32(&[8, 2, 3, 3], weights)));
    graph.constants.insert("b1".into(), Arc::new(Tensor::f32(&[8], biases)));
    graph
}

fn scale_channel(weights: &mut [f32], channel: usize, by: f32) {
    weights[channel * PER_CHANNEL..(channel + 1) * PER_CHANNEL].iter_mut().for_each(|w| *w *= by);
}

#[test]
fn a_healthy_network_is_counted_and_not_warned_about() {
    let seen = look(healthy(), None, &Stats::default());
    assert_eq!(seen.warnings, []);
    assert_eq!(seen.totals.parameters, 8 * 18 + 8 + 4 * 72);
    assert_eq!(seen.totals.macs, 36 * (8 * 18 + 4 * 72));
    // Both the convolution's output and its Relu are alive while the Relu runs.
    assert_eq!(seen.totals.activation_bytes, 4 * 36 * (8 + 8));
    assert!(seen.layers.iter().all(|l| l.runtime == "integer"), "{:?}", seen.layers);
    assert_eq!(seen.layers[0].shape.as_deref(), Some(&[1, 8, 6, 6][..]));
    assert_eq!(seen.inputs[0].dims.as_ref().unwrap().join(","), "1,2,6,6");
}

#[test]
fn each_fault_of_a_weight_is_found_in_the_layer_that_has_it() {
    let found = |kind: &'static str, change: &dyn Fn(&mut [f32], &mut [f32])| {
        assert_eq!(kinds(changed(change)), [(kind, "first".to_string())]);
    };
    found("dead_channels", &|w, _| scale_channel(w, 3, 0.0));
    found("dead_channels", &|w, _| scale_channel(w, 3, 1e-9));
    found("outlier_channel", &|w, _| scale_channel(w, 5, 10.0));
    found("channel_spread", &|w, _| scale_channel(w, 0, 1.0 / 200.0));
    found("outlier_weight", &|w, _| w[20] = 6.0);
    found("non_finite", &|w, _| w[7] = f32::NAN);
    found("non_finite", &|_, b| b[1] = f32::INFINITY);
    found("bias_overflow", &|_, b| b[2] = 1e6);
}

#[test]
fn messages_say_where_and_how_much() {
    let message = |change: &dyn Fn(&mut [f32], &mut [f32])| {
        look(changed(change), None, &Stats::default()).warnings[0].message.clone()
    };
    let broken = message(&|w, _| w[7..10].fill(f32::NAN));
    assert_eq!(broken, "`w1` has 3 numbers that are not finite, the first at element 7 (NaN)");
    // 16 times the others: four bits.
    let outlier = message(&|w, _| {
        w.fill(0.5);
        scale_channel(w, 5, 16.0);
    });
    assert_eq!(outlier, "channel 5 reaches 8.000, 16 times the median channel: one scale for all loses 4.0 bits");
}

#[test]
fn depthwise_layers_and_unknown_operators_are_named() {
    let mut graph = healthy();
    let pads = ("pads", Attr::Ints(vec![1, 1, 1, 1]));
    graph.nodes[2] = node("second", op("Conv", &[pads, ("group", Attr::Int(8))]), &["r1", "w2"], "y");
    graph.constants.insert("w2".into(), Arc::new(Tensor::f32(&[8, 1, 3, 3], varied(72))));
    assert_eq!(kinds(graph), [("depthwise", "second".to_string())]);

    let mut graph = healthy();
    graph.nodes[1] = node("strange", op("Wobble", &[]), &["c1"], "r1");
    let seen = look(graph, None, &Stats::default());
    assert_eq!(seen.unknown_operators, [UnknownOperator { op: "Wobble".into(), nodes: vec!["strange".into()] }]);
    assert!(seen.shapes_unknown.unwrap().contains("strange"));
    let shapes: Vec<bool> = seen.layers.iter().map(|l| l.shape.is_some()).collect();
    assert_eq!(shapes, [true, false, false], "what comes before the unknown operator is known");
    assert_eq!(seen.totals.macs, 36 * 8 * 18);
}

/// A gate beside the raw output of a layer, joined in front of another layer.
fn joined(gate: &str) -> Graph {
    let mut graph = healthy();
    graph.nodes[1] = node("gate", op(gate, &[]), &["c1"], "g");
    graph.nodes.insert(2, node("join", op("Concat", &[("axis", Attr::Int(1))]), &["g", "c1"], "r1"));
    graph.constants.insert("w2".into(), Arc::new(Tensor::f32(&[4, 16, 3, 3], varied(4 * 144))));
    graph
}

#[test]
fn unlike_ranges_in_a_concat_are_found_without_and_with_data() {
    assert_eq!(kinds(joined("Sigmoid")), [("concat_ranges", "join".to_string())]);
    assert_eq!(kinds(joined("LeakyRelu")), []);

    let stats = |wide: f32| {
        let mut stats = Stats::default();
        let ramp = |top: f32| (0..1000).map(|i| top * i as f32 / 999.0).collect::<Vec<_>>();
        stats.observe_image("g", &ramp(1.0));
        stats.observe_image("c1", &ramp(wide));
        stats
    };
    let seen = look(joined("LeakyRelu"), None, &stats(8.0));
    assert_eq!(seen.warnings[0].kind, "concat_ranges");
    assert!(seen.warnings[0].message.contains("loses 3.0 bits"), "{}", seen.warnings[0].message);
    assert_eq!(look(joined("Sigmoid"), None, &stats(2.0)).warnings, [], "what was measured outweighs what was guessed");
}

#[test]
fn ranges_that_few_values_stretch_are_found() {
    let mut tensor = TensorStats::new();
    let mut values: Vec<f32> = (0..4000).map(|i| i as f32 / 4000.0).collect();
    (0..50).for_each(|_| tensor.observe_image(&values));
    let even = Stats([("r1".to_string(), tensor.clone())].into());
    assert_eq!(look(healthy(), None, &even).warnings, []);
    values[17] = 100.0;
    tensor.observe_image(&values);
    let stretched = Stats([("r1".to_string(), tensor)].into());
    let warnings = look(healthy(), None, &stretched).warnings;
    assert_eq!((warnings[0].kind, warnings[0].node.as_str()), ("stretched_range", "relu"));
}

#[test]
fn decoding_behind_the_last_layer_is_a_note() {
    let mut graph = healthy();
    graph.nodes[2].outputs = vec!["raw".into()];
    graph.nodes.push(node("scores", op("Sigmoid", &[]), &["raw"], "y"));
    let seen = look(graph, None, &Stats::default());
    let notes: Vec<_> = seen.warnings.iter().map(|w| (w.kind, w.node.as_str(), w.severity)).collect();
    assert_eq!(notes, [("float_tail", "scores", Severity::Note)]);
}

#[test]
fn channels_with_scales_of_their_own_settle_what_one_scale_would_lose() {
    let graph = changed(|w, _| scale_channel(w, 5, 10.0));
    let kinds = |params: QuantParams| -> Vec<&str> {
        let grids = Grids([("w1".to_string(), TensorQuant::Quantized(params))].into());
        look(graph.clone(), Some(grids), &Stats::default()).warnings.iter().map(|w| w.kind).collect()
    };
    assert_eq!(kinds(QuantParams::per_channel(Grid::weights(8), 0, vec![0.1; 8])), [""; 0]);
    assert_eq!(kinds(QuantParams::per_tensor(Grid::weights(8), 0.1, 0)), ["outlier_channel"]);
}

#[test]
fn grids_of_a_quantized_file_are_stated() {
    let tensor = |scale| TensorQuant::Quantized(QuantParams::per_tensor(Grid::activations(8), scale, 0));
    let channels = |count| TensorQuant::Quantized(QuantParams::per_channel(Grid::weights(4), 0, vec![0.25; count]));
    let grids = [("x", tensor(0.5)), ("w1", channels(8)), ("r1", tensor(0.5)), ("w2", channels(4))];
    let grids = Grids(grids.map(|(name, quant)| (name.to_string(), quant)).into());
    let seen = look(healthy(), Some(grids), &Stats::default());
    assert!(seen.quantized);
    let first = &seen.layers[0];
    assert_eq!((first.weight_bits, first.activation_bits, first.runtime), (Some(4), None, "integer"));
    assert_eq!(first.weight_grid.as_deref(), Some("int4, 8 scales 2.5e-1..2.5e-1"));
    assert_eq!(seen.layers[1].activation_bits, Some(8));
    let last = &seen.layers[2];
    assert_eq!((last.runtime, last.reason.as_str()), ("float", "its output `y` has no grid"));
}
