mod ceilings;

use super::*;
use fewbits_graph::{
    Attr, Attrs, DType, Node, Op, ValueInfo,
    exec::{Executor, Mode, Tapped},
};
use fewbits_kernels::Threads;
use fewbits_quant::stats::ChannelStats;

/// x [1, 2, 5, 5] → 1×1 to 4 channels of unlike ranges → LeakyRelu → depthwise 3×3 → 1×1 → y.
fn network() -> Graph {
    let value = |name: &str| ValueInfo { name: name.into(), dtype: DType::F32, dims: None };
    let node = |op: &str, attrs: Attrs, inputs: &[&str], output: &str| Node {
        name: output.into(),
        op: Op::from_attrs(op, &attrs).unwrap(),
        inputs: inputs.iter().map(|s| s.to_string()).collect(),
        outputs: vec![output.into()],
    };
    let mut graph = Graph { inputs: vec![value("x")], outputs: vec![value("y")], ..Graph::default() };
    let ramp = |n: usize| (0..n).map(|i| ((i * 7 + 3) % 11) as f32 * 0.2 - 1.0).collect::<Vec<f32>>();
    let unlike = ramp(8).iter().enumerate().map(|(i, v)| v * [0.01, 1.0, 10.0, 0.2][i / 2]).collect();
    let constants = [
        ("w1", Tensor::f32(&[4, 2, 1, 1], unlike)),
        ("b1", Tensor::f32(&[4], vec![0.01, -0.5, 3.0, 0.1])),
        ("w2", Tensor::f32(&[4, 1, 3, 3], ramp(36))),
        ("w3", Tensor::f32(&[3, 4, 1, 1], ramp(12))),
    ];
    graph.constants = constants.into_iter().map(|(name, t)| (name.into(), Arc::new(t))).collect();
    let depthwise = Attrs::default().with("group", Attr::Int(4)).with("pads", Attr::Ints(vec![1, 1, 1, 1]));
    graph.nodes = vec![
        node("Conv", Attrs::default(), &["x", "w1", "b1"], "c1"),
        node("LeakyRelu", Attrs::default().with("alpha", Attr::Float(0.1)), &["c1"], "r1"),
        node("Conv", depthwise, &["r1", "w2"], "c2"),
        node("Conv", Attrs::default(), &["c2", "w3"], "y"),
    ];
    graph
}

fn run(graph: &Graph) -> (Vec<f32>, Stats) {
    run_observing(graph, &["c1", "r1", "c2"])
}

fn run_observing(graph: &Graph, observed: &[&str]) -> (Vec<f32>, Stats) {
    let threads = Threads::new(1);
    let x = Tensor::f32(&[1, 2, 5, 5], (0..50).map(|i| (i as f32 * 0.9).sin()).collect());
    let mut stats = Stats::default();
    let mut tap = |t: Tapped| {
        let channels = ChannelStats::of(&t.to_f32(), t.fact.dims[1]);
        stats.0.entry(t.name.into()).or_default().channels = Some(channels);
    };
    let mut executor =
        Executor::new(graph, Mode::Float, &threads).observing(observed.iter().map(|name| name.to_string()));
    let y = executor.run_tapped(&[x], &mut tap).unwrap();
    (y[0].as_f32().unwrap().to_vec(), stats)
}

#[test]
fn the_network_computes_the_same_with_like_ranges() {
    let graph = network();
    let (before, stats) = run(&graph);
    let mut equalized = graph.clone();
    equalized.constants.extend(equalize(&graph, &stats, Config::default()).patches);
    let (after, equal_stats) = run(&equalized);
    for (a, b) in before.iter().zip(&after) {
        assert!((a - b).abs() <= 1e-5 * (1.0 + a.abs()), "{a} became {b}");
    }
    let spread = |largest: Vec<f32>| {
        let extreme = |pick: fn(f32, f32) -> f32| largest.iter().copied().reduce(pick).unwrap();
        extreme(f32::max) / extreme(f32::min)
    };
    // In front of a LeakyRelu of slope 0.1, where all are rounded, too, negative elements count for less.
    let [old, new] = [&stats, &equal_stats].map(|stats| spread(leaked("c1", 0.1, stats, 4).unwrap()));
    assert!(old > 20.0 && new < 1.001, "a depthwise reader equalizes fully: {old}, {new}");
    let [old, new] = [&stats, &equal_stats].map(|stats| spread(stats.0["c2"].channels.as_ref().unwrap().largest()));
    assert!(new < old);
}

