//! Traces against closed forms, and against second differences of the loss in every single weight.

use super::*;
use crate::{Metric, testing};
use fewbits_graph::{
    DType, Graph, Node, Op, ValueInfo,
    exec::{Executor, Mode},
    ops,
};
use fewbits_methods::progress::Silent;
use std::sync::Arc;

/// Small numbers that look random.
fn numbers(seed: u64, dims: &[usize]) -> Tensor {
    let mut random = Random::new(seed);
    Tensor::f32(dims, (0..dims.iter().product()).map(|_| random.uniform() as f32 - 0.5).collect())
}

/// From an image, node by node: name, operator, constants.
fn network(nodes: Vec<(&str, Op, Vec<Tensor>)>) -> testing::Network {
    let mut graph = Graph { opset: 17, ..Graph::default() };
    let info = |name: &str| ValueInfo { name: name.into(), dtype: DType::F32, dims: None };
    graph.inputs.push(info("image"));
    let mut last = String::from("image");
    for (name, op, constants) in nodes {
        let mut inputs = vec![last];
        for (i, tensor) in constants.into_iter().enumerate() {
            inputs.push(format!("{name}.{i}"));
            graph.constants.insert(format!("{name}.{i}"), Arc::new(tensor));
        }
        graph.nodes.push(Node { name: name.into(), op, inputs, outputs: vec![name.into()] });
        last = name.into();
    }
    graph.outputs.push(info(&last));
    testing::prepared(&graph)
}

fn conv(name: &str, dims: [usize; 4]) -> (&str, Op, Vec<Tensor>) {
    let seed = dims.iter().sum::<usize>() as u64;
    (name, Op::Conv(ops::Conv { window: Default::default(), group: 1 }), vec![numbers(seed, &dims)])
}

