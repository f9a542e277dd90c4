use super::*;
use crate::{testing, walk::walk_through};
use fewbits_graph::{Attrs, DType, Graph, Node, Op, Tensor, ValueInfo};
use fewbits_kernels::Threads;
use std::sync::Arc;

/// A group whose rows are made of sums of sines, and `t` of one output.
fn group(k: usize, shift: f32) -> Group {
    let rows: Vec<Vec<f32>> = (0..40)
        .map(|r| (0..k).map(|i| ((r * (i + 2)) as f32 * 0.37).sin() + 0.4 * (r as f32 * 0.9).cos()).collect())
        .collect();
    let mut found =
        Group { gram: vec![0.0; k * k], cross: vec![0.0; k], mean: vec![0.0; k], mean_error: vec![0.0], rows: 40 };
    for row in &rows {
        for i in 0..k {
            (0..k).for_each(|j| found.gram[i * k + j] += row[i] * row[j] / 40.0);
            found.cross[i] += row[i] * shift / 40.0;
        }
    }
    found
}

#[test]
fn descent_is_close_to_the_best_of_all_codes() {
    let (k, scale, bounds) = (6, 0.3, [-3.0, 3.0]);
    let (mut found_sum, mut best_sum, mut nearest_sum) = (0.0, 0.0, 0.0);
    for case in 0..20 {
        let wanted: Vec<f32> = (0..k).map(|i| ((case * 7 + i * 13) as f32 * 0.71).sin() * 0.9).collect();
        let group = group(k, 0.1 * case as f32);
        let descent = Descent::new(&group, 0, &wanted, [1e-3, 1.0], bounds);
        let mut point = descent.feed_back(scale);
        descent.descend(&mut point, 50);
        let all = (0..7usize.pow(k as u32)).map(|n| {
            let codes: Vec<f32> = (0..k).map(|i| (n / 7usize.pow(i as u32) % 7) as f32 - 3.0).collect();
            descent.error(&descent.at(codes, scale))
        });
        best_sum += all.fold(f64::INFINITY, f64::min);
        found_sum += descent.error(&point);
        nearest_sum += descent.error(&descent.at(codes_of(&wanted, scale, bounds), scale));
    }
    let (found, nearest) = (found_sum - best_sum, nearest_sum - best_sum);
    assert!(found < 0.1 * nearest, "{found} above the optimum, {nearest} with the nearest codes");
}

#[test]
fn the_best_scale_has_no_better_neighbour() {
    let group = group(5, 0.3);
    let wanted = [0.4, -0.8, 0.1, 0.6, -0.2];
    let descent = Descent::new(&group, 0, &wanted, [0.01, 1.0], [-7.0, 7.0]);
    let codes = vec![3.0, -6.0, 1.0, 4.0, -2.0];
    let best = descent.rescale(&descent.at(codes.clone(), 0.1)).unwrap();
    let error = |factor: f32| descent.error(&descent.at(codes.clone(), best.scale * factor));
    assert!((descent.error(&best) - error(1.0)).abs() < 1e-5);
    assert!(error(1.0) < error(1.01) && error(1.0) < error(0.99));
}

#[test]
fn four_bit_networks_come_closer_whatever_the_number_of_threads() {
    let network = testing::residual();
    let samples = testing::images(48, &network.shape);
    let improved = |threads: usize| {
        let threads = Threads::new(threads);
        let mut walk = Walk::new(network.ground(), &samples, usize::MAX, &threads).unwrap();
        let mut draft = network.draft.clone();
        let progress = crate::progress::Silent;
        walk_through::<MethodError>(&mut walk, &mut draft, &[&Comq::default()], None, &progress, |_, _| Ok(()))
            .unwrap();
        draft
    };
    let draft = improved(1);
    assert_eq!(draft, improved(3));
    let fresh = &testing::images(60, &network.shape)[48..];
    let (before, after) = (testing::damage(&network, &network.draft, fresh), testing::damage(&network, &draft, fresh));
    assert!(after < 0.75 * before, "{after} instead of {before}");
}

/// x [1, 6, 20] → MatMul → Relu → MatMul → Relu → MatMul → y [1, 6, 5]: rows of matrices, no biases.
#[test]
fn matrix_products_without_biases_come_closer() {
    let value = |name: &str| ValueInfo { name: name.into(), dtype: DType::F32, dims: None };
    let mut graph = Graph { inputs: vec![value("x")], outputs: vec![value("y")], opset: 17, ..Graph::default() };
    for (name, dims) in [("u", [20, 16]), ("v", [16, 12]), ("w", [12, 5])] {
        let weights = (0..dims[0] * dims[1]).map(|i| ((i * i) as f32 * 0.37).sin() + 0.2).collect();
        graph.constants.insert(name.into(), Arc::new(Tensor::f32(&dims, weights)));
    }
    for (op, inputs, output) in [
        ("MatMul", &["x", "u"][..], "a"),
        ("Relu", &["a"], "b"),
        ("MatMul", &["b", "v"], "c"),
        ("Relu", &["c"], "d"),
        ("MatMul", &["d", "w"], "y"),
    ] {
        graph.nodes.push(Node {
            name: output.into(),
            op: Op::from_attrs(op, &Attrs::default()).unwrap(),
            inputs: inputs.iter().map(|name| name.to_string()).collect(),
            outputs: vec![output.into()],
        });
    }
    let network = testing::quantized(&graph, &[1, 6, 20], 3, 8);
    let samples = testing::images(64, &network.shape);
    let threads = Threads::new(2);
    let mut walk = Walk::new(network.ground(), &samples[..48].to_vec(), usize::MAX, &threads).unwrap();
    let (method, mut draft) = (Comq::default(), network.draft.clone());
    walk_through::<MethodError>(&mut walk, &mut draft, &[&method], None, &crate::progress::Silent, |_, _| Ok(()))
        .unwrap();
    assert!(method.findings().is_empty(), "{:?}", method.findings());
    let damage = |draft: &Draft| testing::damage(&network, draft, &samples[48..]);
    let (before, after) = (damage(&network.draft), damage(&draft));
    assert!(after < 0.75 * before, "{after} instead of {before}");
}
