use super::*;
use crate::{progress::Silent, testing};
use fewbits_graph::{Attrs, DType, Granularity, Graph, Node, Op, QuantParams, Tensor, ValueInfo};
use std::{convert::Infallible, sync::Arc};

#[test]
fn the_vertex_of_a_parabola_is_found() {
    let points = |f: &dyn Fn(f64) -> f64| -> Vec<(f32, f64)> {
        (0..10).map(|i| 2.0 + 2.0 * i as f32 / 9.0).map(|p| (p, f(f64::from(p)))).collect()
    };
    let found = vertex(&points(&|p| 0.3 * (p - 2.7).powi(2) + 5.0)).unwrap();
    assert!((found - 2.7).abs() < 1e-4, "{found}");
    assert_eq!(vertex(&points(&|p| -(p - 3.1).powi(2))), None);
}

/// Of least squares, not of interpolation: numpy.polyfit gives 0.48571 p² − 2.83429 p + 4.56 for these.
#[test]
fn a_parabola_through_scattered_points_is_that_of_least_squares() {
    let points = [(1.0, 2.2), (2.0, 1.0), (3.0, 0.0), (4.0, 1.4), (5.0, 2.4)];
    let found = vertex(&points).unwrap();
    assert!((found - 2.917647).abs() < 1e-5, "{found}");
}

#[test]
fn the_outputs_come_closer_whatever_the_number_of_threads() {
    let network = testing::zoo("demo", 3, 8);
    let samples = testing::images(24, &network.shape);
    let loss = |draft: &Draft, half: Part| -> Result<f64, Infallible> {
        let samples = if half == Part::Fit { &samples[..8] } else { &samples[8..16] };
        Ok(testing::damage(&network, draft, samples))
    };
    let tuned = |threads: usize| {
        let mut draft = network.draft.clone();
        let (config, threads) = (Config { count: 4, ..Config::default() }, Threads::new(threads));
        let Ok(kept) = tune(network.ground(), &mut draft, &config, &threads, &loss, &Silent);
        assert!(kept);
        draft
    };
    let draft = tuned(1);
    assert_eq!(draft, tuned(2));
    let fresh = &samples[16..];
    let (before, after) = (testing::damage(&network, &network.draft, fresh), testing::damage(&network, &draft, fresh));
    assert!(after < 0.7 * before, "{after} instead of {before}");
}

/// x [1, 2, 6, 6] → 1×1 to 4 channels, one of weights 100 times the others', which hardly anything reads → Clip → 1×1 → y.
fn towering() -> Graph {
    let value = |name: &str| ValueInfo { name: name.into(), dtype: DType::F32, dims: None };
    let node = |op: &str, inputs: &[&str], output: &str| Node {
        name: output.into(),
        op: Op::from_attrs(op, &Attrs::default()).unwrap(),
        inputs: inputs.iter().map(|s| s.to_string()).collect(),
        outputs: vec![output.into()],
    };
    let constants = [
        ("w1", Tensor::f32(&[4, 2, 1, 1], vec![0.31, -0.17, 40.0, -33.0, 0.23, 0.37, -0.11, 0.29])),
        ("b1", Tensor::f32(&[4], vec![0.1; 4])),
        ("w2", Tensor::f32(&[2, 4, 1, 1], vec![0.9, 1e-4, -0.7, 0.8, -0.6, 2e-4, 0.5, 1.0])),
        ("b2", Tensor::f32(&[2], vec![0.0; 2])),
        ("lo", Tensor::f32(&[], vec![0.0])),
        ("hi", Tensor::f32(&[], vec![1.0])),
    ];
    Graph {
        inputs: vec![value("x")],
        outputs: vec![value("y")],
        constants: constants.into_iter().map(|(name, tensor)| (name.into(), Arc::new(tensor))).collect(),
        nodes: vec![
            node("Conv", &["x", "w1", "b1"], "c1"),
            node("Clip", &["c1", "lo", "hi"], "r1"),
            node("Conv", &["r1", "w2", "b2"], "y"),
        ],
        ..Graph::default()
    }
}

#[test]
fn a_channel_that_matters_little_is_clipped_where_all_share_one_scale() {
    let network = testing::quantized(&towering(), &[1, 2, 6, 6], 8, 8);
    let samples = testing::images(16, &network.shape);
    let loss = |draft: &Draft, half: Part| -> Result<f64, Infallible> {
        let samples = if half == Part::Fit { &samples[..8] } else { &samples[8..] };
        Ok(testing::damage(&network, draft, samples))
    };
    let mut draft = network.draft.clone();
    let weight = network.graph.nodes[0].inputs[1].clone();
    let own = draft.grids.params(&weight).unwrap().clone();
    let one = QuantParams { scale: vec![40.0 / 127.0], zero_point: vec![0], granularity: Granularity::Tensor, ..own };
    draft.set_params(&weight, one);
    let before = loss(&draft, Part::Held).unwrap();
    let (config, threads) = (Config { count: 4, ..Config::default() }, Threads::new(1));
    let Ok(kept) = tune(network.ground(), &mut draft, &config, &threads, &loss, &Silent);
    let (after, scale) = (loss(&draft, Part::Held).unwrap(), draft.grids.params(&weight).unwrap().scale[0]);
    assert!(kept && after < 0.1 * before, "{after} instead of {before}");
    assert!(scale < 0.05 * 40.0 / 127.0, "the scale is still {scale}");
}
