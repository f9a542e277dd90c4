use super::*;
use crate::{
    MethodError, Walk,
    expectation::{Normal, Normals, propagate},
    progress::Silent,
    testing,
    walk::walk_through,
};
use fewbits_graph::{
    Attr, Attrs, DType, Grid, QuantParams, TensorQuant, ValueInfo,
    exec::{Executor, Mode, infer},
};
use fewbits_kernels::Threads;
use fewbits_quant::stats::ChannelStats;
use fewbits_train::random::Random;

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
    let patches = corrections(&graph, &grids, &facts, &means(&stats));
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
fn expectations_correct_what_normals_become() {
    let (mut graph, grids) = network();
    let relu = Node {
        name: "relu".into(),
        op: Op::from_attrs("Relu", &Attrs::default()).unwrap(),
        inputs: vec!["n".into()],
        outputs: vec!["x".into()],
    };
    graph.inputs[0].name = "n".into();
    graph.nodes.insert(0, relu);
    let facts = infer(&graph, &[vec![1, 2, 200, 200]]).unwrap();
    let channels = [Normal { mean: 0.4, deviation: 0.25 }, Normal { mean: -0.1, deviation: 0.3 }];
    let known = propagate(&graph, &Normals::from([("n".to_string(), channels.to_vec())]));
    let inputs = known.iter().map(|(name, all)| (name.clone(), all.iter().map(|c| c.mean).collect())).collect();
    let mut corrected = graph.clone();
    corrected.constants.extend(corrections(&graph, &grids, &facts, &inputs));
    let mut random = Random::keyed(&[5]);
    let mut drawn = |c: &Normal| (c.mean + c.deviation * random.normal()) as f32;
    let values = channels.iter().flat_map(|c| (0..40_000).map(|_| drawn(c)).collect::<Vec<_>>()).collect();
    let sample = Tensor::f32(&[1, 2, 200, 200], values);
    let threads = Threads::new(1);
    let means = |graph: &Graph, mode: Mode| -> Vec<f32> {
        let y = Executor::new(graph, mode, &threads).run(std::slice::from_ref(&sample)).unwrap();
        y[0].as_f32().unwrap().chunks(40_000).map(|c| c.iter().sum::<f32>() / 40_000.0).collect()
    };
    let float = means(&graph, Mode::Float);
    let (plain, repaired) = (means(&graph, Mode::FakeQuant(&grids)), means(&corrected, Mode::FakeQuant(&grids)));
    for c in 0..3 {
        assert!((plain[c] - float[c]).abs() > 0.03, "channel {c}: {} and {}", plain[c], float[c]);
        assert!((repaired[c] - float[c]).abs() < 0.006, "channel {c}: {} instead of {}", repaired[c], float[c]);
    }
}

#[test]
fn means_of_every_layer_come_out_as_in_float_behind_corrected_layers() {
    let network = testing::zoo("demo", 3, 8);
    let samples = testing::images(8, &network.shape);
    let threads = Threads::new(2);
    let mut walk = Walk::new(network.ground(), &samples, usize::MAX, &threads).unwrap();
    let mut draft = network.draft.clone();
    let mut method = sequential();
    method.config.guard = false;
    walk_through::<MethodError>(&mut walk, &mut draft, &[&method], None, &Silent, |_, _| Ok(())).unwrap();
    let mut moved = 0;
    for layer in crate::layers(&network.graph, &network.placement) {
        let mut grids = draft.grids.clone();
        grids.0.remove(&layer.output);
        let means = |graph: &Graph, mode: Mode| -> Vec<f64> {
            let outputs = samples.iter().map(|s| testing::tensors(graph, mode, s, &[&layer.output]).remove(0));
            let of = |y: Tensor| {
                let plane = y.dims.iter().skip(2).product::<usize>();
                let sums = y.as_f32().unwrap().chunks(plane).map(|c| c.iter().map(|v| f64::from(*v)).sum::<f64>());
                sums.map(|sum| sum / (plane * 8) as f64).collect::<Vec<_>>()
            };
            outputs.map(of).reduce(|a, b| a.iter().zip(&b).map(|(a, b)| a + b).collect()).unwrap()
        };
        let (float, fixed) = (means(&network.graph, Mode::Float), means(&draft.graph, Mode::FakeQuant(&grids)));
        let plain = means(&network.draft.graph, Mode::FakeQuant(&grids));
        let size = float.iter().fold(0f64, |m, v| m.max(v.abs()));
        // Biases have a grid, too.
        let input = grids.params(&layer.input).unwrap().scale[0];
        let steps = grids.params(&layer.weight).unwrap().scale.iter().map(|s| f64::from(s * input));
        for (((float, fixed), plain), step) in float.iter().zip(&fixed).zip(&plain).zip(steps) {
            let off = (float - fixed).abs();
            assert!(off < 0.5 * step + 1e-4 * size, "{}: {fixed} instead of {float}", layer.output);
            moved += usize::from((float - plain).abs() > 0.02 * size);
        }
    }
    assert!(moved > 20, "rounding moves means: {moved}");
}

#[test]
fn layers_without_grids_or_statistics_are_left_alone() {
    let (graph, grids) = network();
    let facts = infer(&graph, &[vec![1, 2, 4, 4]]).unwrap();
    assert!(corrections(&graph, &grids, &facts, &BTreeMap::new()).is_empty());
    assert!(corrections(&graph, &Grids::default(), &facts, &BTreeMap::new()).is_empty());
}
