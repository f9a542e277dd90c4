use super::{bits::allocate, *};
use crate::{progress::Silent, testing, walk::walk_through};
use fewbits_kernels::Threads;

#[test]
fn channels_keep_their_deviation_and_their_weights_stay_codes() {
    let network = testing::residual();
    let (samples, threads) = (testing::images(24, &network.shape), Threads::new(2));
    let mut walk = Walk::new(network.ground(), &samples, usize::MAX, &threads).unwrap();
    let mut draft = network.draft.clone();
    walk_through::<MethodError>(&mut walk, &mut draft, &[&Aciq::default()], None, &Silent, |_, _| Ok(())).unwrap();
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

/// Widths of powers of eight get shares of powers of four: two bits apart.
#[test]
fn bits_by_channel_are_those_of_the_formula() {
    // Equal widths, equal bits.
    assert_eq!(allocate(&[0.3; 7], 4), [4; 7]);
    // B = 2·2^3 = 16, shares 4/5 and 1/5 of it: log2 12.8 = 3.68, log2 3.2 = 1.68, which is 4 and 2.
    assert_eq!(allocate(&[8.0, 1.0], 3), [4, 2]);
    // B = 3·16 = 48: shares 16/21, 4/21, 1/21 are 36.6, 9.1, 2.3 codes; 5, 3 and 1 bits leave the mean at 3, the target rises.
    assert_eq!(allocate(&[64.0, 8.0, 1.0], 4), [6, 4, 2]);
    // One unit only matters by its share: any factor on all widths is none.
    let widths: Vec<f64> = (1..40).map(|i| (f64::from(i) * 0.7).sin().abs() + 0.01).collect();
    let wider: Vec<f64> = widths.iter().map(|w| 1e3 * w).collect();
    for bits in 2..=4 {
        let found = allocate(&widths, bits);
        assert_eq!(found, allocate(&wider, bits));
        assert_eq!(found.iter().map(|b| usize::from(*b)).sum::<usize>(), usize::from(bits) * widths.len());
        // Never fewer for a wider channel, up to the unit that settles the sum.
        for (a, w) in found.iter().zip(&widths) {
            assert!(found.iter().zip(&widths).all(|(b, v)| v < w || b + 1 >= *a), "{found:?}");
        }
    }
    // What is dead gets nothing; what it leaves the others share, up to eight bits each.
    assert_eq!(allocate(&[1.0, 0.0, 1.0], 2), [3, 0, 3]);
    assert_eq!(allocate(&[0.0, 0.0], 4), [4, 4]);
    assert_eq!(allocate(&[1.0, 0.0, 0.0], 4), [8, 0, 0]);
    assert!(allocate(&[], 4).is_empty());
    // Channels far narrower than the rest have no bits.
    assert_eq!(allocate(&[1.0, 1.0, 1.0, 1e-6], 2)[3], 0);
}

#[test]
fn weights_with_bits_by_channel_are_codes_of_8_bit_containers() {
    // A channel that is eight times as wide as the rest.
    let mut network = testing::residual();
    let layers = crate::layers(&network.graph, &network.placement);
    let wide = layers.iter().find(|layer| layer.axis == 0 && !layer.edge).unwrap();
    let old = network.graph.constant(&wide.weight).unwrap().clone();
    let width = old.len() / old.dims[0];
    let values = old.as_f32().unwrap().iter().enumerate().map(|(i, w)| if i < width { 8.0 * w } else { *w }).collect();
    network.graph.constants.insert(wide.weight.clone(), fewbits_graph::Tensor::f32(&old.dims, values).into());
    let mut draft = Draft { graph: network.graph.clone(), grids: network.draft.grids.clone() };
    let found = bits::share_out(network.ground(), &mut draft, &Threads::new(2)).unwrap();
    assert!(found.contains("8-bit containers"), "{found}");
    for layer in layers.iter().filter(|layer| !layer.edge) {
        let (new, params) = (draft.graph.constant(&layer.weight).unwrap(), draft.grids.params(&layer.weight).unwrap());
        assert_eq!(params.grid, fewbits_graph::Grid::weights(8));
        assert_eq!(draft.rounded(&layer.weight).unwrap().dims, new.dims);
        let pairs = draft.rounded(&layer.weight).unwrap();
        let same =
            pairs.as_f32().unwrap().iter().zip(new.as_f32().unwrap()).all(|(a, b)| (a - b).abs() <= 1e-5 * a.abs());
        assert!(same, "{}: what is in the draft is on its grid", layer.weight);
    }
    let new = draft.graph.constant(&wide.weight).unwrap();
    let codes = |channel: usize| {
        let scale = draft.grids.params(&wide.weight).unwrap().scale[channel];
        let row = &new.as_f32().unwrap()[channel * width..][..width];
        row.iter().map(|w| (w / scale).round().abs() as i32).max().unwrap()
    };
    assert!(codes(0) > 7, "the wide channel has more than four bits: {}", codes(0));
    assert!((1..old.dims[0]).all(|channel| codes(channel) <= 7));
}
