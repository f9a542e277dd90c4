use super::*;
use fewbits_graph::{
    Attr, Attrs, DType, Grid, QuantParams, TensorQuant, ValueInfo,
    exec::{Executor, Mode, infer},
};
use fewbits_kernels::Threads;
use fewbits_quant::stats::ChannelStats;

/// x [1, 2, 4, 4] → Conv 3×3, padded → y; 2-bit weights, so that rounding shifts the mean a lot.
fn network() -> (Graph, Grids) {
    let value = |name: &str| ValueInfo { name: name.into(), dtype: DType::F32, dims: None };
    let conv = Attrs::default().with("pads", Attr::Ints(vec![1, 1, 1, 1]));
    let weights = (0..54).map(|i| ((i * 29 + 3) % 17) as f32 * 0.1 - 0.5).collect();
    let mut graph = Graph { inputs: vec![value("x")], outputs: vec![value("y")], opset: 17, ..Graph::default() };
    graph.constants.insert("w".into(), Arc::new(Tensor::f32(&[3, 2, 3, 3], weights)));
    graph.constants.insert("b".into(), Arc::new(Tensor::f32(&[3], vec![0.1, -0.2, 0.3])));
    graph.nodes.push(Node {
        name: "conv".into(),
        op: Op::from_attrs("Conv", &conv).unwrap(),
        inputs: vec!["x".into(), "w".into(), "b".into()],
        outputs: vec!["y".into()],
    });
    let weight = QuantParams::per_channel(Grid::weights(2), 0, vec![1.1, 0.9, 1.0]);
    // Fine enough for the input's own rounding not to matter.
    let input = QuantParams::per_tensor(Grid::activations(8), 0.01, 100);
    let grids = [("w", weight), ("x", input)].map(|(name, p)| (name.to_string(), TensorQuant::Quantized(p)));
    (graph, Grids(grids.into_iter().collect()))
}

#[test]
fn the_mean_of_every_channel_comes_out_as_in_float() {
    let (graph, grids) = network();
    let threads = Threads::new(1);
    // Constant over each channel: then means per channel say everything, padding included.
    let plane = |v: f32| std::iter::repeat_n(v, 16);
    let x = Tensor::f32(&[1, 2, 4, 4], plane(1.13).chain(plane(-0.4)).collect());
    let mut stats = Stats::default();
    stats.0.entry("x".into()).or_default().channels = Some(ChannelStats::of_planes(x.as_f32().unwrap(), 2));
    let facts = infer(&graph, &[vec![1, 2, 4, 4]]).unwrap();
    let patches = corrections(&graph, &grids, &facts, &stats);
    let mut corrected = graph.clone();
    corrected.constants.extend(patches);
    let means = |graph: &Graph, mode: Mode| -> Vec<f32> {
        let y = Executor::new(graph, mode, &threads).run(std::slice::from_ref(&x)).unwrap();
        y[0].as_f32().unwrap().chunks(16).map(|c| c.iter().sum::<f32>() / 16.0).collect()
    };
    let float = means(&graph, Mode::Float);
    let (plain, repaired) = (means(&graph, Mode::FakeQuant(&grids)), means(&corrected, Mode::FakeQuant(&grids)));
    let off = plain.iter().zip(&float).filter(|(p, f)| (*p - *f).abs() > 0.05).count();
    assert!(off >= 2, "rounding to two bits shifts the means: {plain:?}, {float:?}");
    for c in 0..3 {
        assert!((repaired[c] - float[c]).abs() < 1e-5, "channel {c}: {} instead of {}", repaired[c], float[c]);
    }
}

#[test]
fn layers_without_grids_or_statistics_are_left_alone() {
    let (graph, grids) = network();
    let facts = infer(&graph, &[vec![1, 2, 4, 4]]).unwrap();
    assert!(corrections(&graph, &grids, &facts, &Stats::default()).is_empty());
    assert!(corrections(&graph, &Grids::default(), &facts, &Stats::default()).is_empty());
}
