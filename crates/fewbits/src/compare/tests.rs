use super::{
    pass::{agreeing, plain, rows},
    *,
};
use crate::progress::Silent;
use fewbits_data::{Dataset, OpenOptions, Preprocess, npy};
use fewbits_graph::{
    Attr, Attrs, DType, Dim, Grid, Grids, Node, Op, QuantParams, Tensor, TensorQuant, ValueInfo,
    exec::{Executor, Tapped},
};
use fewbits_kernels::Threads;
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

fn with_samples<R>(then: impl FnOnce(&Source<'_>) -> R) -> R {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npy");
    let mut bytes = Vec::new();
    npy::write(&mut bytes, &[7, 2, 5, 5], npy::Elements::F32(&varied(350))).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let dataset = Dataset::open(&path, &OpenOptions::default()).unwrap();
    then(&Source { dataset: &dataset, preprocess: &Preprocess::default(), indices: dataset.first(None) })
}

fn on_samples(a: &Graph, b: &Graph, mode: Mode<'_>, threshold: f64, threads: usize) -> Result<Comparison, Error> {
    let side = |name: &'static str, graph, mode| Side { path: Path::new(name), graph, mode };
    let (a, b) = (side("a.onnx", a, Mode::Float), side("b.onnx", b, mode));
    with_samples(|source| compare(a, b, source, threshold, threads, &Silent))
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

/// Grids fine enough for 40 dB and more; the widths of `few` are replaced, scales so that the range stays.
fn grids(few: &[(&str, u8)]) -> Grids {
    let bits = |name: &str| few.iter().find(|(few, _)| *few == name).map_or(8, |(_, bits)| *bits);
    let tensor = |name: &str, least: f32, greatest: f32| {
        let grid = Grid::activations(bits(name));
        let scale = (greatest - least) / grid.steps() as f32;
        QuantParams::per_tensor(grid, scale, (-least / scale).round() as i32)
    };
    let weight = |name: &str, channels: usize| {
        let grid = Grid::weights(bits(name));
        QuantParams::per_channel(grid, 0, vec![1.0 / grid.qmax() as f32; channels])
    };
    let all = [
        ("x", tensor("x", -1.0, 1.0)),
        ("w1", weight("w1", 4)),
        ("r1", tensor("r1", 0.0, 6.0)),
        ("w2", weight("w2", 3)),
        ("c2", tensor("c2", -12.0, 12.0)),
    ];
    Grids(all.map(|(name, params)| (name.to_string(), TensorQuant::Quantized(params))).into())
}

/// What is said of `graph` under `grids`: tensor, cause and sentence of each explanation.
fn why(graph: &Graph, grids: &Grids) -> Vec<Explanation> {
    on_samples(graph, graph, Mode::FakeQuant(grids), QUANTIZED_THRESHOLD_DB, 2).unwrap().explanations
}

#[test]
fn what_is_at_fault_is_named() {
    let graph = network();
    let scaled = |name: &str, factor: f32| {
        let mut grids = grids(&[]);
        let Some(TensorQuant::Quantized(params)) = grids.0.get_mut(name) else { panic!("{name} has no grid") };
        params.scale.iter_mut().for_each(|scale| *scale *= factor);
        grids
    };
    // A channel with a hundredth of the others' weights, and so of their outputs.
    let uneven = with_weight("w1", |w| w[..18].iter_mut().for_each(|w| *w *= 0.01));
    for (graph, grids, tensor, cause, words) in [
        (&graph, grids(&[("x", 2)]), "r1", Cause::FewBits, "2 bits are few for its input `x`"),
        (&graph, grids(&[("w1", 2)]), "r1", Cause::FewBits, "2 bits are few for the weights `w1`"),
        (&graph, grids(&[("r1", 3)]), "r1", Cause::FewBits, "3 bits are few for its values"),
        (&graph, grids(&[("w2", 3)]), "c2", Cause::FewBits, "3 bits are few for the weights `w2`"),
        (&graph, scaled("r1", 0.25), "r1", Cause::Clipping, "beyond the grid's 0.000 … 1.500"),
        (&graph, scaled("r1", 60.0), "r1", Cause::Outliers, "of 256 codes"),
        (&graph, scaled("w2", 16.0), "c2", Cause::Outliers, "the weights `w2`"),
        (&uneven, grids(&[("r1", 4)]), "r1", Cause::NarrowChannels, "1 of 4 channels of its values"),
    ] {
        let found = why(graph, &grids);
        let of: Vec<_> = found.iter().filter(|why| why.tensor == tensor).collect();
        assert!(matches!(of[..], [why] if why.cause == cause && why.message.contains(words)), "{words}: {found:#?}");
    }
}

#[test]
fn the_share_that_is_clipped_is_counted() {
    let graph = network();
    let mut grids = grids(&[]);
    grids.0.insert("r1".into(), TensorQuant::Quantized(QuantParams::per_tensor(Grid::activations(8), 1.0 / 255.0, 0)));
    let one = Threads::new(1);
    let mut executor = Executor::new(&graph, Mode::Float, &one).observing(["r1".to_string()]);
    let (mut above, mut all) = (0, 0);
    for sample in varied(350).chunks(50) {
        let mut tap = |tensor: Tapped<'_>| {
            let values = tensor.to_f32();
            all += values.len();
            above += values.iter().filter(|x| **x > 1.0 + 0.5 / 255.0).count();
        };
        executor.run_tapped(&[Tensor::f32(&[1, 2, 5, 5], sample.to_vec())], &mut tap).unwrap();
    }
    let words = format!("{:.2} % of its values lie beyond", 100.0 * above as f64 / all as f64);
    let found = why(&graph, &grids);
    assert!(above > 0 && found.iter().any(|why| why.message.starts_with(&words)), "no `{words}` in {found:#?}");
}

#[test]
fn noise_that_came_in_is_not_blamed_on_the_layer() {
    let found = why(&network(), &grids(&[("r1", 2)]));
    let of = |tensor: &str| found.iter().find(|why| why.tensor == tensor);
    assert_eq!(of("r1").unwrap().cause, Cause::FewBits);
    // The convolution behind it has most of its noise from there, and the mean of what it puts out is near zero.
    assert_eq!(of("c2").unwrap().cause, Cause::Inherited);
    assert!(of("c2").unwrap().message.contains("came in with `r1`"), "{found:#?}");
    assert_eq!(of("p").unwrap().cause, Cause::Cancellation);
    assert!(of("p").unwrap().message.contains("came in with `c2`"), "{found:#?}");
}

#[test]
fn a_coarse_grid_in_front_of_a_layer_alone_is_named() {
    let mut graph = network();
    graph.nodes.insert(2, node("slot", "Identity", Attrs::default(), &["r1"], "r1.few"));
    graph.nodes[3].inputs[0] = "r1.few".into();
    let mut grids = grids(&[]);
    let params = QuantParams::per_tensor(Grid::activations(2), 1.5, 0);
    grids.0.insert("r1.few".into(), TensorQuant::Quantized(params));
    let found = on_samples(&network(), &graph, Mode::FakeQuant(&grids), QUANTIZED_THRESHOLD_DB, 2).unwrap();
    let of = found.explanations.iter().find(|why| why.tensor == "c2").unwrap();
    assert_eq!(of.cause, Cause::FewBits);
    assert!(of.message.contains("2 bits are few for its input `r1.few`"), "{of:?}");
}

#[test]
fn float_networks_differ_by_constants_or_operators() {
    let causes = |other: &Graph| {
        let found = float(&network(), other).explanations;
        found.into_iter().map(|why| (why.tensor, (why.cause, why.message))).collect::<BTreeMap<_, _>>()
    };
    let found = causes(&with_weight("w2", |w| w[5] += 0.5));
    assert_eq!(found["c2"], (Cause::Constants, "`w2` is not the same in both networks".into()));
    let mut other = network();
    other.nodes[3] = node("pool", "GlobalMaxPool", Attrs::default(), &["c2"], "p");
    let found = causes(&other);
    assert_eq!(found["p"].0, Cause::Unknown, "{found:#?}");
    assert!(causes(&network()).is_empty());
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

/// Without a batch axis, or with axes of one element behind the classes, every score counts.
#[test]
fn scores_count_whole_however_they_are_laid_out() {
    assert_eq!([rows(&[1000], 1000, 1, 1), rows(&[8732, 21], 8732 * 21, 1, 1)], [1000, 8732 * 21]);
    assert_eq!([rows(&[8, 10], 80, 8, 3), rows(&[1, 10], 10, 1, 1)], [30, 10]);
    let tensor = |dims: &[usize], values: &[f32]| Tensor::f32(dims, values.to_vec());
    for dims in [&[3][..], &[1, 3], &[1, 3, 1, 1]] {
        let of = |values: &[f32]| agreeing(&tensor(dims, &[1.0, 3.0, 2.0]), &tensor(dims, values), 1);
        assert_eq!((of(&[0.0, 9.0, 8.0]), of(&[9.0, 0.0, 8.0])), (Some(1), Some(0)), "{dims:?}");
    }
    let [zeros, none] = [0.0, f32::NAN].map(|x| tensor(&[1, 2], &[x; 2]));
    assert_eq!((agreeing(&zeros, &none, 1), agreeing(&none, &none, 1)), (Some(0), Some(1)));
    assert_eq!(agreeing(&tensor(&[1, 3, 2], &[0.0; 6]), &tensor(&[1, 3, 2], &[0.0; 6]), 1), None);
}

#[test]
fn channels_on_other_scales_are_no_noise() {
    let factors = [0.1f32, 1.0, 4.0, 2.0];
    let mut other = with_weight("w1", |w| w.iter_mut().enumerate().for_each(|(i, w)| *w *= factors[i / 18]));
    let readers = with_weight("w2", |w| w.iter_mut().enumerate().for_each(|(i, w)| *w /= factors[i / 9 % 4]));
    other.constants.insert("w2".into(), readers.constants["w2"].clone());
    let found = float(&network(), &other);
    assert_eq!((found.first_divergence, found.explanations), (None, vec![]));
    let rescaled: Vec<_> = found.tensors.iter().filter(|t| t.rescaled).map(|t| t.name.as_str()).collect();
    assert_eq!(rescaled, ["c1", "r1"]);
    // An error behind them is found where it is, as large as without them.
    let wrong = |graph: &Graph| {
        let mut graph = graph.clone();
        let w =
            graph.constants["w2"].as_f32().unwrap().iter().enumerate().map(|(i, w)| if i < 9 { w * 1.5 } else { *w });
        let w = w.collect();
        graph.constants.insert("w2".into(), Arc::new(Tensor::f32(&[3, 4, 3, 3], w)));
        graph
    };
    let [plain, scaled] = [&network(), &other].map(|graph| float(&network(), &wrong(graph)));
    assert_eq!(scaled.first_divergence.as_deref(), Some("c2"));
    let db = |found: &Comparison| found.tensors.iter().find(|t| t.name == "c2").unwrap().sqnr_db;
    assert!((db(&plain) - db(&scaled)).abs() < 1e-3, "{} and {} dB", db(&plain), db(&scaled));
    // Where nothing behind makes up for them they are an error.
    let louder = with_weight("w2", |w| w.iter_mut().enumerate().for_each(|(i, w)| *w *= [1.0, 2.0, 3.0][i / 36]));
    let louder = float(&network(), &louder);
    assert!(louder.tensors.iter().all(|t| !t.rescaled));
    assert_eq!(louder.first_divergence.as_deref(), Some("c2"));
}

#[test]
fn what_a_kind_of_grid_costs_is_found_by_leaving_it_out() {
    let (graph, grids) = (network(), grids(&[("c2", 2)]));
    let found = with_samples(|source| {
        let side = |name: &'static str, mode| Side { path: Path::new(name), graph: &graph, mode };
        ablations(side("a.onnx", Mode::Float), side("b.onnx", Mode::Integer(&grids)), source, 2, &Silent).unwrap()
    });
    let by = |without: Without| found.iter().find(|a| a.without == without).map(|a| (a.grids, a.sqnr_db)).unwrap();
    let [conv, relu] = ["Conv", "Relu"].map(|op| by(Without::Op(op.into())));
    let [none, all, input] = [Without::Nothing, Without::Activations, Without::Input].map(by);
    assert_eq!((found.len(), [none, all, input, conv, relu].map(|(grids, _)| grids)), (5, [0, 3, 1, 1, 1]));
    assert!(conv.1 > none.1 + 10.0 && all.1 > none.1 + 10.0, "{found:?}");
    assert!((relu.1 - none.1).abs() < 3.0 && (input.1 - none.1).abs() < 3.0, "{found:?}");
}
