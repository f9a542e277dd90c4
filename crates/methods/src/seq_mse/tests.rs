use super::*;
use crate::{progress::Silent, testing, walk::walk_through};
use fewbits_graph::{Granularity, QuantParams};
use fewbits_kernels::Threads;

fn improved(network: &testing::Network, start: &Draft, threads: usize) -> Draft {
    let (samples, threads) = (testing::images(48, &network.shape), Threads::new(threads));
    let mut walk = Walk::new(network.ground(), &samples, usize::MAX, &threads).unwrap();
    let mut draft = start.clone();
    walk_through::<MethodError>(&mut walk, &mut draft, &[&SeqMse::default()], None, &Silent, |_, _| Ok(())).unwrap();
    draft
}

#[test]
fn outputs_come_closer_whatever_the_number_of_threads() {
    let network = testing::zoo("demo", 3, 8);
    let draft = improved(&network, &network.draft, 1);
    assert_eq!(draft, improved(&network, &network.draft, 3));
    let fresh = &testing::images(60, &network.shape)[48..];
    let (before, after) = (testing::damage(&network, &network.draft, fresh), testing::damage(&network, &draft, fresh));
    assert!(after < 0.8 * before, "{after} instead of {before}");
}

/// The scale of a channel against the definition, on rows of inputs that are laid out here.
#[test]
fn one_scale_for_all_channels_is_found_too() {
    let mut network = testing::residual();
    for layer in crate::layers(&network.graph, &network.placement) {
        let params = network.draft.grids.params(&layer.weight).unwrap().clone();
        // Far too wide a grid, for all channels alike.
        let scale = 4.0 * params.scale.iter().copied().fold(0.0, f32::max);
        network.draft.set_params(&layer.weight, QuantParams::per_tensor(params.grid, scale, 0));
    }
    let draft = improved(&network, &network.draft, 2);
    for layer in crate::layers(&network.graph, &network.placement) {
        let params = |draft: &Draft| draft.grids.params(&layer.weight).unwrap().clone();
        assert_eq!(params(&draft).granularity, Granularity::Tensor);
        assert!(params(&draft).scale[0] <= params(&network.draft).scale[0] / 2.0, "{}", layer.weight);
    }
}
