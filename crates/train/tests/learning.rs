//! The loop on a problem small enough for a test: every method learns it, and steps and epochs are reported as they are made.

use fewbits_data::{Augment, Dataset, Image, Loader, LoaderOptions, Preprocess};
use fewbits_graph::{
    DType, Graph, Node, Op, Tensor, ValueInfo,
    exec::{Executor, Mode},
    op::CANONICAL_OPSET,
    ops::{self, window::Window},
    tape::quantizer_leaf,
};
use fewbits_kernels::Threads;
use fewbits_quant::calibrate::Policy;
use fewbits_train::{
    TrainError,
    checkpoint::Checkpoint,
    network::Goal,
    optimizer::Rule,
    quantizers::{Method, Offset, Settings},
    random::Random,
    recipe::{Fold, Phase, Recipe},
    trainer::{EpochReport, Outcome, Setup, StepReport, Watcher, train},
};
use std::{collections::BTreeMap, sync::Arc};

const SIDE: usize = 8;
const CLASSES: usize = 3;
const IMAGES: usize = 96;
const BATCH: usize = 16;
const CHANNELS: usize = 8;

/// Noise with horizontal stripes, with vertical ones, or without any.
fn pictures() -> Dataset {
    let mut random = Random::keyed(&[7]);
    let mut image = |class: usize| {
        let mut rgb = Vec::new();
        for place in 0..SIDE * SIDE {
            let stripe = [place / SIDE % 2, place % SIDE % 2, 0][class];
            rgb.extend((0..3).map(|_| (60.0 + 90.0 * stripe as f64 + 60.0 * random.uniform()) as u8));
        }
        Image { width: SIDE, height: SIDE, rgb }
    };
    let labels: Vec<usize> = (0..IMAGES).map(|i| i % CLASSES).collect();
    let images = labels.iter().map(|class| image(*class)).collect();
    Dataset::from_images(images, labels, vec![])
}

/// Three convolutions, with normalizations if `norms`, and a matrix product; nodes and what they write have the same name.
fn network(norms: bool) -> Graph {
    let mut random = Random::keyed(&[3]);
    let mut graph = Graph { opset: CANONICAL_OPSET, ..Graph::default() };
    let value = |name: &str| ValueInfo { name: name.into(), dtype: DType::F32, dims: None };
    (graph.inputs, graph.outputs) = (vec![value("image")], vec![value("linear")]);
    let node = |graph: &mut Graph, name: &str, op: Op, inputs: &[&str]| {
        let inputs = inputs.iter().map(|input| input.to_string()).collect();
        graph.nodes.push(Node { name: name.into(), op, inputs, outputs: vec![name.into()] });
    };
    let mut weight = |graph: &mut Graph, name: &str, dims: &[usize]| {
        let bound = (6.0 / dims[1..].iter().product::<usize>() as f64).sqrt();
        let numbers = (0..dims.iter().product()).map(|_| (bound * (2.0 * random.uniform() - 1.0)) as f32).collect();
        graph.constants.insert(name.into(), Arc::new(Tensor::f32(dims, numbers)));
    };
    let mut x = "image".to_string();
    for (i, input) in [3, CHANNELS, CHANNELS].into_iter().enumerate() {
        let [conv, norm, relu] = ["conv", "norm", "relu"].map(|what| format!("{what}{}", i + 1));
        let own = format!("{conv}.weight");
        weight(&mut graph, &own, &[CHANNELS, input, 3, 3]);
        node(&mut graph, &conv, ops::Conv { window: Window::square(3, 1, 1), group: 1 }.into(), &[&x, &own]);
        x = conv;
        if norms {
            let parts = ["scale", "bias", "mean", "variance"].map(|part| format!("{norm}.{part}"));
            for (name, start) in parts.iter().zip([1.0, 0.0, 0.0, 1.0]) {
                graph.constants.insert(name.clone(), Arc::new(Tensor::f32(&[CHANNELS], vec![start; CHANNELS])));
            }
            let inputs: Vec<&str> = std::iter::once(&x).chain(&parts).map(String::as_str).collect();
            node(&mut graph, &norm, ops::BatchNormalization { epsilon: 1e-5, momentum: 0.9 }.into(), &inputs);
            x = norm;
        }
        node(&mut graph, &relu, ops::Relu {}.into(), &[&x]);
        x = relu;
    }
    weight(&mut graph, "linear.weight", &[CLASSES, CHANNELS]);
    node(&mut graph, "pool", ops::GlobalAveragePool.into(), &[&x]);
    node(&mut graph, "flatten", ops::Flatten { axis: 1 }.into(), &["pool"]);
    let gemm = ops::Gemm { trans_b: true, ..ops::Gemm::default() };
    node(&mut graph, "linear", gemm.into(), &["flatten", "linear.weight"]);
    graph
}

