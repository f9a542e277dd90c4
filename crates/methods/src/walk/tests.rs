//! On a small residual network, the walk computes on both sides what the whole networks compute.

use super::*;
use crate::{Layer, progress::Silent, testing};

#[test]
fn every_block_sees_what_the_whole_networks_compute() {
    let network = testing::residual();
    let samples = testing::images(5, &network.shape);
    let threads = Threads::new(2);
    for memory in [usize::MAX, 1000] {
        let mut walk = Walk::new(network.ground(), &samples, memory, &threads).unwrap();
        assert!(walk.position().1 >= 3, "it has several blocks");
        while let Some(block) = walk.block().cloned() {
            let names: Vec<&str> = block.inputs.iter().chain(&block.outputs).map(String::as_str).collect();
            for (sample, image) in samples.iter().enumerate() {
                let float = testing::tensors(&network.graph, Mode::Float, image, &names);
                let given = walk.inputs(Side::Float, sample).unwrap().into_iter().chain(walk.targets(sample).unwrap());
                assert_eq!(float.into_iter().map(Arc::new).collect::<Vec<_>>(), given.collect::<Vec<_>>());
                let inputs: Vec<&str> = block.inputs.iter().map(String::as_str).collect();
                let mode = Mode::FakeQuant(&network.draft.grids);
                let quantized = testing::tensors(&network.draft.graph, mode, image, &inputs);
                assert_eq!(
                    quantized.into_iter().map(Arc::new).collect::<Vec<_>>(),
                    walk.inputs(Side::Quantized, sample).unwrap()
                );
            }
            walk.advance(&network.draft).unwrap();
        }
    }
}

#[test]
fn a_walk_stops_at_its_deadline() {
    let network = testing::residual();
    let samples = testing::images(2, &network.shape);
    let threads = Threads::new(1);
    let mut walk = Walk::new(network.ground(), &samples, usize::MAX, &threads).unwrap();
    let mut through = |deadline| {
        let mut draft = network.draft.clone();
        walk_through::<MethodError>(&mut walk, &mut draft, &[], deadline, &Silent, |_, _| Ok(())).unwrap();
        walk.position().0
    };
    assert_eq!(through(Some(Instant::now())), 0);
    assert!(through(None) > 2);
}

#[test]
fn every_layer_is_in_one_block() {
    let network = testing::residual();
    let all: Vec<Layer> = blocks(&network.ground()).into_iter().flat_map(|b| b.layers).collect();
    assert_eq!(all, crate::layers(&network.graph, &network.placement));
}

#[test]
fn no_block_ends_behind_a_depthwise_convolution() {
    let network = testing::residual();
    let blocks = blocks(&network.ground());
    let groups = |layer: &Layer| match &network.graph.nodes[layer.node].op {
        fewbits_graph::Op::Conv(conv) => conv.group,
        _ => 1,
    };
    assert!(blocks.iter().any(|block| block.layers.iter().any(|layer| groups(layer) > 1)));
    assert!(blocks.iter().all(|block| block.layers.last().is_none_or(|layer| groups(layer) == 1)), "{blocks:?}");
}

#[test]
fn shares_of_the_work_that_is_left_fall_to_the_last_block() {
    let network = testing::residual();
    let samples = testing::images(2, &network.shape);
    let threads = Threads::new(1);
    let mut walk = Walk::new(network.ground(), &samples, usize::MAX, &threads).unwrap();
    let (mut left, mut all) = (1.0, 0.0);
    while walk.block().is_some() {
        let share = walk.share();
        assert!(share > 0.0 && share <= 1.0, "{share}");
        all += left * share;
        left *= 1.0 - share;
        walk.advance(&network.draft).unwrap();
    }
    assert!((all - 1.0f64).abs() < 1e-9 && left.abs() < 1e-9, "{all}, {left}");
}
