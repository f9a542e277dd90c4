use super::*;
use crate::expectation::Normal;
use fewbits_graph::{
    Attr, Attrs, DType, ValueInfo,
    exec::{Executor, Mode, infer},
};
use fewbits_kernels::Threads;
use fewbits_quant::stats::ChannelStats;

/// x [1, 2, 5, 5] → 1×1 to 4 channels → `activation` → 1×1 in two groups and 3×3 without padding → y, u.
fn network(activation: &str, bounds: &[&str]) -> Graph {
    let value = |name: &str| ValueInfo { name: name.into(), dtype: DType::F32, dims: None };
    let node = |op: &str, attrs: Attrs, inputs: &[&str], output: &str| Node {
        name: output.into(),
        op: Op::from_attrs(op, &attrs).unwrap(),
        inputs: inputs.iter().map(|s| s.to_string()).collect(),
        outputs: vec![output.into()],
    };
    let ramp = |n: usize| (0..n).map(|i| ((i * 7 + 3) % 11) as f32 * 0.2 - 1.0).collect::<Vec<f32>>();
    let mut graph = Graph { inputs: vec![value("x")], outputs: vec![value("y"), value("u")], ..Graph::default() };
    let constants = [
        ("w1", Tensor::f32(&[4, 2, 1, 1], ramp(8))),
        ("b1", Tensor::f32(&[4], vec![2.5, -0.5, 3.0, 5.5])),
        ("w2", Tensor::f32(&[2, 2, 1, 1], ramp(4))),
        ("b2", Tensor::f32(&[2], vec![0.1, 0.2])),
        ("w3", Tensor::f32(&[3, 4, 3, 3], ramp(108))),
        ("b3", Tensor::f32(&[3], vec![0.0, -0.3, 0.4])),
        ("zero", Tensor::f32(&[], vec![0.0])),
        ("six", Tensor::f32(&[], vec![6.0])),
    ];
    graph.constants = constants.into_iter().map(|(name, t)| (name.into(), Arc::new(t))).collect();
    graph.nodes = vec![
        node("Conv", Attrs::default(), &["x", "w1", "b1"], "z"),
        node(activation, Attrs::default(), &[&["z"], bounds].concat(), "r"),
        node("Conv", Attrs::default().with("group", Attr::Int(2)), &["r", "w2", "b2"], "y"),
        node("Conv", Attrs::default(), &["r", "w3", "b3"], "u"),
    ];
    graph
}

fn image() -> Tensor {
    Tensor::f32(&[1, 2, 5, 5], (0..50).map(|i| (i as f32 * 0.9).sin()).collect())
}

fn run(graph: &Graph) -> Vec<Vec<f32>> {
    let threads = Threads::new(1);
    let outputs = Executor::new(graph, Mode::Float, &threads).run(&[image()]).unwrap();
    outputs.iter().map(|y| y.as_f32().unwrap().to_vec()).collect()
}

/// What `z` is on the image.
fn seen(graph: &Graph) -> Stats {
    let mut front = graph.clone();
    front.outputs = vec![ValueInfo { name: "z".into(), dtype: DType::F32, dims: None }];
    let mut stats = Stats::default();
    stats.0.entry("z".into()).or_default().channels = Some(ChannelStats::of_planes(&run(&front)[0], 4));
    stats
}

#[test]
fn the_network_computes_the_same_from_channels_nearer_to_zero() {
    for (activation, bounds) in [("Relu", &[][..]), ("Clip", &["zero", "six"])] {
        let graph = network(activation, bounds);
        let facts = infer(&graph, &[vec![1, 2, 5, 5]]).unwrap();
        let (before, stats) = (run(&graph), seen(&graph));
        let absorbed = absorb(&graph, &facts, &Normals::default(), &stats);
        let taken = &absorbed.taken["z"];
        assert!(taken[0] > 1.0 && taken[1] == 0.0, "{taken:?}");
        // The last channel reaches six.
        assert_eq!(taken[3] == 0.0, activation == "Clip", "{taken:?}");
        let mut lower = graph.clone();
        lower.constants.extend(absorbed.patches);
        for (a, b) in before.iter().flatten().zip(run(&lower).iter().flatten()) {
            assert!((a - b).abs() <= 1e-5 * (1.0 + a.abs()), "{a} became {b}");
        }
        let least = seen(&lower).0["z"].channels.as_ref().unwrap().min.clone();
        assert!(least[0].abs() < 1e-5, "the channel now begins at zero: {least:?}");
    }
}

#[test]
fn normalizations_count_before_samples() {
    let graph = network("Relu", &[]);
    let facts = infer(&graph, &[vec![1, 2, 5, 5]]).unwrap();
    let normal = |mean: f64, deviation: f64| Normal { mean, deviation };
    let channels = vec![normal(2.0, 0.5), normal(2.0, 0.7), normal(-1.0, 0.1), normal(4.0, 1.0)];
    let normals = Normals::from([("z".to_string(), channels)]);
    let taken = absorb(&graph, &facts, &normals, &seen(&graph)).taken["z"].clone();
    for (found, wanted) in taken.iter().zip([0.5, 0.0, 0.0, 1.0]) {
        assert!((found - wanted).abs() < 1e-12, "{taken:?}");
    }
}

#[test]
fn padded_readers_and_shown_tensors_are_left_alone() {
    let graph = network("Relu", &[]);
    let facts = infer(&graph, &[vec![1, 2, 5, 5]]).unwrap();
    assert_eq!(seams(&graph, &facts).len(), 1);
    let mut padded = graph.clone();
    let pads = Attrs::default().with("pads", Attr::Ints(vec![1, 1, 1, 1]));
    padded.nodes[3].op = Op::from_attrs("Conv", &pads).unwrap();
    assert_eq!(seams(&padded, &infer(&padded, &[vec![1, 2, 5, 5]]).unwrap()), []);
    let mut shown = graph.clone();
    shown.outputs.push(ValueInfo { name: "r".into(), dtype: DType::F32, dims: None });
    assert_eq!(seams(&shown, &facts), []);
}
