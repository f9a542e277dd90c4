//! Against numerical integration, and against BatchNormalizations that are computed.

use super::*;
use fewbits_graph::{Attr, Attrs, Tensor, ValueInfo};
use std::sync::Arc;

/// `E f(x)` by Simpson's rule between `kinks`, where `f` is smooth, out to ten deviations.
fn integral(x: &Normal, kinks: &[f64], f: impl Fn(f64) -> f64) -> f64 {
    let (low, high) = (x.mean - 10.0 * x.deviation, x.mean + 10.0 * x.deviation);
    let mut ends = vec![low, high];
    ends.extend(kinks.iter().copied().filter(|k| *k > low && *k < high));
    ends.sort_by(f64::total_cmp);
    let weighted = |t: f64| {
        let z = (t - x.mean) / x.deviation;
        f(t) * (-0.5 * z * z).exp() / (x.deviation * (2.0 * std::f64::consts::PI).sqrt())
    };
    let piece = |a: f64, b: f64| {
        let steps = 4000;
        let width = (b - a) / f64::from(steps);
        let weight = |i: i32| if i == 0 || i == steps { 1.0 } else { 2.0 + 2.0 * f64::from(i % 2) };
        (0..=steps).map(|i| weight(i) * weighted(a + f64::from(i) * width)).sum::<f64>() * width / 3.0
    };
    ends.windows(2).map(|pair| piece(pair[0], pair[1])).sum()
}

#[test]
fn means_and_deviations_are_those_of_numerical_integration() {
    let infinity = f64::INFINITY;
    for (mean, deviation) in [(0.0, 1.0), (-2.3, 0.7), (5.5, 1.9), (3.0, 0.01), (-9.0, 1.0), (0.4, 12.0)] {
        let x = Normal { mean, deviation };
        let check = |found: Normal, f: &dyn Fn(f64) -> f64, kinks: &[f64], what: &str| {
            let first = integral(&x, kinks, f);
            let variance = integral(&x, kinks, |t| (f(t) - first).powi(2));
            assert!((found.mean - first).abs() < 1e-9, "{what} of {x:?}: {} instead of {first}", found.mean);
            let off = (found.deviation.powi(2) - variance).abs();
            assert!(off < 1e-9 * (1.0 + mean * mean + deviation * deviation), "{what} of {x:?}: variance {off} off");
        };
        for (a, b) in [(0.0, infinity), (0.0, 6.0), (-1.0, 1.0), (-infinity, 0.5), (-infinity, infinity)] {
            check(x.clipped(a, b), &|t| t.max(a).min(b), &[a, b], &format!("clip {a} to {b}"));
        }
        check(x.leaky(0.1), &|t| if t > 0.0 { t } else { 0.1 * t }, &[0.0], "leaky");
    }
    let still = Normal { mean: -1.5, deviation: 0.0 };
    assert_eq!(still.clipped(0.0, 6.0), Normal { mean: 0.0, deviation: 0.0 });
}

#[test]
fn expectations_go_through_activations_and_additions() {
    let value = |name: &str| ValueInfo { name: name.into(), dtype: fewbits_graph::DType::F32, dims: None };
    let node = |op: &str, attrs: Attrs, inputs: &[&str], output: &str| Node {
        name: output.into(),
        op: Op::from_attrs(op, &attrs).unwrap(),
        inputs: inputs.iter().map(|s| s.to_string()).collect(),
        outputs: vec![output.into()],
    };
    let mut graph = Graph { inputs: vec![value("x")], outputs: vec![value("y")], ..Graph::default() };
    let numbers = [("gamma", [2.0, -0.5]), ("beta", [1.0, 0.3]), ("mean", [7.0, 8.0]), ("variance", [0.75, 0.0])];
    for (name, values) in numbers {
        graph.constants.insert(name.into(), Arc::new(Tensor::f32(&[2], values.to_vec())));
    }
    let normalization = Attrs::default().with("epsilon", Attr::Float(0.25));
    let axis = Attrs::default().with("axis", Attr::Int(1));
    graph.nodes = vec![
        node("BatchNormalization", normalization, &["x", "gamma", "beta", "mean", "variance"], "n"),
        node("Relu", Attrs::default(), &["n"], "r"),
        node("Add", Attrs::default(), &["n", "r"], "a"),
        node("Concat", axis, &["a", "r"], "c"),
        node("Sigmoid", Attrs::default(), &["c"], "y"),
    ];
    let normals = of_normalizations(&graph);
    let n = Normal { mean: 1.0, deviation: 2.0 * 0.75f64.sqrt() };
    assert_eq!(normals["n"].len(), 2);
    assert!((normals["n"][0].deviation - n.deviation).abs() < 1e-12, "{:?}", normals["n"]);
    // A channel that was constant in training still is.
    let constant = normals["n"][1];
    assert!((constant.mean - 0.3).abs() < 1e-7 && constant.deviation == 0.0, "{constant:?}");
    let known = propagate(&graph, &normals);
    let relu = integral(&n, &[0.0], |t| t.max(0.0));
    let means: Vec<f64> = known["c"].iter().map(|c| c.mean).collect();
    for (found, wanted) in means.iter().zip([1.0 + relu, 0.6, relu, 0.3]) {
        assert!((found - wanted).abs() < 1e-6, "{found} instead of {wanted}");
    }
    assert!(!known.contains_key("y"));
}
