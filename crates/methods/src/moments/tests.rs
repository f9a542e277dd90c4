use super::*;
use crate::{
    BlockMethod,
    aciq::Aciq,
    comq::Comq,
    layers,
    omse::Omse,
    progress::Silent,
    seq_mse::SeqMse,
    testing,
    walk::walk_through,
    zero_point::weights::{Shift, WeightShift},
};
use fewbits_graph::{Attrs, DType, Graph, Node, Op, Tensor, ValueInfo};

/// What a layer's rounded weights add to its error, by its moments, is what the executor measures.
#[test]
fn moments_give_the_error_that_the_executor_measures() {
    let network = testing::residual();
    let samples = testing::images(9, &network.shape);
    let learned: Vec<_> = samples.iter().enumerate().filter(|(i, _)| !is_held(*i)).collect();
    let threads = Threads::new(2);
    let mut walk = Walk::new(network.ground(), &samples, usize::MAX, &threads).unwrap();
    let (mut checked, mut windows) = (0, 0);
    while let Some(block) = walk.block().cloned() {
        for layer in &block.layers {
            let moments = Moments::of(&walk, &network.draft, layer).unwrap().unwrap();
            if moments.fit[0].rows < learned.len() * moments.shape.positions {
                continue; // Not every position is looked at.
            }
            let weight = network.graph.constant(&layer.weight).unwrap();
            let rows = moments.shape.rows(weight.as_f32().unwrap());
            let rounded = rounded_constant(&layer.weight, weight, &network.draft.grids);
            let rounded = moments.shape.rows(rounded.as_f32().unwrap());
            let outputs = |mode: Mode<'_>| -> Vec<Vec<f32>> {
                let output = |(_, sample): &(usize, &Vec<_>)| {
                    testing::tensors(&network.graph, mode, sample, &[&layer.output])[0].as_f32().unwrap().to_vec()
                };
                learned.iter().map(output).collect()
            };
            let mut grids = network.draft.grids.clone();
            grids.0.remove(&layer.output);
            let (float, quantized) = (outputs(Mode::Float), outputs(Mode::FakeQuant(&grids)));
            grids.0.remove(&layer.weight);
            let rounded_inputs = outputs(Mode::FakeQuant(&grids));
            let (k, channels) = (moments.shape.inputs, moments.shape.channels());
            // What is outside of the grid behind the layer is not noticed.
            let behind = network.graph.nodes.iter().find(|node| node.inputs.contains(&layer.output));
            let clips = |node: &&fewbits_graph::Node| {
                matches!(node.op, fewbits_graph::Op::Relu(_) | fewbits_graph::Op::Clip(_))
            };
            let seen = behind.filter(clips).map_or(layer.output.as_str(), |node| node.output());
            let range = network.draft.grids.params(seen).map(|params| params.range(0));
            windows += usize::from(range.is_some());
            let (low, high) = range.unwrap_or((f32::MIN, f32::MAX));
            // Mean and variance of the error of a channel.
            let error = |outputs: &[Vec<f32>], c: usize| {
                let samples = float.iter().zip(&rounded_inputs).zip(outputs);
                let pairs = samples.flat_map(|((a, b), y)| {
                    let places = a.len() / channels;
                    let noticed = move |i: usize| b[i].clamp(low, high) - a[i].clamp(low, high) + (y[i] - b[i]);
                    (0..places).map(move |p| f64::from(noticed(c * places + p)))
                });
                let all: Vec<f64> = pairs.collect();
                let mean = all.iter().sum::<f64>() / all.len() as f64;
                (mean, all.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / all.len() as f64)
            };
            for c in 0..channels {
                let difference: Vec<f32> = (0..k).map(|i| rounded[c * k + i] - rows[c * k + i]).collect();
                let (group, output) = (&moments.fit[c / moments.shape.outputs], c % moments.shape.outputs);
                let ((mean, variance), (_, before)) = (error(&quantized, c), error(&rounded_inputs, c));
                let (shift, added) = (group.shift(output, &difference), group.error(output, &difference));
                assert!((shift - mean).abs() < 1e-3 * (mean.abs() + 1.0), "{}: {shift} for {mean}", layer.weight);
                let close = (added - (variance - before)).abs() < 1e-3 * (variance + before) + 1e-6;
                assert!(close, "{}: {added} for {variance} - {before}", layer.weight);
                checked += 1;
            }
        }
        walk.advance(&network.draft).unwrap();
    }
    assert!(checked > 100 && windows > 2);
}

