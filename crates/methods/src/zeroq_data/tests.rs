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

/// The distance of images from everything that [`network`] remembers, and classes for two of them.
fn matching(graph: &Graph, images: usize) -> Matching {
    let shape = [images, 3, 16, 16];
    let facts = fewbits_graph::exec::infer(graph, &[SHAPE.to_vec()]).unwrap();
    let (logits, count) = logits(graph, &facts).unwrap();
    assert_eq!(count, 10);
    let classes = (images == 2).then(|| Classes { logits: logits.into(), labels: vec![3, 8], weight: 0.7 });
    let input = Target { tensor: "x".into(), mean: vec![0.1; 3], variance: vec![0.5; 3], epsilon: 0.0 };
    Matching::new(graph, &targets(graph), classes, input, &shape).unwrap()
}

#[test]
fn the_gradient_is_that_of_finite_differences() {
    let mut graph = network();
    // Without kinks, which differences would step over.
    for node in graph.nodes.iter_mut().filter(|node| matches!(node.op, Op::Relu(_) | Op::Clip(_))) {
        node.op = fewbits_graph::ops::Sigmoid {}.into();
        node.inputs.truncate(1);
    }
    assert!(targets(&graph).len() > 3, "the network has normalizations");
    let mut matching = matching(&graph, 2);
    let threads = Threads::new(1);
    let config = Config { smooth: false, ..Config::default() };
    let images: Vec<f32> = (0..2).flat_map(|i| start(&SHAPE, &[Pixels::default(); 3], &config, i)).collect();
    let mut gradient = vec![0.0; images.len()];
    let mut unused = gradient.clone();
    matching.gradient(&images, &mut gradient, &threads);
    let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    for direction in 0..4 {
        let mut random = Random::keyed(&[9, direction]);
        let along: Vec<f32> = images.iter().map(|_| random.normal() as f32).collect();
        let mut at = |step: f32| {
            let moved: Vec<f32> = images.iter().zip(&along).map(|(x, d)| x + step * d).collect();
            matching.gradient(&moved, &mut unused, &threads)
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
    let pixels = vec![Pixels { mean: 0.1, deviation: 0.7, least: -0.9, most: 1.2 }; 3];
    let config = Config { images: 3, smooth: false, class_weight: 0.0, pixels, ..Config::default() };
    let made = |threads| draw(&graph, &SHAPE, &config, &Threads::new(threads), &Silent).unwrap();
    let images = made(2);
    assert_eq!(images, made(1));
    assert_eq!(images.len(), 3);
    let threads = Threads::new(1);
    let mut matching = matching(&graph, 3);
    let mut unused = vec![0.0; 3 * SHAPE.iter().product::<usize>()];
    let begun: Vec<f32> = (0..3).flat_map(|i| start(&SHAPE, &config.pixels, &config, i)).collect();
    let found: Vec<f32> = images.iter().flat_map(|image| image[0].as_f32().unwrap().to_vec()).collect();
    assert!(found.iter().all(|x| (-0.9..=1.2).contains(x)), "pixels keep their limits");
    let first = matching.gradient(&begun, &mut unused, &threads);
    let last = matching.gradient(&found, &mut unused, &threads);
    assert!(last < 0.2 * first, "{first} -> {last}");
}

#[test]
fn classifiers_find_the_classes_that_were_drawn() {
    let graph = trained(&network());
    let made = |class_weight| {
        let config = Config { images: 4, class_weight, ..Config::default() };
        draw(&graph, &SHAPE, &config, &Threads::new(1), &Silent).unwrap()
    };
    let hits = |images: Vec<Vec<Tensor>>| {
        let found = |(i, image): (u64, &Vec<Tensor>)| {
            let logits = crate::testing::tensors(&graph, Mode::Float, image, &[&graph.outputs[0].name]).remove(0);
            let logits = logits.as_f32().unwrap().to_vec();
            let best = (0..10).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
            best == Random::keyed(&[0, i, 1]).below(10)
        };
        (0..).zip(&images).filter(|image| found(*image)).count()
    };
    assert!(hits(made(0.0)) < 4, "without being told, images are of other classes");
    assert_eq!(hits(made(1.0)), 4);
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
    let error = draw(&folded, &SHAPE, &config, &Threads::new(1), &Silent).unwrap_err();
    assert!(error.to_string().contains("no BatchNormalization") && error.hint().is_some());
}
