//! What ships computes what was trained: outputs of the tape against those of the deployed graph under its grids, for every method.

use fewbits_graph::{
    DType, Graph, Node, Op, Tensor, ValueInfo,
    exec::{Executor, Mode},
    op::CANONICAL_OPSET,
    ops::{self, window::Window},
    tape::{Leaves, Statistics, Tape, quantizer_leaf},
};
use fewbits_kernels::Threads;
use fewbits_quant::{calibrate::Policy, target::Target};
use fewbits_train::{
    TrainError,
    network::{Goal, Network},
    quantizers::{Method, Settings},
    random::Random,
    recipe::Fold,
};
use std::sync::Arc;

const IMAGES: [usize; 4] = [2, 3, 6, 6];

/// Convolutions, a residual sum of both signs, a transposed convolution and matrix products, normalizations with scales of both signs
/// behind them; with `before`, another one in front of a convolution.
fn network(before: bool, seed: u64) -> Graph {
    let mut random = Random::keyed(&[seed]);
    let mut graph = Graph { opset: CANONICAL_OPSET, ..Graph::default() };
    let value = |name: &str| ValueInfo { name: name.into(), dtype: DType::F32, dims: None };
    (graph.inputs, graph.outputs) = (vec![value("image")], vec![value("linear")]);
    let mut constant = |graph: &mut Graph, name: String, dims: &[usize], low: f64, high: f64| {
        let numbers = (0..dims.iter().product()).map(|_| (low + (high - low) * random.uniform()) as f32).collect();
        graph.constants.insert(name.clone(), Arc::new(Tensor::f32(dims, numbers)));
        name
    };
    let node = |graph: &mut Graph, name: &str, op: Op, inputs: Vec<String>| {
        graph.nodes.push(Node { name: name.into(), op, inputs, outputs: vec![name.into()] });
    };
    let mut norm = |graph: &mut Graph, name: &str, input: &str| {
        let mut inputs = vec![input.to_string()];
        for (what, low, high) in
            [("scale", -1.5, 1.5), ("bias", -0.5, 0.5), ("mean", -0.2, 0.2), ("variance", 0.2, 1.0)]
        {
            inputs.push(constant(graph, format!("{name}.{what}"), &[4], low, high));
        }
        node(graph, name, ops::BatchNormalization { epsilon: 1e-5, momentum: 0.9 }.into(), inputs);
    };
    let mut layers = Random::keyed(&[seed, 1]);
    let mut layer = |graph: &mut Graph, name: &str, op: Op, input: &str, dims: &[usize]| {
        let weight = format!("{name}.weight");
        let numbers = (0..dims.iter().product()).map(|_| (layers.uniform() - 0.5) as f32).collect();
        graph.constants.insert(weight.clone(), Arc::new(Tensor::f32(dims, numbers)));
        node(graph, name, op, vec![input.to_string(), weight]);
    };
    let conv = |kernel| Op::from(ops::Conv { window: Window::square(kernel, 1, kernel / 2), group: 1 });
    let gemm = || Op::from(ops::Gemm { trans_b: true, ..ops::Gemm::default() });
    layer(&mut graph, "conv1", conv(3), "image", &[4, 3, 3, 3]);
    norm(&mut graph, "bn1", "conv1");
    node(&mut graph, "relu1", ops::Relu {}.into(), vec!["bn1".into()]);
    layer(&mut graph, "conv2", conv(3), "relu1", &[4, 4, 3, 3]);
    norm(&mut graph, "bn2", "conv2");
    node(&mut graph, "add", ops::Add.into(), vec!["bn2".into(), "relu1".into()]);
    let signed = if before { "bn3" } else { "add" };
    if before {
        norm(&mut graph, "bn3", "add");
    }
    layer(&mut graph, "conv3", conv(1), signed, &[4, 4, 1, 1]);
    norm(&mut graph, "bn4", "conv3");
    node(&mut graph, "relu4", ops::Relu {}.into(), vec!["bn4".into()]);
    node(&mut graph, "pool", ops::GlobalAveragePool.into(), vec!["relu4".into()]);
    node(&mut graph, "flatten", ops::Flatten { axis: 1 }.into(), vec!["pool".into()]);
    layer(&mut graph, "hidden", gemm(), "flatten", &[4, 4]);
    norm(&mut graph, "bn5", "hidden");
    node(&mut graph, "leaky5", ops::LeakyRelu { alpha: 0.5 }.into(), vec!["bn5".into()]);
    layer(&mut graph, "linear", gemm(), "leaky5", &[5, 4]);
    graph.sort().unwrap();
    graph
}

