//! Block-wise measuring against whole networks with one layer changed.

use super::*;
use crate::{Bits, Whole, cost::weight_bytes, testing};
use fewbits_graph::{
    Node, Op, TensorQuant, ValueInfo,
    exec::{Executor, Mode},
    ops,
};
use fewbits_methods::{progress::Silent, walk};

fn measured(network: &testing::Network, count: usize, activations: Option<&Grids>, config: &Config) -> Sensitivity {
    let images = testing::images(count);
    measure(network.ground(), &images, activations, config, &Threads::new(2), &Silent).unwrap()
}

fn at(level: Level) -> Config {
    Config { level, widths: vec![2, 4, 8], ..Config::default() }
}

/// Outputs `names` of the whole network with one weight at `bits` bits, and the input that it sees rounded if there is a grid.
fn changed(
    network: &testing::Network,
    image: &[Tensor],
    layer: &Layer,
    bits: Option<u8>,
    grids: &Grids,
    name: &str,
) -> Tensor {
    let mut graph = network.graph.clone();
    if let Some(bits) = bits {
        let weight =
            Rounding::default().apply(&layer.weight, &graph.constants[&layer.weight], layer.axis, bits).unwrap();
        graph.constants.insert(layer.weight.clone(), weight);
    }
    let seen = graph.fresh_name("seen");
    graph.nodes[layer.node].inputs[0].clone_from(&seen);
    let copy = Node {
        name: seen.clone(),
        op: Op::Identity(ops::Identity),
        inputs: vec![layer.input.clone()],
        outputs: vec![seen.clone()],
    };
    graph.nodes.insert(layer.node, copy);
    let grids =
        Grids(grids.params(&layer.input).map(|p| (seen, TensorQuant::Quantized(p.clone()))).into_iter().collect());
    graph.outputs = vec![ValueInfo { name: name.into(), dtype: fewbits_graph::DType::F32, dims: None }];
    let mode = if bits.is_some() { Mode::FakeQuant(&grids) } else { Mode::Float };
    Executor::new(&graph, mode, &Threads::new(1)).run(image).unwrap().remove(0)
}

fn weights(bits: impl IntoIterator<Item = (String, u8)>) -> Bits {
    Bits { weights: bits.into_iter().collect(), ..Bits::default() }
}

/// The definition: the mean damage at the tensors that `looked_at` names, the whole network computed anew for each number.
fn check(network: &testing::Network, level: Level, activations: bool, looked_at: impl Fn(&Layer) -> Vec<String>) {
    let (images, grids) = (testing::images(3), activations.then_some(&network.grids));
    let found = measured(network, 3, grids, &at(level));
    assert_eq!(found.layers.len(), network.layers().len());
    for (row, layer) in found.layers.iter().zip(network.layers()) {
        assert_eq!(row.weight, layer.weight);
        let input = grids.cloned().unwrap_or_default();
        let names = looked_at(&layer);
        for (&bits, &damage) in found.widths.iter().zip(&row.damage) {
            let of = |image: &Vec<Tensor>, name: &String| {
                let float = changed(network, image, &layer, None, &input, name);
                Metric::Snr.damage(&float, &changed(network, image, &layer, Some(bits), &input, name)).unwrap()
            };
            let pairs = images.iter().flat_map(|image| names.iter().map(move |name| (image, name)));
            let expected = pairs.map(|(image, name)| of(image, name)).sum::<f64>() / (3 * names.len()) as f64;
            let close = (damage - expected).abs() <= 1e-4 * expected + 1e-12;
            assert!(close, "{level}, {} at {bits} bits: {damage}, expected {expected}", layer.weight);
            assert!(expected > 0.0);
        }
    }
}

#[test]
fn damage_at_the_layer_is_that_of_the_whole_network() {
    let network = testing::network();
    check(&network, Level::Local, false, |layer| vec![layer.output.clone()]);
    check(&network, Level::Local, true, |layer| vec![layer.output.clone()]);
}

#[test]
fn damage_at_the_block_is_that_of_the_whole_network() {
    let network = testing::network();
    let blocks = walk::blocks(&network.ground());
    let outputs = |layer: &Layer| blocks.iter().find(|b| b.layers.contains(layer)).unwrap().outputs.clone();
    check(&network, Level::Block, false, outputs);
}