#[test]
fn what_a_leaky_relu_lets_through_counts_more_than_what_it_damps() {
    let seen = |min: &[f32], max: &[f32]| {
        let [min, max] = [min, max].map(<[f32]>::to_vec);
        ChannelStats { min, max, ..ChannelStats::default() }
    };
    let mut stats = Stats::default();
    stats.0.entry("x".into()).or_default().channels = Some(seen(&[-8.0, -8.0, 0.0], &[1.0, 6.0, 0.5]));
    assert_eq!(leaked("x", 0.25, &stats, 3), Some(vec![4.0, 6.0, 0.5]));
    assert_eq!(leaked("y", 0.25, &stats, 3), None);
}

/// The same with a PRelu whose slopes are `slopes`.
fn sloped(slopes: &str) -> Graph {
    let mut graph = network();
    graph.nodes[1].op = Op::from_attrs("PRelu", &Attrs::default()).unwrap();
    graph.nodes[1].inputs.push(slopes.into());
    graph
}

#[test]
fn scales_go_through_slopes_that_are_constants() {
    let mut graph = sloped("slopes");
    let slopes = Tensor::f32(&[4, 1, 1], vec![0.1, -0.5, 0.25, 0.0]);
    graph.constants.insert("slopes".into(), Arc::new(slopes));
    assert_eq!(groups(&graph)[0].leaking, BTreeMap::from([("c1".into(), 0.5)]));
    let (before, stats) = run(&graph);
    let patches = equalize(&graph, &stats, Config::default()).patches;
    assert!(patches.contains_key("w1") && !patches.contains_key("slopes"));
    let mut equalized = graph.clone();
    equalized.constants.extend(patches);
    for (a, b) in before.iter().zip(run(&equalized).0) {
        assert!((a - b).abs() <= 1e-5 * (1.0 + a.abs()), "{a} became {b}");
    }
    // What is computed from the data would have to be scaled itself.
    let computed = groups(&sloped("x"));
    assert_eq!(computed.iter().flat_map(|g| &g.tensors).collect::<Vec<_>>(), ["c2"]);
}

#[test]
fn what_is_in_front_of_a_leaky_relu_counts_where_it_is_rounded_no_finer_than_what_is_behind() {
    let graph = network();
    let (_, stats) = run(&graph);
    let by = |config: Config| equalize(&graph, &stats, config).factors(&graph)["c1"].clone();
    let usual = by(Config::default());
    assert_ne!(usual, by(Config { rounds_between: false, ..Config::default() }));
    let few = Config { activation_bits: 4, ..Config::default() };
    assert_eq!(by(few), by(Config { rounds_between: false, ..few }));
}

#[test]
fn with_one_scale_a_depthwise_triple_meets_at_its_geometric_mean() {
    let graph = network();
    let (before, stats) = run(&graph);
    let done = equalize(&graph, &stats, Config { per_channel: false, ..Config::default() });
    let (factors, patches) = (done.factors(&graph), done.patches);
    let mut equalized = graph.clone();
    equalized.constants.extend(patches);
    let (after, equal_stats) = run(&equalized);
    for (a, b) in before.iter().zip(&after) {
        assert!((a - b).abs() <= 1e-5 * (1.0 + a.abs()), "{a} became {b}");
    }
    let relative = |graph: &Graph, name: &str, axis: usize| {
        let largest = largest_per_channel(graph.constant(name).unwrap(), axis).unwrap();
        let most = largest.iter().copied().fold(0f32, f32::max);
        largest.into_iter().map(|v| f64::from(v / most)).collect::<Vec<_>>()
    };
    let layers = [("w1", 0), ("w2", 0), ("w3", 1)];
    let old = layers.map(|(name, axis)| relative(&graph, name, axis));
    let mean: Vec<f64> = (0..4).map(|c| (old[0][c] * old[1][c] * old[2][c]).cbrt()).collect();
    let most = mean.iter().copied().fold(0.0, f64::max);
    for (name, axis) in layers {
        for (found, mean) in relative(&equalized, name, axis).iter().zip(&mean) {
            assert!((found * most / mean - 1.0).abs() < 0.01, "{name}: {found} instead of {}", mean / most);
        }
    }
    // What the factors say of a tensor is what happened to it.
    let largest = |stats: &Stats| stats.0["c2"].channels.as_ref().unwrap().largest();
    for ((old, new), factor) in largest(&stats).iter().zip(largest(&equal_stats)).zip(&factors["c2"]) {
        assert!((f64::from(*old) * factor / f64::from(new) - 1.0).abs() < 1e-4, "{old} times {factor} is {new}");
    }
}