/// Without a bias the mean error counts in full.
#[test]
fn moments_about_zero_hold_the_mean_error_too() {
    let centred = Group {
        gram: vec![2.0, 0.5, 0.5, 1.0],
        cross: vec![0.3, -0.2],
        mean: vec![1.5, -2.0],
        mean_error: vec![0.7],
        rows: 10,
    };
    let v = [0.4, -0.3];
    // Var + (mean of v·x̂ + mean of e)², less the part of e alone.
    let expected = centred.error(0, &v) + centred.shift(0, &v).powi(2) - 0.7f64.powi(2);
    assert!((centred.about_zero().error(0, &v) - expected).abs() < 1e-6);
    assert_eq!(centred.sums(), [2.5, 1.5]);
}

/// A Gemm may have one bias for all outputs.
#[test]
fn one_bias_stands_for_all_channels() {
    let network = testing::residual();
    let layer = crate::layers(&network.graph, &network.placement).pop().unwrap();
    let bias = layer.bias.clone().unwrap();
    let channels = network.graph.constant(&bias).unwrap().dims[0];
    let mut graph = network.graph.clone();
    graph.constants.insert(bias, Arc::new(fewbits_graph::Tensor::f32(&[1], vec![0.25])));
    let ground = crate::Ground { float: &graph, ..network.ground() };
    let mut y = vec![1.0; 2 * channels];
    Window::of(&ground, &network.draft, &layer, channels).see(0, channels, &mut y);
    assert!(y.iter().all(|y| *y == 1.25), "{y:?}");
}

#[test]
fn layers_of_very_many_inputs_have_no_moments() {
    let network = testing::residual();
    let layer = layers(&network.graph, &network.placement).remove(0);
    let input = &network.ground().facts[&layer.input].dims;
    let shape = |inputs, outputs| {
        let mut shape = Shape::of(&network.graph, &layer, input).unwrap();
        (shape.groups, shape.inputs, shape.outputs) = (1, inputs, outputs);
        shape
    };
    // VGG-16's first fully connected layer; ResNet-50's widest convolution; VGG-16's second one.
    assert!(bytes(&shape(25_088, 4096)) > MEMORY);
    assert!(bytes(&shape(4608, 512)) < MEMORY && bytes(&shape(4096, 4096)) < MEMORY);
}

/// Methods that search by moments say which layers they left as they were.
#[test]
fn layers_without_moments_are_named() {
    let value = |name: &str| ValueInfo { name: name.into(), dtype: DType::F32, dims: None };
    let mut graph = Graph { inputs: vec![value("x")], outputs: vec![value("y")], opset: 17, ..Graph::default() };
    // The second has so many inputs that the sums of their products would not fit in memory.
    for (weight, dims, input, output) in [("u", [4, 9000], "x", "a"), ("v", [9000, 2], "a", "y")] {
        let numbers = (0..dims[0] * dims[1]).map(|i| (i as f32 * 0.37).sin()).collect();
        graph.constants.insert(weight.into(), Arc::new(Tensor::f32(&dims, numbers)));
        graph.nodes.push(Node {
            name: output.into(),
            op: Op::from_attrs("MatMul", &Attrs::default()).unwrap(),
            inputs: vec![input.into(), weight.into()],
            outputs: vec![output.into()],
        });
    }
    let network = testing::quantized(&graph, &[1, 4], 4, 8);
    let (samples, threads) = (testing::images(9, &network.shape), Threads::new(1));
    let methods: [Box<dyn BlockMethod>; 5] = [
        Box::new(Aciq::default()),
        Box::new(Omse::default()),
        Box::new(SeqMse::default()),
        Box::new(Comq::default()),
        Box::new(WeightShift::new(Shift::Window, false)),
    ];
    for method in methods {
        let mut walk = Walk::new(network.ground(), &samples, usize::MAX, &threads).unwrap();
        let mut draft = network.draft.clone();
        walk_through::<MethodError>(&mut walk, &mut draft, &[&*method], None, &Silent, |_, _| Ok(())).unwrap();
        let last = method.findings().pop().unwrap_or_default();
        assert!(last.ends_with("size that it takes: v"), "{}: {last}", method.name());
    }
}
