use super::*;
use crate::progress::Silent;
use fewbits_data::{Dataset, OpenOptions, Preprocess, npy};
use fewbits_graph::{Attr, Attrs, DType, Dim, Grid, Grids, Node, Op, QuantParams, TensorQuant, ValueInfo};
use std::sync::Arc;

fn node(name: &str, op: &str, attrs: Attrs, inputs: &[&str], output: &str) -> Node {
    let inputs = inputs.iter().map(|s| s.to_string()).collect();
    Node { name: name.into(), op: Op::from_attrs(op, &attrs).unwrap(), inputs, outputs: vec![output.into()] }
}

/// Numbers without a pattern, −1 to 1.
fn varied(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + 13) % 997) as f32 / 498.0 - 1.0).collect()
}

/// Two convolutions, pooling, and three class scores.
fn network() -> Graph {
    let dims = vec![Dim::Symbol("N".into()), Dim::Fixed(2), Dim::Fixed(5), Dim::Fixed(5)];
    let pads = || Attrs::default().with("pads", Attr::Ints(vec![1, 1, 1, 1]));
    let weight = |dims: &[usize]| Arc::new(Tensor::f32(dims, varied(dims.iter().product())));
    Graph {
        name: "net".into(),
        nodes: vec![
            node("first", "Conv", pads(), &["x", "w1"], "c1"),
            node("relu", "Relu", Attrs::default(), &["c1"], "r1"),
            node("second", "Conv", pads(), &["r1", "w2"], "c2"),
            node("pool", "GlobalAveragePool", Attrs::default(), &["c2"], "p"),
            node("flat", "Flatten", Attrs::default(), &["p"], "scores"),
        ],
        inputs: vec![ValueInfo { name: "x".into(), dtype: DType::F32, dims: Some(dims) }],
        outputs: vec![ValueInfo { name: "scores".into(), dtype: DType::F32, dims: None }],
        constants: [("w1".to_string(), weight(&[4, 2, 3, 3])), ("w2".to_string(), weight(&[3, 4, 3, 3]))].into(),
        opset: 13,
        ..Graph::default()
    }
}

fn with_weight(name: &str, change: impl Fn(&mut [f32])) -> Graph {
    let mut graph = network();
    let mut values = graph.constants[name].as_f32().unwrap().to_vec();
    change(&mut values);
    let dims = graph.constants[name].dims.clone();
    graph.constants.insert(name.into(), Arc::new(Tensor::f32(&dims, values)));
    graph
}

fn on_samples(a: &Graph, b: &Graph, mode: Mode<'_>, threshold: f64, threads: usize) -> Result<Comparison, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npy");
    let mut bytes = Vec::new();
    npy::write(&mut bytes, &[7, 2, 5, 5], npy::Elements::F32(&varied(350))).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let dataset = Dataset::open(&path, &OpenOptions::default()).unwrap();
    let source = Source { dataset: &dataset, preprocess: &Preprocess::default(), indices: dataset.first(None) };
    let side = |name: &'static str, graph, mode| Side { path: Path::new(name), graph, mode };
    compare(side("a.onnx", a, Mode::Float), side("b.onnx", b, mode), &source, threshold, threads, &Silent)
}

fn float(a: &Graph, b: &Graph) -> Comparison {
    on_samples(a, b, Mode::Float, FLOAT_THRESHOLD_DB, 2).unwrap()
}

#[test]
fn a_model_equals_itself() {
    let same = float(&network(), &network());
    assert_eq!((same.sqnr_db, same.max_abs_diff, same.top1_agreement), (200.0, 0.0, Some(1.0)));
    assert_eq!((same.first_divergence, same.most_noise_added, same.samples), (None, None, 7));
    let names: Vec<_> = same.tensors.iter().map(|t| (t.name.as_str(), t.sqnr_db)).collect();
    assert_eq!(names, ["c1", "r1", "c2", "p", "scores"].map(|name| (name, 200.0)));
}

#[test]
fn a_changed_weight_is_found_where_it_is() {
    for (weight, tensor) in [("w1", "c1"), ("w2", "c2")] {
        let other = with_weight(weight, |w| w[5] += 0.5);
        let found = float(&network(), &other);
        assert_eq!(found.first_divergence.as_deref(), Some(tensor));
        assert!(found.sqnr_db < 60.0 && found.max_abs_diff > 0.0);
    }
}

