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
    assert_eq!(free.len(), 5);
    let edge = candidates(&QuantParams::per_tensor(grid, 0.1, 15), &site(None), &config);
    assert!(edge.iter().all(|p| p.zero_point[0] <= 15));
}
