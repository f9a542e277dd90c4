//! Whole training steps against PyTorch: ten of them on a small network, float and with quantizers laid over it.
//!
//! The numbers are made by `golden/trajectories.py`, in double precision and from formulas written out there. What differs is
//! rounding of f32, and what follows when an element falls on the other side of a threshold for it.

use fewbits_graph::{
    DType, Graph, Node, Op, Tensor, ValueInfo,
    op::CANONICAL_OPSET,
    ops::{self, window::Window},
    tape::{Config, Kind, Laid, Leaves, Quantizer, Statistics, Tape, quantizer_leaf},
};
use fewbits_kernels::Threads;
use fewbits_train::{
    loss::Objective,
    optimizer::{Group, Optimizer, Rule},
    quantizers::{Lsq, Offset, init::Start},
};
use safetensors::SafeTensors;
use std::{collections::BTreeMap, sync::Arc};

/// PyTorch in single precision is up to 4e-6 away from the golden numbers, and the tape as far.
const FLOAT: f64 = 2e-5;
/// PyTorch in single precision is up to 3e-5 away. A single element on the other side of a threshold costs some 1e-3, so
/// that roundings must be the same ones too.
const QUANTIZED: f64 = 1e-4;
const BITS: u8 = 4;
/// Elements in each image of the tensors that have quantizers.
const ACTIVATIONS: [(&str, usize); 5] =
    [("relu1", 1152), ("relu2", 1152), ("clip3", 1152), ("relu4", 576), ("flatten", 16)];
const WEIGHTS: [&str; 6] = ["conv1", "conv2", "conv3", "conv4", "conv5", "linear"];