#[test]
fn a_tensor_scaled_by_a_tenth_has_twenty_decibels() {
    let found = float(&network(), &with_weight("w1", |w| w.iter_mut().for_each(|w| *w *= 1.1)));
    // Everything behind the first convolution is linear in it or a Relu of it.
    for tensor in &found.tensors {
        assert!((tensor.sqnr_db - 20.0).abs() < 1e-3, "{tensor:?}");
        assert!((tensor.cosine - 1.0).abs() < 1e-6);
    }
    assert_eq!(found.top1_agreement, Some(1.0));
    assert_eq!(found.most_noise_added.as_deref(), Some("c1"));
    assert!((found.tensors[0].noise_added - 0.01).abs() < 1e-5);
}

#[test]
fn a_scaled_output_keeps_the_order_and_a_negated_one_does_not() {
    let negated = float(&network(), &with_weight("w2", |w| w.iter_mut().for_each(|w| *w = -*w)));
    assert_eq!(negated.top1_agreement, Some(0.0));
    assert!((negated.cosine + 1.0).abs() < 1e-6);
}

#[test]
fn grids_are_looked_at_without_changing_what_is_computed() {
    let graph = network();
    let tensor = |scale, zero| TensorQuant::Quantized(QuantParams::per_tensor(Grid::activations(8), scale, zero));
    let weight =
        |count| TensorQuant::Quantized(QuantParams::per_channel(Grid::weights(8), 0, vec![1.0 / 127.0; count]));
    let grids = [
        ("x", tensor(2.0 / 255.0, 128)),
        ("w1", weight(4)),
        ("r1", tensor(4.0 / 255.0, 0)),
        ("w2", weight(3)),
        ("c2", tensor(24.0 / 255.0, 128)),
    ];
    let grids = Grids(grids.map(|(name, quant)| (name.to_string(), quant)).into());
    let run = |threads| on_samples(&graph, &graph, Mode::Integer(&grids), QUANTIZED_THRESHOLD_DB, threads).unwrap();
    let found = run(1);
    assert_eq!(found, run(3), "the result does not depend on the number of threads");
    let names: Vec<_> = found.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["r1", "c2", "p", "scores"], "the kernel of `first` never makes `c1`");
    assert!(found.sqnr_db > 20.0 && found.sqnr_db < 80.0, "{}", found.sqnr_db);

    let mut executor_outputs = Vec::new();
    let one = Threads::new(1);
    let mut executor = Executor::new(&graph, Mode::Integer(&grids), &one);
    let mut reference = Executor::new(&graph, Mode::Float, &one);
    for sample in varied(350).chunks(50) {
        let input = [Tensor::f32(&[1, 2, 5, 5], sample.to_vec())];
        executor_outputs.push((executor.run(&input).unwrap(), reference.run(&input).unwrap()));
    }
    let apart = executor_outputs.iter().flat_map(|(q, f)| {
        let pairs = q[0].as_f32().unwrap().iter().zip(f[0].as_f32().unwrap());
        pairs.map(|(q, f)| (f64::from(*q) - f64::from(*f)).abs()).collect::<Vec<_>>()
    });
    assert_eq!(found.max_abs_diff, apart.fold(0.0, f64::max), "an unobserved run puts out the same");
}

#[test]
fn models_that_do_not_fit_are_refused_by_name() {
    let refused = |change: &dyn Fn(&mut Graph)| {
        let mut other = network();
        change(&mut other);
        on_samples(&network(), &other, Mode::Float, 100.0, 1).unwrap_err().to_string()
    };
    let renamed = refused(&|g| {
        g.inputs[0].name = "image".into();
        g.nodes[0].inputs[0] = "image".into();
    });
    assert!(renamed.contains("`x`") && renamed.contains("`image`"), "{renamed}");
    let resized = refused(&|g| {
        if let Some(dims) = &mut g.inputs[0].dims {
            dims[3] = Dim::Fixed(9);
        }
    });
    assert!(resized.contains("[N, 2, 5, 5] and [N, 2, 5, 9]"), "{resized}");
    let wider = refused(&|g| {
        let dims = [2, 4, 3, 3];
        g.constants.insert("w2".into(), Arc::new(Tensor::f32(&dims, varied(72))));
    });
    assert!(wider.contains("`c2`"), "{wider}");
}

#[test]
fn channels_last_becomes_plain() {
    // Two samples, two channels, three places; the value says where it belongs.
    let stored = [0.0, 3.0, 1.0, 4.0, 2.0, 5.0, 6.0, 9.0, 7.0, 10.0, 8.0, 11.0];
    let expected: Vec<f32> = (0..12).map(|i| i as f32).collect();
    assert_eq!(plain(&stored, &[2, 2, 3]), expected);
}