fn goal(method: Method) -> Goal {
    let settings = Settings { delay: 10, ..Settings::default() };
    Goal { method, settings, policy: Policy::new(4, 4, 8), offsets_everywhere: false }
}

/// As the command line has it below 8 bits.
fn recipe(goal: Option<Goal>, epochs: usize) -> Recipe {
    Recipe::new(Phase { epochs, goal }, 0.01)
}

/// Keeps what it is told.
#[derive(Default)]
struct Log {
    steps: Vec<StepReport>,
    epochs: Vec<EpochReport>,
    /// Of leaves, behind each step but the last one of an epoch, and behind each epoch.
    values: Vec<Vec<f32>>,
}

impl Watcher for Log {
    fn begin(&mut self, _step: usize) -> Result<(), TrainError> {
        Ok(())
    }

    fn step(&mut self, report: &StepReport) -> Result<(), TrainError> {
        self.steps.push(*report);
        Ok(())
    }

    fn epoch(&mut self, report: &EpochReport) -> Result<(), TrainError> {
        self.epochs.push(report.clone());
        Ok(())
    }

    fn wants_checkpoint(&mut self, _step: usize) -> bool {
        true
    }

    fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), TrainError> {
        self.values.push(checkpoint.values.clone());
        Ok(())
    }
}

fn loader(batch: usize, training: bool) -> Loader {
    let preprocess = Preprocess { scale: 255.0, mean: vec![0.5], std: vec![0.25], ..Preprocess::default() };
    let options = LoaderOptions { batch, seed: 0, shuffle: training, drop_last: training, limit: None, workers: 1 };
    Loader::new(Arc::new(pictures()), preprocess, Augment::default(), options).unwrap()
}

fn run(graph: &Graph, recipe: &Recipe, batch: usize) -> Result<(Outcome, Log), TrainError> {
    run_scaled(graph, &BTreeMap::new(), recipe, batch)
}

fn run_scaled(
    graph: &Graph,
    scaled: &BTreeMap<String, Vec<f32>>,
    recipe: &Recipe,
    batch: usize,
) -> Result<(Outcome, Log), TrainError> {
    let (training, validation, threads) = (loader(batch, true), loader(batch, false), Threads::new(2));
    let target = "ort".parse().unwrap();
    let setup = Setup {
        graph,
        scaled,
        target: &target,
        recipe,
        training: &training,
        validation: &validation,
        teacher: None,
        threads: &threads,
    };
    let mut log = Log::default();
    let outcome = train(&setup, None, &mut log)?;
    Ok((outcome, log))
}

#[test]
fn every_method_learns() {
    let graph = network(true);
    for method in std::iter::once(None).chain(Method::ALL.map(Some)) {
        let (_, log) = run(&graph, &recipe(method.map(goal), 5), BATCH).unwrap();
        let losses: Vec<f64> = log.epochs.iter().map(|epoch| epoch.loss).collect();
        assert_eq!(log.steps.len(), 30);
        let start = log.steps[0].loss.total;
        assert!(losses[4] < 0.8 * start && losses[4] < losses[0], "{method:?}: {start}, then {losses:?}");
    }
}

