use super::*;
use crate::{progress::Silent, testing};

#[test]
fn the_outputs_come_closer_whatever_the_number_of_threads() {
    let network = testing::zoo("demo", 4, 4);
    let samples = testing::images(48, &network.shape);
    let config = Config { steps: 60, rate: 3e-3, seed: 1, ..Config::default() };
    // Only weights on the grid have codes.
    let mut start = network.draft.clone();
    for layer in layers(&network.graph, &network.placement) {
        let weight = network.graph.constant(&layer.weight).unwrap();
        let rounded = fewbits_graph::exec::rounded_constant(&layer.weight, weight, &start.grids);
        start.graph.constants.insert(layer.weight.clone(), rounded);
    }
    let tuned = |threads: usize| {
        let mut draft = start.clone();
        assert!(tune(network.ground(), &mut draft, &samples, &config, &Threads::new(threads), &Silent).unwrap());
        draft
    };
    let late = Config { deadline: Some(Instant::now()), ..config.clone() };
    let mut untouched = start.clone();
    tune(network.ground(), &mut untouched, &samples, &late, &Threads::new(1), &Silent).unwrap();
    assert_eq!(untouched, start);
    let draft = tuned(1);
    assert_eq!(draft, tuned(3));
    let fresh = &testing::images(60, &network.shape)[48..];
    let [before, after] = [&start, &draft].map(|draft| testing::damage(&network, draft, fresh));
    assert!(after < 0.8 * before, "{after} instead of {before}");
}