/// Pooled features to ten classes.
fn classifier(features: usize) -> [(&'static str, Op, Vec<Tensor>); 3] {
    let gemm = Op::Gemm(ops::Gemm { trans_b: true, ..Default::default() });
    [
        ("pool", Op::GlobalAveragePool(ops::GlobalAveragePool), vec![]),
        ("flat", Op::Flatten(ops::Flatten { axis: 1 }), vec![]),
        ("classes", gemm, vec![numbers(3, &[10, features]), numbers(4, &[10])]),
    ]
}

fn estimated(network: &testing::Network, images: &[Vec<Tensor>], config: &Config) -> Traces {
    traces(network.ground(), &images.to_vec(), config, &Threads::new(2), &Silent).unwrap()
}

/// Each trace within three standard errors of what it should be, and those at most two percent of it.
fn check(found: &Traces, expected: &[f64]) {
    assert_eq!(found.layers.len(), expected.len());
    for (found, &expected) in found.layers.iter().zip(expected) {
        let error = (found.trace - expected).abs();
        assert!(error <= 3.0 * found.standard_error + 1e-3 * expected, "{found:?}, expected {expected}");
        assert!(found.standard_error < 0.02 * expected, "{found:?}, expected {expected}");
    }
}

fn accurate(batch: usize) -> Config {
    Config { probes: 1000, tolerance: 0.0, batch, seed: 1 }
}

fn outputs(network: &testing::Network, images: &[Vec<Tensor>], tensor: &str) -> Vec<Vec<f32>> {
    let mut graph = network.graph.clone();
    graph.outputs = vec![ValueInfo { name: tensor.into(), dtype: DType::F32, dims: None }];
    let threads = Threads::new(1);
    let mut executor = Executor::new(&graph, Mode::Float, &threads);
    images.iter().map(|image| executor.run(image).unwrap()[0].as_f32().unwrap().to_vec()).collect()
}

#[test]
fn one_layer_under_squared_errors_has_the_squares_of_its_inputs() {
    let network = network(vec![conv("layer", [5, 3, 1, 1])]);
    let images = testing::images(8);
    let found = estimated(&network, &images, &accurate(4));
    // Of a channel's mean square, in units of its variance: 2/(5·places) · Σ x² for each output channel.
    let squares: f64 = images.iter().flat_map(|i| i[0].as_f32().unwrap()).map(|x| f64::from(*x).powi(2)).sum();
    let made = outputs(&network, &images, "layer");
    let places = 256 * images.len();
    let of_channel = |c: usize| {
        let values = || made.iter().flat_map(move |o| &o[c * 256..][..256]).map(|x| f64::from(*x));
        let mean = values().sum::<f64>() / places as f64;
        let variance = values().map(|x| (x - mean).powi(2)).sum::<f64>() / places as f64;
        2.0 / (5 * places) as f64 * squares / variance
    };
    check(&found, &[(0..5).map(of_channel).sum()]);
}

#[test]
fn one_layer_under_classes_has_their_variance_times_the_squares_of_its_inputs() {
    let network = network(classifier(3).into());
    let images = testing::images(8);
    let found = estimated(&network, &images, &accurate(1));
    let (features, logits) = (outputs(&network, &images, "flat"), outputs(&network, &images, "classes"));
    let of_image = |(x, z): (&Vec<f32>, &Vec<f32>)| {
        let sum: f64 = z.iter().map(|z| f64::from(*z).exp()).sum();
        let variance: f64 = z.iter().map(|z| f64::from(*z).exp() / sum).map(|p| p * (1.0 - p)).sum();
        variance * x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>()
    };
    check(&found, &[features.iter().zip(&logits).map(of_image).sum::<f64>() / 8.0]);
}

#[test]
fn every_block_has_the_second_differences_of_its_weights() {
    let sigmoid = |name| (name, Op::Sigmoid(ops::Sigmoid {}), vec![]);
    let mut nodes = vec![conv("a", [4, 3, 3, 3]), sigmoid("b"), conv("c", [3, 4, 1, 1]), sigmoid("d")];
    nodes.extend(classifier(3));
    let network = network(nodes);
    let images = testing::images(4);
    let found = estimated(&network, &images, &Config { probes: 1000, tolerance: 0.01, batch: 2, ..Config::default() });
    // The divergence is 0 at the weights themselves: L″ ≈ (L(w + e) + L(w − e)) / e².
    let float = outputs(&network, &images, "classes");
    let loss = |weight: &str, i: usize, step: f32| {
        let mut changed = testing::prepared(&network.graph);
        let tensor = &network.graph.constants[weight];
        let mut values = tensor.as_f32().unwrap().to_vec();
        values[i] += step;
        changed.graph.constants.insert(weight.into(), Arc::new(Tensor::f32(&tensor.dims, values)));
        let row = |values: &Vec<f32>| Tensor::f32(&[1, 10], values.clone());
        let pairs = float.iter().zip(outputs(&changed, &images, "classes"));
        pairs.map(|(a, b)| Metric::Kl.damage(&row(a), &row(&b)).unwrap()).sum::<f64>() / 4.0
    };
    let exact = |trace: &Trace| {
        let step = 0.02f32;
        let both = (0..trace.elements as usize).map(|i| loss(&trace.weight, i, step) + loss(&trace.weight, i, -step));
        both.sum::<f64>() / f64::from(step).powi(2)
    };
    check(&found, &found.layers.iter().map(exact).collect::<Vec<_>>());
}

#[test]
fn sensitivities_are_mean_traces_times_squared_changes() {
    let (network, images) = (testing::network(), testing::images(4));
    let config = Config { probes: 5, batch: 2, ..Config::default() };
    let found = estimated(&network, &images, &config);
    assert_eq!(found.layers.len(), network.layers().len());
    let threads = Threads::new(2);
    let table =
        found.sensitivity(network.ground(), Some(&network.grids), &[2, 4, 8], Rounding::default(), &threads).unwrap();
    for ((row, trace), layer) in table.layers.iter().zip(&found.layers).zip(network.layers()) {
        assert_eq!((&row.weight, &row.weight, row.input_bits), (&trace.weight, &layer.weight, 8));
        assert!(trace.trace > 0.0, "{trace:?}");
        let float = &network.graph.constants[&row.weight];
        let rounded = Rounding::default().apply(&row.weight, float, layer.axis, 4).unwrap();
        let squares = Metric::Mse.damage(&flat(float), &flat(&rounded)).unwrap();
        assert!((row.damage[1] / (trace.trace * squares) - 1.0).abs() < 1e-4, "{}", row.weight);
        assert!(row.damage.is_sorted_by(|a, b| a > b));
    }
}

/// All elements as one image.
fn flat(tensor: &Tensor) -> Tensor {
    Tensor::f32(&[tensor.len()], tensor.as_f32().unwrap().to_vec())
}

#[test]
fn threads_change_nothing() {
    let (network, images) = (testing::network(), testing::images(5));
    let of = |threads| {
        let config = Config { probes: 2, batch: 3, ..Config::default() };
        traces(network.ground(), &images, &config, &Threads::new(threads), &Silent).unwrap()
    };
    assert_eq!(of(1), of(3));
}

#[test]
fn what_has_no_derivative_is_named() {
    let mut nodes = vec![conv("a", [4, 3, 3, 3]), ("steps", Op::Floor(ops::Floor), vec![])];
    nodes.extend(classifier(4));
    let network = network(nodes);
    let error = |images: Vec<Vec<Tensor>>| {
        traces(network.ground(), &images, &Config::default(), &Threads::new(1), &Silent).unwrap_err()
    };
    assert!(error(testing::images(2)).to_string().contains("`steps`"));
    assert!(error(vec![]).hint().is_some());
}