#[test]
fn damage_at_the_outputs_is_that_of_the_whole_network() {
    let network = testing::network();
    let outputs = |_: &Layer| network.graph.outputs.iter().map(|info| info.name.clone()).collect();
    check(&network, Level::Network, false, outputs);
    check(&network, Level::Network, true, outputs);
}

#[test]
fn what_leads_past_blocks_is_carried_along() {
    let network = testing::branching();
    let blocks = walk::blocks(&network.ground());
    let passing = cut::passing(&network.graph, &blocks, &cut::spans(&network.graph, &blocks));
    assert_eq!(passing.len(), 1);
    let images = testing::images(3);
    let found = measured(&network, 3, None, &at(Level::Network));
    let threads = Threads::new(1);
    let mut whole = Whole::new(network.ground(), &images, None, Metric::Snr, Rounding::default(), &threads).unwrap();
    for row in &found.layers {
        for (&bits, damage) in found.widths.iter().zip(&row.damage) {
            let expected = whole.damage(&weights([(row.weight.clone(), bits)])).unwrap();
            assert!((damage / expected - 1.0).abs() < 1e-4, "{} at {bits} bits", row.weight);
        }
    }
}

#[test]
fn weighted_damage_is_the_networks_at_four_bits_and_proportional_to_the_layers() {
    let network = testing::network();
    let of = |level| measured(&network, 3, None, &at(level));
    let (local, whole, weighted) = (of(Level::Local), of(Level::Network), of(Level::Weighted));
    for ((local, whole), weighted) in local.layers.iter().zip(&whole.layers).zip(&weighted.layers) {
        assert!((weighted.damage[1] / whole.damage[1] - 1.0).abs() < 1e-9);
        for (w, l) in weighted.damage.iter().zip(&local.damage) {
            assert!((w / weighted.damage[1] / (l / local.damage[1]) - 1.0).abs() < 1e-9);
        }
    }
}

#[test]
fn more_bits_do_less_damage_on_every_metric_but_agreement() {
    let network = testing::network();
    for metric in [Metric::Cosine, Metric::Snr, Metric::Mse, Metric::Pearson] {
        let found = measured(&network, 2, None, &Config { metric, ..at(Level::Local) });
        for row in &found.layers {
            assert!(row.damage.is_sorted_by(|a, b| a > b), "{metric} {}: {:?}", row.weight, row.damage);
        }
    }
}

#[test]
fn small_damages_add_up_at_the_output() {
    let network = testing::network();
    let (images, threads) = (testing::images(8), Threads::new(2));
    let found = measured(&network, 8, None, &Config { widths: vec![6, 8], level: Level::Network, ..Config::default() });
    let mut whole = Whole::new(network.ground(), &images, None, Metric::Snr, Rounding::default(), &threads).unwrap();
    assert_eq!(whole.damage(&Bits::default()).unwrap(), 0.0);
    for (i, bits) in [(0, 6), (1, 8)] {
        let together = whole.damage(&weights(found.layers.iter().map(|l| (l.weight.clone(), bits)))).unwrap();
        let sum: f64 = found.layers.iter().map(|layer| layer.damage[i]).sum();
        assert!((together / sum).ln().abs() < 1.0, "{bits} bits: {together}, sum {sum}");
        let alone = whole.damage(&weights([(found.layers[2].weight.clone(), bits)])).unwrap();
        assert!((alone / found.layers[2].damage[i] - 1.0).abs() < 1e-4);
    }
}

#[test]
fn threads_change_nothing() {
    let (network, images) = (testing::network(), testing::images(7));
    let of = |threads| {
        let config = Config { memory: 100_000, ..at(Level::Weighted) };
        measure(network.ground(), &images, None, &config, &Threads::new(threads), &Silent).unwrap()
    };
    assert_eq!(of(1), of(3));
}

#[test]
fn costs_are_those_of_the_weight() {
    let network = testing::network();
    let found = measured(&network, 1, Some(&network.grids), &at(Level::Local));
    for (row, layer) in found.layers.iter().zip(network.layers()) {
        let dims = &network.graph.constants[&layer.weight].dims;
        for bits in [2, 3, 8] {
            assert_eq!(row.bytes_at(bits), weight_bytes(dims, Some(layer.axis), bits, dims[layer.axis]));
        }
        assert_eq!((row.elements, row.edge, row.input_bits), (dims.iter().product::<usize>() as u64, layer.edge, 8));
        assert_eq!((row.damage_at(&found.widths, 4), row.damage_at(&found.widths, 7)), (row.damage[1], row.damage[2]));
    }
}