#[test]
fn with_few_bits_channels_reach_as_far_as_is_worth_resolving() {
    // A Relu has let through shares of an exponential distribution, of densities e^(-x/b)/b.
    let (widths, shares, most) = ([0.5, 2.0, 2.0, 0.0], [1.0, 1.0, 0.1, 0.0], [50.0, 200.0, 4.0, 0.0]);
    let of = |moment: &dyn Fn(f64) -> f64| {
        widths.iter().zip(shares).map(|(b, p)| 1e4 * p * moment(*b)).collect::<Vec<f64>>()
    };
    let channels = ChannelStats {
        count: 10_000,
        sum: of(&|b| b),
        magnitudes: of(&|b| b),
        squares: of(&|b| 2.0 * b * b),
        min: vec![0.0; 4],
        max: most.to_vec(),
    };
    let mut stats = Stats::default();
    stats.0.entry("x".into()).or_default().channels = Some(channels);
    let x = ["x".to_string()];
    // Banner et al. (2019): 5.03 widths at 4 bits.
    for (reach, wanted) in reach(x.iter(), &stats, 4, 4).unwrap().into_iter().zip([2.515, 10.06, 4.0, 0.0]) {
        assert!((reach - wanted).abs() <= 5e-3 * wanted, "{reach} instead of {wanted}");
    }
    assert_eq!(reach(x.iter(), &stats, 8, 4).unwrap(), most);
    // So much of the room below a ceiling they use.
    let group = Group { ceilings: BTreeMap::from([("x".into(), 100.0)]), ..Group::default() };
    for (bits, wanted) in [(8, 0.5), (4, 0.02515)] {
        let used = used(&group, &stats, bits, 4).unwrap()[0];
        assert!((used / (MARGIN * wanted) - 1.0).abs() < 5e-3, "{bits} bits: {used}");
    }
    // All but one in twenty come to one level below the ceiling of 6, each from where its largest value allows.
    let reach: Vec<f32> = (1..=20).map(|i| i as f32 * 0.1).collect();
    let used: Vec<f64> = (1..=20).map(|i| if i == 1 { 0.9 } else { 0.02 * f64::from(i) }).collect();
    let scales = below_ceilings(&reach, &used, &[1.0; 20], true).unwrap();
    let levels: Vec<f64> = reach.iter().zip(&scales).map(|(a, s)| f64::from(*a) / s).collect();
    assert!((levels[0] - 0.1 / 0.9).abs() < 1e-6 && levels[1..].iter().all(|l| (l - 5.0).abs() < 1e-5), "{levels:?}");
}

