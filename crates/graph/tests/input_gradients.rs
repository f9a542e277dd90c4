//! Gradients of a graph's input, and of its leaves where outputs are read on inside the graph, against finite differences.

use fewbits_graph::{
    DType, Graph, Node, Op, Tensor, ValueInfo,
    op::CANONICAL_OPSET,
    ops::{self, window::Window},
    tape::{Config, Leaves, Statistics, Tape},
};
use fewbits_kernels::Threads;
use std::{collections::BTreeMap, sync::Arc};

const SHAPE: [usize; 4] = [2, 3, 6, 5];
/// Conv output, sum, pooled (one position, so that all memory orders are the same), last, and one of them once more.
const OUTPUTS: [&str; 6] = ["conv1", "sum", "pool", "squashed", "linear", "pool"];

fn wave(len: usize, phase: f32) -> Vec<f32> {
    (0..len).map(|i| (i as f32 * 1.37 + phase).sin()).collect()
}

/// Smooth everywhere; a skip connection begins at the input itself.
fn network() -> Graph {
    let value = |name: &str| ValueInfo { name: name.into(), dtype: DType::F32, dims: None };
    let mut graph = Graph { opset: CANONICAL_OPSET, ..Graph::default() };
    graph.inputs = vec![value("image")];
    graph.outputs = OUTPUTS.iter().map(|name| value(name)).collect();
    let mut node = |name: &str, op: Op, inputs: &[&str]| {
        let inputs = inputs.iter().map(|input| input.to_string()).collect();
        graph.nodes.push(Node { name: name.into(), op, inputs, outputs: vec![name.into()] });
    };
    let conv = |stride| Op::from(ops::Conv { window: Window::square(3, stride, 1), group: 1 });
    node("conv1", conv(1), &["image", "conv1.weight"]);
    let bn = ops::BatchNormalization { epsilon: 1e-5, momentum: 0.9 };
    node("bn1", bn.into(), &["conv1", "scale", "bias", "mean", "variance"]);
    node("sigmoid1", (ops::Sigmoid {}).into(), &["bn1"]);
    node("sum", ops::Add.into(), &["image", "sigmoid1"]);
    node("conv2", conv(2), &["sum", "conv2.weight"]);
    node("pool", ops::GlobalAveragePool.into(), &["conv2"]);
    node("squashed", (ops::Sigmoid {}).into(), &["pool"]);
    node("flat", ops::Flatten { axis: 1 }.into(), &["squashed"]);
    let gemm = ops::Gemm { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: true };
    node("linear", gemm.into(), &["flat", "linear.weight"]);
    let mut constant = |name: &str, dims: &[usize], values: Vec<f32>| {
        graph.constants.insert(name.into(), Arc::new(Tensor::f32(dims, values)));
    };
    constant("conv1.weight", &[3, 3, 3, 3], wave(81, 0.3));
    constant("scale", &[3], vec![0.7, -1.1, 0.4]);
    constant("bias", &[3], vec![0.1, 0.2, -0.3]);
    constant("mean", &[3], vec![0.3, -0.2, 0.1]);
    constant("variance", &[3], vec![0.5, 1.5, 0.8]);
    constant("conv2.weight", &[4, 3, 3, 3], wave(108, 1.1));
    constant("linear.weight", &[5, 4], wave(20, 0.8));
    graph
}

struct Trial {
    tape: Tape,
    leaves: Leaves,
    weights: Vec<Vec<f32>>,
    threads: Threads,
}

impl Trial {
    fn new(config: &Config, threads: usize) -> Self {
        let graph = network();
        let mut leaves = Leaves::new(&graph, &BTreeMap::new());
        let mut tape = Tape::compile(&graph, &leaves, &[SHAPE.to_vec()], config).unwrap();
        let threads = Threads::new(threads);
        tape.forward(&mut leaves, &[&image()], &threads);
        let weights = (0..OUTPUTS.len()).map(|i| wave(tape.output(i).len(), i as f32)).collect();
        Trial { tape, leaves, weights, threads }
    }

    /// `Σ outputs · weights`
    fn loss(&mut self, image: &[f32]) -> f64 {
        self.tape.forward(&mut self.leaves, &[image], &self.threads);
        let weighted = |(i, weights): (usize, &Vec<f32>)| {
            let pairs = self.tape.output(i).iter().zip(weights);
            pairs.map(|(y, w)| f64::from(*y) * f64::from(*w)).sum::<f64>()
        };
        self.weights.iter().enumerate().map(weighted).sum()
    }

    fn backward(&mut self) -> Vec<f32> {
        self.loss(&image());
        let mut gradients = vec![f32::NAN; self.leaves.values.len()];
        let given: Vec<&[f32]> = self.weights.iter().map(Vec::as_slice).collect();
        self.tape.backward(&self.leaves, &[&image()], &given, &mut gradients, &self.threads);
        gradients
    }
}

fn image() -> Vec<f32> {
    wave(SHAPE.iter().product(), 2.0)
}

const STEP: f32 = 1e-2;

fn assert_close(found: f32, [up, down]: [f64; 2], what: &str) {
    let expected = (up - down) / (2.0 * f64::from(STEP));
    assert!((f64::from(found) - expected).abs() < 3e-3 * (1.0 + expected.abs()), "{what}: {found}, not {expected}");
}

#[test]
fn input_gradients_are_those_of_finite_differences() {
    for recompute in [false, true] {
        for statistics in [Statistics::Running, Statistics::Batch] {
            let config = Config { input_gradients: true, recompute, statistics, ..Config::default() };
            let mut trial = Trial::new(&config, 1);
            let leaves = trial.backward();
            assert!(leaves.iter().all(|g| *g == 0.0), "leaves were not asked for");
            let gradient = trial.tape.input_gradient(0).to_vec();
            for i in 0..gradient.len() {
                let at = |trial: &mut Trial, step: f32| {
                    let mut image = image();
                    image[i] += step;
                    trial.loss(&image)
                };
                let both = [at(&mut trial, STEP), at(&mut trial, -STEP)];
                assert_close(gradient[i], both, &format!("pixel {i}, {config:?}"));
            }
            let mut more = Trial::new(&config, 3);
            more.backward();
            assert_eq!(gradient, more.tape.input_gradient(0), "the number of threads changes the result");
        }
    }
}

#[test]
fn leaves_get_their_gradient_through_outputs_that_are_read_on() {
    let mut trial = Trial::new(&Config { statistics: Statistics::Running, ..Config::default() }, 1);
    let gradients = trial.backward();
    assert!(trial.tape.input_gradient(0).is_empty(), "the input's was not asked for");
    for i in (0..gradients.len()).step_by(3) {
        let at = |trial: &mut Trial, step: f32| {
            let before = trial.leaves.values[i];
            trial.leaves.values[i] += step;
            let loss = trial.loss(&image());
            trial.leaves.values[i] = before;
            loss
        };
        let both = [at(&mut trial, STEP), at(&mut trial, -STEP)];
        assert_close(gradients[i], both, &format!("leaf {i}"));
    }
}