fn goal(method: Method, bits: u8) -> Goal {
    // Ranges are watched for no batch at all.
    let settings = Settings { snapped: true, delay: 0, ..Settings::default() };
    Goal { method, settings, policy: Policy::new(bits, bits, 8), offsets_everywhere: false }
}

/// Largest difference of the outputs, relative to the largest output.
fn difference(method: Method, bits: u8, target: &Target, fold: Fold, seed: u64) -> Result<f32, TrainError> {
    let goal = goal(method, bits);
    let threads = Threads::new(1);
    let network = Network::new(&network(false, seed), target, Some(&goal), fold)?;
    let quantizers = network.quantizers(&goal, &IMAGES[1..])?;
    let mut leaves = Leaves::new(network.graph(), &quantizers.all);
    network.start_weights(&quantizers, &mut leaves);
    // Scales at which weights are clipped: the lowest code has no opposite.
    for name in quantizers.all.keys().filter(|name| name.ends_with(".weight") && method == Method::Lsq) {
        leaves.get_mut(&quantizer_leaf(name)).unwrap().iter_mut().for_each(|scale| *scale *= 0.4);
    }
    let mut random = Random::keyed(&[seed, 2]);
    let images: Vec<f32> = (0..IMAGES.iter().product()).map(|_| (4.0 * random.uniform() - 2.0) as f32).collect();
    let mut config = network.config(&quantizers, Statistics::Running);
    (config.stops, config.forward_only) = (true, true);
    let mut tape = Tape::compile(network.graph(), &leaves, &[IMAGES.to_vec()], &config)?;
    tape.forward_initializing(&mut leaves, &[&images], &threads, &mut |name, x, numbers| {
        let quantizer = quantizers.get(name).unwrap();
        numbers.copy_from_slice(&quantizer.initial(x)[..numbers.len()]);
    });
    // Initializing rounds with what it sets; once more with all of it set.
    let config = fewbits_graph::tape::Config { stops: false, ..config };
    let mut tape = Tape::compile(network.graph(), &leaves, &[IMAGES.to_vec()], &config)?;
    let unrounded = network.round_biases(&quantizers, &mut leaves);
    tape.forward(&mut leaves, &[&images], &threads);
    unrounded.restore(&mut leaves);
    let trained = tape.output(0).to_vec();
    let (graph, grids) = network.deploy(&quantizers, &leaves)?;
    let mut shipped = Executor::new(&graph, Mode::FakeQuant(&grids), &threads);
    let shipped = shipped.run(&[Tensor::f32(&IMAGES, images)])?;
    let shipped = shipped[0].as_f32().unwrap();
    let largest = trained.iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(largest > 0.001, "{method}: outputs that say nothing: {trained:?}");
    Ok(trained.iter().zip(shipped).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest)
}

#[test]
fn what_ships_computes_what_was_trained() {
    let mut wrong = Vec::new();
    for target in ["ort", "generic", "tensorrt"] {
        let target: Target = target.parse().unwrap();
        for method in Method::ALL {
            let cases = [(2, Fold::None), (3, Fold::None), (4, Fold::None), (3, Fold::Running), (8, Fold::Running)];
            for ((bits, fold), seed) in cases.into_iter().flat_map(|case| (0..4).map(move |seed| (case, seed))) {
                match difference(method, bits, &target, fold, seed) {
                    // One rounding that falls the other way would be 100 times that.
                    Ok(difference) if difference < 1e-4 => {}
                    Err(TrainError::NotDeployable { .. }) if method == Method::Qil => {}
                    Err(TrainError::Quantizer(_)) if method.has_zero_points() && target.symmetric_activations => {}
                    Err(TrainError::Quantizer(_)) if method == Method::Sawb => {}
                    other => wrong
                        .push(format!("{method}, {bits} bits, {}, fold {fold}, seed {seed}: {other:?}", target.name)),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_normalization_that_would_go_into_a_rounded_weight_is_refused() {
    let target: Target = "ort".parse().unwrap();
    let error = Network::new(&network(true, 0), &target, Some(&goal(Method::Lsq, 8)), Fold::None).unwrap_err();
    assert!(matches!(&error, TrainError::NormBefore { norm, layer } if norm == "bn3" && layer == "conv3"), "{error}");
    assert!(error.hint().unwrap().contains("--fold merged"));
    assert!(Network::new(&network(true, 0), &target, Some(&goal(Method::Lsq, 8)), Fold::Merged).is_ok());
    assert!(Network::new(&network(true, 0), &target, None, Fold::None).is_ok(), "float training keeps it");
}