struct Golden(SafeTensors<'static>);

impl Golden {
    fn new() -> Self {
        Golden(SafeTensors::deserialize(include_bytes!("golden/trajectories.safetensors")).unwrap())
    }

    fn tensor(&self, name: &str) -> Tensor {
        let view = self.0.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let numbers = view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Tensor::f32(view.shape(), numbers)
    }

    fn numbers(&self, name: &str) -> Vec<f32> {
        self.tensor(name).as_f32().unwrap().to_vec()
    }
}

/// The network of `golden/trajectories.py`; nodes and their outputs have the same name.
fn network(golden: &Golden) -> Graph {
    let value = |name: &str| ValueInfo { name: name.into(), dtype: DType::F32, dims: None };
    let mut graph = Graph { opset: CANONICAL_OPSET, ..Graph::default() };
    graph.inputs = vec![value("image")];
    graph.outputs = vec![value("linear")];
    let mut node = |name: &str, op: Op, inputs: &[&str]| {
        let inputs = inputs.iter().map(|input| input.to_string()).collect();
        graph.nodes.push(Node { name: name.into(), op, inputs, outputs: vec![name.into()] });
    };
    let conv = |kernel, stride, group| {
        let window = Window::square(kernel, stride, kernel / 2);
        Op::from(ops::Conv { window, group })
    };
    let bn = || Op::from(ops::BatchNormalization { epsilon: 1e-5, momentum: 0.9 });
    node("conv1", conv(3, 1, 1), &["image", "conv1.weight"]);
    node("bn1", bn(), &["conv1", "bn1.scale", "bn1.bias", "bn1.mean", "bn1.variance"]);
    node("relu1", ops::Relu {}.into(), &["bn1"]);
    node("conv2", conv(3, 1, 1), &["relu1", "conv2.weight", "conv2.bias"]);
    node("bn2", bn(), &["conv2", "bn2.scale", "bn2.bias", "bn2.mean", "bn2.variance"]);
    node("add", ops::Add.into(), &["bn2", "relu1"]);
    node("relu2", ops::Relu {}.into(), &["add"]);
    node("conv3", conv(3, 1, 8), &["relu2", "conv3.weight"]);
    node("bn3", bn(), &["conv3", "bn3.scale", "bn3.bias", "bn3.mean", "bn3.variance"]);
    node("clip3", ops::Clip.into(), &["bn3", "low", "high"]);
    node("conv4", conv(3, 2, 1), &["clip3", "conv4.weight"]);
    node("bn4", bn(), &["conv4", "bn4.scale", "bn4.bias", "bn4.mean", "bn4.variance"]);
    node("relu4", ops::Relu {}.into(), &["bn4"]);
    node("conv5", conv(1, 1, 1), &["relu4", "conv5.weight", "conv5.bias"]);
    node("relu5", ops::Relu {}.into(), &["conv5"]);
    node("pool", ops::GlobalAveragePool.into(), &["relu5"]);
    node("flatten", ops::Flatten { axis: 1 }.into(), &["pool"]);
    let gemm = ops::Gemm { trans_b: true, ..ops::Gemm::default() };
    node("linear", gemm.into(), &["flatten", "linear.weight", "linear.bias"]);
    for (name, bound) in [("low", 0.0), ("high", 1.5)] {
        graph.constants.insert(name.into(), Arc::new(Tensor::f32(&[], vec![bound])));
    }
    for name in graph.nodes.iter().flat_map(Node::present_inputs).map(String::from).collect::<Vec<_>>() {
        let parameter = [".weight", ".bias", ".scale", ".mean", ".variance"].iter().any(|end| name.ends_with(end));
        if parameter {
            graph.constants.insert(name.clone(), Arc::new(golden.tensor(&name)));
        }
    }
    graph.sort().unwrap();
    graph
}

fn lay(graph: &Graph, offsets: bool) -> BTreeMap<String, Laid> {
    let mut all = BTreeMap::new();
    let mut add = |name: &str, quantizer: Lsq, groups: usize| {
        let quantizer: Arc<dyn Quantizer> = Arc::new(quantizer);
        all.insert(name.to_string(), Laid { quantizer, groups, axis: 0 });
    };
    for (name, count) in ACTIVATIONS {
        add(name, Lsq::symmetric(BITS, false, count, Start::Lsq), 1);
    }
    for layer in WEIGHTS {
        let name = format!("{layer}.weight");
        let dims = &graph.constants[&name].dims;
        let count = dims[1..].iter().product();
        add(&name, Lsq::symmetric(BITS, true, count, Start::Lsq), dims[0]);
    }
    if offsets {
        for (name, count, signed) in [("image", 432, false), ("bn2", 1152, true)] {
            add(name, Lsq::with_offset(BITS, signed, Offset::Learned, false, count, Start::Mse), 1);
        }
    }
    all
}

/// `Err` unless `found` is `expected`, up to `tolerance` times the length of `expected − origin` and f32's rounding of `expected`.
fn compare(name: &str, found: &[f32], expected: &[f32], origin: &[f32], tolerance: f64) -> Result<(), String> {
    let distance = |a: &[f32], b: &[f32]| {
        assert_eq!(a.len(), b.len(), "{name}");
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
    };
    let (error, length) = (distance(found, expected), distance(expected, origin));
    let rounding = 1e-6 * distance(expected, &vec![0.0; expected.len()]) + 1e-7;
    if error <= tolerance * length + rounding { Ok(()) } else { Err(format!("{name}: {:.2e}", error / length)) }
}

/// Runs the steps of `case`, and compares losses (relative), first gradients (relative to their length), and all that was
/// learned (relative to how far it moved).
fn follow(case: &str, quantizers: bool, config: Config, tolerance: f64) {
    let golden = Golden::new();
    let graph = network(&golden);
    let laid = if quantizers { lay(&graph, case == "offsets") } else { BTreeMap::new() };
    let mut leaves = Leaves::new(&graph, &laid);
    for name in laid.keys() {
        let name = quantizer_leaf(name);
        leaves.get_mut(&name).unwrap().copy_from_slice(&golden.numbers(&format!("{case}.start.{name}")));
    }
    let start = leaves.clone();
    let (images, labels) = (golden.tensor("images"), golden.numbers("labels"));
    let labels: Vec<usize> = labels.iter().map(|label| *label as usize).collect();
    let inputs = [images.as_f32().unwrap()];
    let threads = Threads::new(2);
    let config = Config { quantizers: laid, ..config };
    let mut tape = Tape::compile(&graph, &leaves, std::slice::from_ref(&images.dims), &config).unwrap();
    let group = |leaf: &fewbits_graph::tape::Leaf| Group {
        range: leaf.range.clone(),
        learning_rate: 1.0,
        weight_decay: if leaf.kind == Kind::Weight { 1e-4 } else { 0.0 },
    };
    let groups = leaves.parameters.iter().map(group).collect();
    let mut optimizer = Optimizer::new(Rule::Sgd { momentum: 0.9, nesterov: false }, groups, leaves.values.len());
    let mut gradients = vec![f32::NAN; leaves.values.len()];
    let mut wrong = Vec::new();
    for (step, expected) in golden.numbers(&format!("{case}.losses")).into_iter().enumerate() {
        tape.forward(&mut leaves, &inputs, &threads);
        let logits = tape.output(0).to_vec();
        let mut gradient = vec![0.0; logits.len()];
        let loss = Objective::default().evaluate(&logits, &labels, None, &mut gradient).unwrap().total;
        tape.backward(&leaves, &inputs, &[&gradient], &mut gradients, &threads);
        if (loss / f64::from(expected) - 1.0).abs() > tolerance {
            wrong.push(format!("loss of step {step}: {loss} for {expected}"));
        }
        if step == 0 {
            for leaf in &leaves.parameters {
                let expected = golden.numbers(&format!("{case}.gradient.{}", leaf.name));
                let zero = vec![0.0; expected.len()];
                let name = format!("gradient of {}", leaf.name);
                wrong.extend(compare(&name, &gradients[leaf.range.clone()], &expected, &zero, tolerance).err());
            }
        }
        optimizer.step(0.05, &mut leaves.values, &gradients, &threads);
    }
    let numbers =
        [(&leaves.parameters, &leaves.values, &start.values), (&leaves.running, &leaves.statistics, &start.statistics)];
    for (list, values, start) in numbers {
        for leaf in list {
            let expected = golden.numbers(&format!("{case}.end.{}", leaf.name));
            let range = leaf.range.clone();
            wrong.extend(compare(&leaf.name, &values[range.clone()], &expected, &start[range], tolerance).err());
        }
    }
    assert!(wrong.is_empty(), "{case}:\n{}", wrong.join("\n"));
}

#[test]
fn float_steps_equal_pytorch() {
    follow("float", false, Config::default(), FLOAT);
}

#[test]
fn lsq_steps_equal_pytorch() {
    follow("lsq", true, Config::default(), QUANTIZED);
}

#[test]
fn offsets_of_inputs_with_both_signs_equal_pytorch() {
    follow("offsets", true, Config::default(), QUANTIZED);
}

#[test]
fn quantizers_on_folded_weights_equal_pytorch() {
    follow("folded", true, Config { fold: true, ..Config::default() }, QUANTIZED);
}

#[test]
fn folding_with_statistics_of_the_batch_changes_nothing_where_nothing_is_rounded() {
    follow("float", false, Config { fold: true, fold_batch: true, ..Config::default() }, FLOAT);
}

#[test]
fn frozen_statistics_equal_pytorch() {
    follow("frozen", true, Config { fold: true, statistics: Statistics::Running, ..Config::default() }, QUANTIZED);
}

#[test]
fn computing_layers_again_changes_nothing_but_memory() {
    let recompute = Config { recompute: true, ..Config::default() };
    follow("float", false, recompute.clone(), FLOAT);
    follow("lsq", true, recompute.clone(), QUANTIZED);
    follow("folded", true, Config { fold: true, ..recompute.clone() }, QUANTIZED);
    let graph = fewbits_zoo::find("resnet20").unwrap().build(&fewbits_zoo::Options::default()).unwrap();
    let leaves = Leaves::new(&graph, &BTreeMap::new());
    let bytes = |config: &Config| Tape::compile(&graph, &leaves, &[vec![64, 3, 32, 32]], config).unwrap().bytes();
    let (kept, again) = (bytes(&Config::default()), bytes(&recompute));
    assert!(10 * again < 8 * kept, "{again} of {kept} bytes");
}
