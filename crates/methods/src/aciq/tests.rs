use super::*;
use crate::{progress::Silent, testing, walk::walk_through};
use fewbits_kernels::Threads;

#[test]
fn channels_keep_their_deviation_and_their_weights_stay_codes() {
    let network = testing::residual();
    let (samples, threads) = (testing::images(24, &network.shape), Threads::new(2));
    let mut walk = Walk::new(network.ground(), &samples, usize::MAX, &threads).unwrap();
    let mut draft = network.draft.clone();
    walk_through::<MethodError>(&mut walk, &mut draft, &[&Aciq], None, &Silent, |_, _| Ok(())).unwrap();
    for layer in crate::layers(&network.graph, &network.placement) {
        let values = |graph: &fewbits_graph::Graph| graph.constant(&layer.weight).unwrap().as_f32().unwrap().to_vec();
        let (old, new, params) = (values(&network.graph), values(&draft.graph), draft.grids.params(&layer.weight));
        let params = params.unwrap();
        if layer.axis != 0 {
            continue;
        }
        let width = old.len() / params.scale.len();
        for (scale, (old, new)) in params.scale.iter().zip(old.chunks(width).zip(new.chunks(width))) {
            let [before, after] = [old, new].map(|row| mean_and_width(row, Prior::Gauss).1);
            let ratio = after / before;
            assert!((ratio - 1.0).abs() < 1e-4, "{}: {ratio}", layer.weight);
            for w in new {
                let code = w / scale;
                assert!((code - code.round()).abs() < 1e-3 && code.round() as i32 <= params.grid.qmax());
            }
        }
    }
    let fresh = &testing::images(36, &network.shape)[24..];
    let (before, after) = (testing::damage(&network, &network.draft, fresh), testing::damage(&network, &draft, fresh));
    assert!(after < before, "{after} instead of {before}");
}

#[test]
fn nothing_is_divided_by_a_deviation_of_zero() {
    assert_eq!(deviation_factor(&[0.3, -0.1], &[0.0, 0.0]), 1.0);
    assert_eq!(deviation_factor(&[0.3], &[0.3]), 1.0);
    assert_eq!(deviation_factor(&[0.2, -0.2], &[0.1, -0.1]), 2.0);
}