#[test]
fn tensors_with_other_readers_and_other_functions_are_left_alone() {
    let graph = network();
    let read = |graph: &Graph| groups(graph).iter().flat_map(|g| g.tensors.clone()).collect::<Vec<_>>();
    assert_eq!(read(&graph), ["r1", "c2"]);
    let mut shown = graph.clone();
    shown.outputs.push(ValueInfo { name: "r1".into(), dtype: DType::F32, dims: None });
    assert_eq!(read(&shown), ["c2"]);
    let mut curved = graph.clone();
    curved.nodes[1].op = Op::from_attrs("Sigmoid", &Attrs::default()).unwrap();
    assert_eq!(read(&curved), ["c2"]);
    // A residual addition ties what the first and the second layer write.
    let mut tied = graph;
    let add = Node {
        name: "a".into(),
        op: Op::from_attrs("Add", &Attrs::default()).unwrap(),
        inputs: vec!["r1".into(), "c2".into()],
        outputs: vec!["a".into()],
    };
    tied.nodes.insert(3, add);
    tied.nodes[4].inputs[0] = "a".into();
    let found = groups(&tied);
    assert_eq!((found.len(), &found[0].writers[..], &found[0].readers[..]), (1, &[0, 2][..], &[2, 4][..]));
}

/// x [1, 2, 5, 5] → 1×1 to 4 channels of unlike ranges → Relu → pooled → Flatten → Gemm → Relu → Gemm → y, where Gemms have their weights
/// either way and what is flattened has `places` to a channel.
fn classifier(pool: &str, attrs: Attrs, places: usize) -> Graph {
    let mut graph = network();
    let node = |op: &str, attrs: Attrs, inputs: &[&str], output: &str| Node {
        name: output.into(),
        op: Op::from_attrs(op, &attrs).unwrap(),
        inputs: inputs.iter().map(|s| s.to_string()).collect(),
        outputs: vec![output.into()],
    };
    let ramp = |n: usize| (0..n).map(|i| ((i * 5 + 2) % 13) as f32 * 0.2 - 1.1).collect::<Vec<f32>>();
    let constants = [
        ("w2", Tensor::f32(&[6, 4 * places], ramp(24 * places))),
        ("b2", Tensor::f32(&[1, 6], ramp(6))),
        ("w3", Tensor::f32(&[6, 3], ramp(18))),
    ];
    graph.constants.extend(constants.map(|(name, t)| (name.into(), Arc::new(t))));
    let transposed = Attrs::default().with("transB", Attr::Int(1));
    graph.nodes.truncate(1);
    graph.nodes.extend([
        node("Relu", Attrs::default(), &["c1"], "r1"),
        node(pool, attrs, &["r1"], "p"),
        node("Flatten", Attrs::default(), &["p"], "f"),
        node("Gemm", transposed, &["f", "w2", "b2"], "g"),
        node("Relu", Attrs::default(), &["g"], "h"),
        node("Gemm", Attrs::default(), &["h", "w3"], "y"),
    ]);
    graph
}

#[test]
fn scales_go_through_pooling_and_flatten_to_matrices() {
    let window =
        || Attrs::default().with("kernel_shape", Attr::Ints(vec![2, 2])).with("strides", Attr::Ints(vec![2, 2]));
    for (pool, attrs, places) in [
        ("GlobalAveragePool", Attrs::default(), 1),
        ("GlobalMaxPool", Attrs::default(), 1),
        ("AveragePool", window(), 4),
        ("MaxPool", window(), 4),
    ] {
        let graph = classifier(pool, attrs, places);
        let read: Vec<_> = groups(&graph).into_iter().flat_map(|group| group.tensors).collect();
        assert_eq!(read, ["f", "h"], "{pool}");
        let (before, stats) = run_observing(&graph, &["f", "h"]);
        for per_channel in [true, false] {
            let done = equalize(&graph, &stats, Config { per_channel, ..Config::default() });
            let (factors, patches) = (done.factors(&graph), done.patches);
            assert!(["w1", "b1", "w2", "b2", "w3"].iter().all(|name| patches.contains_key(*name)), "{pool}");
            assert_eq!((factors["c1"].len(), factors["g"].len()), (4, 6), "{pool}");
            let mut equalized = graph.clone();
            equalized.constants.extend(patches);
            let (after, equal_stats) = run_observing(&equalized, &["f", "h"]);
            for (a, b) in before.iter().zip(&after) {
                assert!((a - b).abs() <= 1e-5 * (1.0 + a.abs()), "{pool}: {a} became {b}");
            }
            let spread = |stats: &Stats| {
                let largest = by_channel(&stats.0["f"].channels.as_ref().unwrap().largest(), 4, f32::max).unwrap();
                let living = || largest.iter().copied().filter(|v| *v > 0.0);
                living().fold(0f32, f32::max) / living().fold(f32::MAX, f32::min)
            };
            assert!(!per_channel || spread(&equal_stats) < 0.5 * spread(&stats), "{pool}: {}", spread(&equal_stats));
        }
    }
}

