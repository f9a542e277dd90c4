use super::*;
use crate::{progress::Silent, testing};
use std::convert::Infallible;

#[test]
fn a_window_that_stands_wrong_is_moved_back() {
    let network = testing::zoo("demo", 8, 8);
    let samples = testing::images(24, &network.shape);
    let two_tailed = |name: &&String| {
        let params = network.draft.grids.params(name).unwrap();
        params.tensor_params().is_some_and(|(_, zero)| (100..150).contains(&zero))
    };
    let sites = network.placement.sites.iter();
    let names: Vec<&String> =
        sites.filter(|(_, s)| matches!(s, Site::Activation { .. })).map(|(n, _)| n).filter(two_tailed).collect();
    let name = names[names.len() / 2];
    let mut draft = network.draft.clone();
    let mut params = draft.grids.params(name).unwrap().clone();
    params.zero_point[0] += 60;
    draft.set_params(name, params);
    let loss = |draft: &Draft, half: Part| -> Result<f64, Infallible> {
        let samples = if half == Part::Fit { &samples[..16] } else { &samples[16..] };
        Ok(testing::damage(&network, draft, samples))
    };
    let config = Config { shifts: vec![-60, -20, 20], ..Config::default() };
    let Ok(before) = loss(&draft, Part::Held);
    let late = Config { deadline: Some(Instant::now()), ..config.clone() };
    assert_eq!(adjust(network.ground(), &mut draft, &late, &loss, &Silent), Ok(0));
    let Ok(changed) = adjust(network.ground(), &mut draft, &config, &loss, &Silent);
    let Ok(after) = loss(&draft, Part::Held);
    assert!(changed >= 1 && after < 0.5 * before, "{after} instead of {before}");
}

#[test]
fn candidates_keep_to_what_a_runtime_absorbs() {
    let grid = fewbits_graph::Grid::activations(4);
    let site = |bounds| Site::Activation { bounds, reader: Default::default(), feeds_layer: true, edge: false };
    let config = Config::default();
    let clipped = QuantParams::per_tensor(grid, 6.0 / 15.0, 0);
    let found = candidates(&clipped, &site(Some((0.0, 6.0))), &config);
    assert_eq!(found.len(), 2, "smaller scales only: {found:?}");
    assert!(found.iter().all(|p| p.range(0).1 <= 6.0 && p.zero_point[0] == 0));
    let free = candidates(&QuantParams::per_tensor(grid, 0.1, 7), &site(None), &config);
    // Four scales with nine zero points each, but where it stands.
    assert_eq!(free.len(), 4 * 9 - 1);
    assert_eq!(promising(free.clone(), &site(None), None, 5), free[..5]);
    let codes = |bits| config.shifts_at(bits);
    assert_eq!((codes(2), codes(3), codes(8)), (vec![-1, 1], vec![-2, -1, 1, 2], vec![-2, -1, 1, 2]));
    let edge = candidates(&QuantParams::per_tensor(grid, 0.1, 15), &site(None), &config);
    assert!(edge.iter().all(|p| p.zero_point[0] <= 15));
}

/// A tensor that is even up to where its window ends, dense at one end and thin at the other: a smaller scale alone clips the dense end, a
/// shift alone clips the thin one for nothing, and both together resolve the rest better.
#[test]
fn a_shift_that_pays_with_a_smaller_scale_only_is_found() {
    let mut network = testing::zoo("demo", 8, 4);
    let two_tailed = |(name, site): &(&String, &Site)| {
        let params = network.draft.grids.params(name);
        let four_bits = params.is_some_and(|p| p.grid.bits == 4 && p.tensor_params().is_some());
        four_bits && matches!(site, Site::Activation { bounds: None, .. })
    };
    let name = network.placement.sites.iter().find(two_tailed).unwrap().0.clone();
    let grid = network.draft.grids.params(&name).unwrap().grid;
    let start = QuantParams::per_tensor(grid, 1.0, grid.qmin() + 9);
    let even = (0..3500).map(|i| -8.9 + 12.0 * i as f32 / 3500.0);
    let values: Vec<f32> = even.chain(vec![-9.0; 400]).chain((0..10).map(|i| 3.5 + 0.25 * i as f32)).collect();
    let mut stats = TensorStats::new();
    stats.observe_image(&values);
    network.stats.0.insert(name.clone(), stats);
    network.draft.set_params(&name, start.clone());
    let error = |params: &QuantParams| -> f64 {
        let (scale, zero) = params.tensor_params().unwrap();
        let code = |x: f32| ((x / scale).round_ties_even() as i32 + zero).clamp(grid.qmin(), grid.qmax());
        values.iter().map(|x| f64::from(x - (code(*x) - zero) as f32 * scale).powi(2)).sum()
    };
    let loss = |draft: &Draft, _: Part| -> Result<f64, Infallible> { Ok(error(draft.grids.params(&name).unwrap())) };
    let site = network.placement.sites[&name].clone();
    for candidate in candidates(&start, &site, &Config::default()) {
        let alone = candidate.scale == start.scale || candidate.zero_point == start.zero_point;
        assert!(!alone || error(&candidate) > error(&start), "{candidate:?} helps alone");
    }
    let mut draft = network.draft.clone();
    let Ok(changed) = adjust(network.ground(), &mut draft, &Config::default(), &loss, &Silent);
    let found = draft.grids.params(&name).unwrap();
    assert!(changed == 1 && error(found) < 0.95 * error(&start), "{found:?}");
    assert!(found.scale[0] < 1.0 && found.zero_point[0] > start.zero_point[0], "{found:?}");
}

/// Where a few elements are very large, the least squared error asks for a scale far too large.
#[test]
fn activations_of_few_bits_are_clipped_as_far_as_it_helps() {
    let network = testing::zoo("demo", 8, 4);
    let samples = testing::images(24, &network.shape);
    let params = |draft: &Draft, name: &String| draft.grids.params(name).cloned();
    let four_bits = |name: &&String| {
        params(&network.draft, name).is_some_and(|p| p.grid.bits == 4 && p.tensor_params().is_some())
            && matches!(network.placement.sites[*name], Site::Activation { .. })
    };
    let name = network.placement.sites.keys().find(four_bits).unwrap();
    let mut draft = network.draft.clone();
    let mut coarse = params(&draft, name).unwrap();
    coarse.scale[0] *= 4.0;
    draft.set_params(name, coarse.clone());
    let loss = |draft: &Draft, half: Part| -> Result<f64, Infallible> {
        let samples = if half == Part::Fit { &samples[..16] } else { &samples[16..] };
        Ok(testing::damage(&network, draft, samples))
    };
    let config = Config { sweeps: 1, judged: 0, ..Config::default() };
    let mut left = draft.clone();
    let Ok(_) = adjust(network.ground(), &mut left, &Config { narrower: 1.0, ..config.clone() }, &loss, &Silent);
    assert_eq!(left, draft);
    let Ok(_) = adjust(network.ground(), &mut draft, &config, &loss, &Silent);
    let factor = params(&draft, name).unwrap().scale[0] / coarse.scale[0];
    assert!((0.2..0.4).contains(&factor), "{factor}");
    let eight = QuantParams::per_tensor(fewbits_graph::Grid::activations(8), 0.1, 0);
    assert_eq!(config.clipped(&eight).count(), 0);
}