/// A normalization undoes any factor of the layer before it, also where its running statistics, here those of initial weights, know
/// nothing of it.
#[test]
fn scales_of_activations_start_with_the_statistics_that_steps_have() {
    for fold in [Fold::None, Fold::Corrected] {
        let start = |factor: f32| {
            let mut graph = network(true);
            let weight = graph.constants["conv2.weight"].clone();
            let scaled = weight.as_f32().unwrap().iter().map(|w| factor * w).collect();
            graph.constants.insert("conv2.weight".into(), Arc::new(Tensor::f32(&weight.dims, scaled)));
            let recipe = Recipe { fold, freeze_at: 1.0, learning_rate: 1e-9, ..recipe(Some(goal(Method::Lsq)), 1) };
            let (_, log) = run(&graph, &recipe, BATCH).unwrap();
            log.epochs[0].scales.iter().find(|(name, _)| name == "relu2").unwrap().1
        };
        let ratio = start(1024.0) / start(1.0);
        assert!((ratio - 1.0).abs() < 0.01, "{fold}: {ratio}");
    }
}

#[test]
fn scales_move_by_a_tenth_of_themselves_in_a_step_at_most() {
    let scales = |quantizer_rate: f64| -> Vec<f32> {
        let recipe = Recipe { learning_rate: 1e-6, quantizer_rate, ..recipe(Some(goal(Method::Lsq)), 1) };
        let (_, log) = run(&network(true), &recipe, BATCH).unwrap();
        assert_eq!(log.steps.len(), 6);
        log.epochs[0].scales.iter().map(|(_, scale)| *scale).collect()
    };
    let ratios: Vec<f32> = scales(1e9).iter().zip(scales(0.0)).map(|(moved, start)| moved / start).collect();
    let (least, most) = (0.9f32.powi(6) - 1e-3, 1.1f32.powi(6) + 1e-3);
    assert!(ratios.iter().all(|ratio| (least..most).contains(ratio)), "{ratios:?}");
    assert!(ratios.iter().any(|ratio| !(0.7..1.3).contains(ratio)), "the rate would have them go further: {ratios:?}");
}

/// What the result of a training in batches of `batch` has as statistics of `norm1`, by channel: means and variances.
fn statistics(graph: &Graph, recipe: &Recipe, batch: usize) -> [Vec<f32>; 2] {
    let (outcome, _) = run(graph, recipe, batch).unwrap();
    ["norm1.mean", "norm1.variance"].map(|name| {
        let leaf = outcome.leaves.running.iter().find(|leaf| leaf.name == name).unwrap();
        outcome.leaves.statistics[leaf.range.clone()].to_vec()
    })
}

/// With weights that stand still, the mean over equal batches is the mean over all images; running averages still remember how they began.
/// The variance of one batch of all images is theirs. The momentum of the network says nothing here.
#[test]
fn statistics_are_estimated_anew_before_an_epoch_is_scored() {
    let mut graph = network(true);
    let mut convolution = graph.clone();
    convolution.outputs[0].name = "conv1".into();
    let images = loader(IMAGES, false).epoch(0, 0).next().unwrap().unwrap();
    let threads = Threads::new(1);
    let mut executor = Executor::new(&convolution, Mode::Float, &threads);
    let written = executor.run(&[Tensor::f32(&images.shape, images.data.clone())]).unwrap().remove(0);
    let count = (IMAGES * SIDE * SIDE) as f64;
    let sum = |channel: usize, of: &dyn Fn(f64) -> f64| -> f64 {
        let planes = written.as_f32().unwrap().chunks(SIDE * SIDE).enumerate();
        planes.filter(|(i, _)| i % CHANNELS == channel).flat_map(|(_, plane)| plane).map(|&x| of(x.into())).sum()
    };
    let means: Vec<f64> = (0..CHANNELS).map(|c| sum(c, &|x| x) / count).collect();
    let variances: Vec<f64> = (0..CHANNELS).map(|c| sum(c, &|x| (x - means[c]).powi(2)) / (count - 1.0)).collect();
    let farthest = |found: &[f32], expected: &[f64]| {
        found.iter().zip(expected).fold(0.0, |most, (&found, x)| f64::max(most, (f64::from(found) - x).abs()))
    };
    for momentum in [0.9, 1.0] {
        for node in &mut graph.nodes {
            if let Op::BatchNormalization(bn) = &mut node.op {
                bn.momentum = momentum;
            }
        }
        let found = |reestimation: usize, batch: usize| {
            statistics(&graph, &Recipe { learning_rate: 1e-12, reestimation, ..recipe(None, 1) }, batch)
        };
        let [anew, running] = [50, 0].map(|reestimation| farthest(&found(reestimation, BATCH)[0], &means));
        assert!(anew < 1e-5 && running > 0.05, "momentum {momentum}: means {anew}, {running}");
        let [anew, running] = [50, 0].map(|reestimation| farthest(&found(reestimation, IMAGES)[1], &variances));
        assert!(anew < 1e-5 && running > 0.05, "momentum {momentum}: variances {anew}, {running}");
    }
}

