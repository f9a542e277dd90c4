//! On the zoo's demo network with made-up running statistics.

use super::*;
use crate::progress::Silent;
use fewbits_graph::exec::Mode;
use std::sync::Arc;

const SHAPE: [usize; 4] = [1, 3, 16, 16];

/// The demo network, its running statistics being those of made-up images.
fn network() -> Graph {
    let options = fewbits_zoo::Options { input: Some([3, 16, 16]), classes: Some(10), ..Default::default() };
    let mut graph = fewbits_zoo::find("demo").unwrap().build(&options).unwrap();
    let statistics: Vec<[String; 2]> = graph
        .nodes
        .iter()
        .filter(|node| matches!(node.op, Op::BatchNormalization(_)))
        .map(|node| [node.inputs[3].clone(), node.inputs[4].clone()])
        .collect();
    for (layer, [mean, variance]) in statistics.iter().enumerate() {
        for (name, base, swing) in [(mean, 0.1, 0.4), (variance, 1.0, 0.6)] {
            let dims = graph.constants[name].dims.clone();
            let value = |c: usize| base + swing * ((c * 3 + layer) as f32 * 0.9).sin();
            let values = (0..dims.iter().product()).map(value).collect();
            graph.constants.insert(name.clone(), Arc::new(Tensor::f32(&dims, values)));
        }
    }
    graph
}

#[test]
fn the_gradient_is_that_of_finite_differences() {
    let mut graph = network();
    // Without kinks, which differences would step over.
    for node in graph.nodes.iter_mut().filter(|node| matches!(node.op, Op::Relu(_) | Op::Clip(_))) {
        node.op = fewbits_graph::ops::Sigmoid {}.into();
        node.inputs.truncate(1);
    }
    let targets = targets(&graph);
    assert!(targets.len() > 3, "the network has normalizations");
    let shape = [2, 3, 16, 16];
    let mut matching = Matching::new(&graph, &targets, &shape).unwrap();
    let threads = Threads::new(1);
    let config = Config { smooth: false, ..Config::default() };
    let images: Vec<f32> = (0..2).flat_map(|i| start(&SHAPE, &config, i)).collect();
    let mut gradient = vec![0.0; images.len()];
    let mut unused = gradient.clone();
    matching.gradient(&images, &mut gradient, &threads);
    let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    for direction in 0..4 {
        let mut random = Random::keyed(&[9, direction]);
        let along: Vec<f32> = images.iter().map(|_| random.normal() as f32).collect();
        let mut at = |step: f32| {
            let moved: Vec<f32> = images.iter().zip(&along).map(|(x, d)| x + step * d).collect();
            2.0 * matching.gradient(&moved, &mut unused, &threads)
        };
        let expected = (at(1e-2) - at(-1e-2)) / 2e-2;
        let found: f64 = gradient.iter().zip(&along).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
        // A wrong gradient would be off by its own length in a random direction.
        assert!((found - expected).abs() < 0.01 * norm, "{found}, not {expected}, of {norm}");
    }
}

#[test]
fn images_come_to_match_whatever_the_number_of_threads() {
    let graph = trained(&network());
    let config = Config { images: 3, smooth: false, ..Config::default() };
    let made = |threads| distill(&graph, &SHAPE, &config, &Threads::new(threads), &Silent).unwrap();
    let images = made(2);
    assert_eq!(images, made(1));
    assert_eq!(images.len(), 3);
    let threads = Threads::new(1);
    let targets = targets(&graph);
    let mut matching = Matching::new(&graph, &targets, &SHAPE).unwrap();
    let mut unused = vec![0.0; SHAPE.iter().product()];
    for (i, image) in images.iter().enumerate() {
        let first = matching.gradient(&start(&SHAPE, &config, i as u64), &mut unused, &threads);
        let last = matching.gradient(image[0].as_f32().unwrap(), &mut unused, &threads);
        assert!(last < 0.1 * first, "image {i}: {first} -> {last}");
    }
}

/// `graph` with the running statistics that a few images bring to each normalization, one after the other.
fn trained(graph: &Graph) -> Graph {
    let mut graph = graph.clone();
    let images = crate::testing::images(6, &SHAPE);
    let bns: Vec<_> = graph.nodes.iter().filter(|n| matches!(n.op, Op::BatchNormalization(_))).cloned().collect();
    for bn in bns {
        let x: Vec<Tensor> = images
            .iter()
            .flat_map(|image| crate::testing::tensors(&graph, Mode::Float, image, &[&bn.inputs[0]]))
            .collect();
        let channels = x[0].dims[1];
        let of = |c: usize| {
            let plane = x[0].len() / channels;
            let all: Vec<f32> = x.iter().flat_map(|t| t.as_f32().unwrap()[c * plane..][..plane].to_vec()).collect();
            let mean = all.iter().sum::<f32>() / all.len() as f32;
            (mean, all.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / all.len() as f32)
        };
        let (mean, variance) = (0..channels).map(of).unzip();
        graph.constants.insert(bn.inputs[3].clone(), Arc::new(Tensor::f32(&[channels], mean)));
        graph.constants.insert(bn.inputs[4].clone(), Arc::new(Tensor::f32(&[channels], variance)));
    }
    graph
}

#[test]
fn without_normalizations_it_says_so() {
    let folded = fewbits_graph::passes::prepare(&network()).unwrap().0;
    let config = Config { images: 1, iterations: 20, ..Config::default() };
    let error = distill(&folded, &SHAPE, &config, &Threads::new(1), &Silent).unwrap_err();
    assert!(error.to_string().contains("no BatchNormalization") && error.hint().is_some());
    let plain = Config { plain: true, ..config };
    let images = distill(&folded, &SHAPE, &plain, &Threads::new(1), &Silent).unwrap();
    assert_eq!(images[0][0].dims, SHAPE);
}