/// The first network with a BatchNormalization behind the depthwise layer, which takes it in when it is folded.
fn normalized() -> Graph {
    let mut graph = network();
    let numbers = [("gamma", [0.5, 2.0, 0.02, 1.0]), ("beta", [0.1, -0.2, 0.0, 0.3])];
    let statistics = [("mean", [0.2, 0.0, -0.5, 1.0]), ("variance", [1.0, 4.0, 0.5, 0.1])];
    for (name, values) in numbers.into_iter().chain(statistics) {
        graph.constants.insert(name.into(), Arc::new(Tensor::f32(&[4], values.to_vec())));
    }
    let norm = Node {
        name: "norm".into(),
        op: Op::from_attrs("BatchNormalization", &Attrs::default()).unwrap(),
        inputs: ["c2", "gamma", "beta", "mean", "variance"].map(String::from).to_vec(),
        outputs: vec!["n2".into()],
    };
    graph.nodes.insert(3, norm);
    graph.nodes[4].inputs[0] = "n2".into();
    graph
}

#[test]
fn before_it_is_folded_the_network_is_equalized_through_its_normalizations() {
    let graph = normalized();
    let (folded, _) = fewbits_graph::passes::fold(&graph).unwrap();
    assert!(folded.nodes.iter().all(|node| !matches!(node.op, Op::BatchNormalization(_))));
    let (before, stats) = run_observing(&folded, &["c1", "r1", "n2"]);
    let done = equalize(&folded, &stats, Config { per_channel: false, ..Config::default() });
    let mut trained = graph.clone();
    for (name, factors) in unfolded_factors(&graph, &folded, &done.moved) {
        let [old, factors] = [&graph.constants[&name], &factors].map(|tensor| tensor.as_f32().unwrap());
        let scaled = old.iter().zip(factors).map(|(old, factor)| old * factor).collect();
        let dims = graph.constants[&name].dims.clone();
        trained.constants.insert(name, Arc::new(Tensor::f32(&dims, scaled)));
    }
    assert_ne!(trained.constants["gamma"], graph.constants["gamma"]);
    assert_eq!(
        [&trained.constants["mean"], &trained.constants["variance"]],
        [&graph.constants["mean"], &graph.constants["variance"]]
    );
    for (a, b) in before.iter().zip(run(&trained).0) {
        assert!((a - b).abs() <= 1e-5 * (1.0 + a.abs()), "{a} became {b}");
    }
    // Folded, it is the equalized network.
    let (again, _) = fewbits_graph::passes::fold(&trained).unwrap();
    for (name, tensor) in &done.patches {
        let [wanted, found] = [tensor, &again.constants[name]].map(|tensor| tensor.as_f32().unwrap());
        let most = wanted.iter().fold(0f32, |most, w| most.max(w.abs()));
        for (a, b) in wanted.iter().zip(found) {
            assert!((a - b).abs() <= 1e-6 * most, "{name}: {a}, not {b}");
        }
    }
    // A weight that another layer reads, too, stays, and so does its group.
    let mut shared = graph.clone();
    shared.nodes.push(Node { name: "again".into(), outputs: vec!["z".into()], ..shared.nodes[4].clone() });
    assert!(!unfolded_factors(&shared, &folded, &done.moved).contains_key("gamma"));
    // So does one that is read through a normalization which the reader takes in.
    let mut before = graph.clone();
    before.nodes[4].inputs[0] = "n3".into();
    let inputs = ["n2", "gamma", "beta", "mean", "variance"].map(String::from).to_vec();
    before.nodes.insert(4, Node { name: "n3".into(), inputs, outputs: vec!["n3".into()], ..graph.nodes[3].clone() });
    assert!(!unfolded_factors(&before, &folded, &done.moved).contains_key("w3"));
}