#[test]
fn statistics_that_weights_learn_with_are_not_estimated_anew() {
    let graph = network(true);
    for (fold, freeze_at) in [(Fold::None, 0.5), (Fold::Corrected, 1.0), (Fold::Running, 0.5)] {
        let found = |reestimation: usize| {
            let recipe = Recipe { fold, freeze_at, reestimation, ..recipe(Some(goal(Method::Lsq)), 2) };
            statistics(&graph, &recipe, BATCH)
        };
        assert_eq!(found(50), found(0), "--fold {fold} --freeze-at {freeze_at}");
    }
}

/// The first epoch that may be the result: it is the best so far.
fn first_best(graph: &Graph, recipe: &Recipe) -> Option<usize> {
    let (_, log) = run(graph, recipe, BATCH).unwrap();
    let first = log.epochs.iter().position(|epoch| epoch.best);
    assert_eq!(log.epochs.iter().position(|epoch| epoch.not_final.is_none()), first, "what comes before has a reason");
    first
}

#[test]
fn every_epoch_can_be_the_result_unless_something_is_still_to_change() {
    let graph = network(true);
    for method in [None, Some(Method::Lsq), Some(Method::LsqBn)] {
        let recipe = Recipe { freeze_at: 1.0, ..recipe(method.map(goal), 4) };
        assert_eq!(first_best(&graph, &recipe), Some(0), "{method:?} has no offsets");
    }
    // Images have both signs, and LSQ+ quantizers for these methods.
    for method in [Method::LsqPlus, Method::Pact] {
        assert_eq!(first_best(&graph, &recipe(Some(goal(method)), 4)), Some(2), "snapped at half the epochs");
    }
    assert_eq!(first_best(&graph, &recipe(Some(goal(Method::Qat)), 4)), Some(1), "ten steps are watched");
    let frozen = Recipe { freeze_at: 0.5, ..recipe(Some(goal(Method::Lsq)), 4) };
    assert_eq!(first_best(&graph, &frozen), Some(2));
    assert_eq!(first_best(&network(false), &frozen), Some(0), "without statistics nothing is frozen");
}

#[test]
fn scales_are_those_of_the_grids() {
    for method in Method::ALL {
        let mut goal = goal(method);
        goal.settings.delay = 1;
        let (outcome, log) = run(&network(true), &recipe(Some(goal), 1), BATCH).unwrap();
        for (name, scale) in &log.epochs[0].scales {
            let quantizer = outcome.quantizers.get(name).unwrap();
            let groups = outcome.leaves.get(&quantizer_leaf(name)).unwrap().chunks_exact(quantizer.learned());
            let grids: Vec<f32> = groups.filter_map(|group| Some(quantizer.grid(group).ok()?.1)).collect();
            let mean = grids.iter().sum::<f32>() / grids.len() as f32;
            assert!(*scale > 0.0 && (grids.is_empty() || mean == *scale), "{method:?} {name}: {scale}, {grids:?}");
        }
        let inner = log.epochs[0].scales.iter().filter(|(name, _)| name == "relu1" || name == "relu2");
        assert_eq!(inner.count(), if method == Method::DoReFa { 0 } else { 2 }, "{method:?}");
    }
}

#[test]
fn an_offset_fixed_at_the_minimum_stays() {
    let mut goal = Goal { offsets_everywhere: true, ..goal(Method::LsqPlus) };
    goal.settings.offset = Offset::FixedAtMinimum;
    // Behind a normalization alone elements have both signs, and the minimum is far from zero.
    let mut graph = network(true);
    graph.nodes.retain(|node| node.name != "relu1");
    graph.nodes.iter_mut().filter(|node| node.name == "conv2").for_each(|node| node.inputs[0] = "norm1".into());
    let (outcome, log) = run(&graph, &Recipe { quantizer_decay: 1.0, ..recipe(Some(goal), 2) }, BATCH).unwrap();
    let leaf = outcome.leaves.parameter(&quantizer_leaf("norm1")).unwrap();
    assert_eq!(leaf.dims, [1, 2]);
    let numbers = |values: &[f32]| values[leaf.range.clone()].to_vec();
    let (first, last) = (numbers(&log.values[0]), numbers(log.values.last().unwrap()));
    assert!(first[1] < -0.1 && first[1] == last[1], "{first:?} became {last:?}");
    assert!(last[0] < first[0], "the scale decays: {first:?} became {last:?}");
}

#[test]
fn a_scaled_network_learns_as_the_one_it_was() {
    // Powers of two, so that nothing is rounded otherwise.
    let scales: Vec<f32> = (0..CHANNELS).map(|c| [1.0, 16.0, 0.25, 4.0][c % 4]).collect();
    let graph = network(true);
    let (mut other, mut scaled) = (graph.clone(), BTreeMap::new());
    let by = |name: &str, i: usize| if name == "conv2.weight" { scales[i / 9 % CHANNELS] } else { 1.0 / scales[i] };
    for name in ["norm1.scale", "norm1.bias", "conv2.weight"] {
        let tensor = other.constants.get_mut(name).unwrap();
        let factors: Vec<f32> = (0..tensor.len()).map(|i| by(name, i)).collect();
        let values = tensor.as_f32().unwrap().iter().zip(&factors).map(|(value, factor)| value * factor).collect();
        *tensor = Arc::new(Tensor::f32(&tensor.dims, values));
        scaled.insert(name.to_string(), factors);
    }
    for rule in [Rule::Sgd { momentum: 0.9, nesterov: true }, Rule::Adam(Default::default())] {
        let recipe = Recipe { rule, clip_norm: 1.0, ..recipe(None, 2) };
        let losses = |log: &Log| log.steps.iter().map(|step| step.loss.total).collect::<Vec<_>>();
        let [(_, plain), (_, with), (_, without)] =
            [(&graph, &BTreeMap::new()), (&other, &scaled), (&other, &BTreeMap::new())]
                .map(|(graph, scaled)| run_scaled(graph, scaled, &recipe, BATCH).unwrap());
        assert_eq!(losses(&plain), losses(&with), "{rule:?}");
        assert_ne!(losses(&plain), losses(&without), "{rule:?}");
    }
}

#[test]
fn batches_of_a_step_count_as_one_batch() {
    let graph = network(false);
    let [whole, parts] = [(1, BATCH), (4, BATCH / 4)]
        .map(|(accumulate, batch)| run(&graph, &Recipe { accumulate, ..recipe(None, 1) }, batch).unwrap().1);
    assert_eq!(whole.steps.len(), parts.steps.len());
    for (whole, parts) in whole.steps.iter().zip(&parts.steps) {
        assert_eq!((whole.images, parts.images), (BATCH, BATCH));
        assert!((whole.loss.total - parts.loss.total).abs() < 1e-4, "{whole:?} {parts:?}");
        assert_eq!(whole.loss.hits, parts.loss.hits);
    }
    let (whole, parts) = (&whole.values[0], &parts.values[0]);
    let start: Vec<f32> = fewbits_graph::tape::Leaves::new(&graph, &Default::default()).values;
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
    assert!(distance(whole, parts) < 1e-4 * distance(whole, &start), "the same step");
}

#[test]
fn divergence_names_the_first_tensor() {
    for (method, norms) in [(None, false), (None, true), (Some(Method::Lsq), true)] {
        for layer in ["conv1", "conv2", "conv3"] {
            let mut graph = network(norms);
            let weight = graph.constants.get_mut(&format!("{layer}.weight")).unwrap();
            let huge = weight.as_f32().unwrap().iter().map(|w| 3e38 * w.abs().min(1.0)).collect();
            *weight = Arc::new(Tensor::f32(&weight.dims, huge));
            match run(&graph, &recipe(method.map(goal), 1), BATCH) {
                Err(TrainError::NotFinite { step: 0, tensor, .. }) => assert_eq!(tensor, layer, "{method:?} {norms}"),
                other => panic!("{method:?} {layer}: {:?}", other.map(|(outcome, _)| outcome.best)),
            }
        }
    }
}
