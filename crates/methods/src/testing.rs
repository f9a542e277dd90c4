//! What the tests of this room share: small networks, quantized plainly, and made-up images.

use crate::{Draft, Ground};
use fewbits_graph::{
    Graph, Tensor, ValueInfo,
    exec::{Executor, Mode, Tapped, infer},
    op::{Fact, Layout},
    passes,
};
use fewbits_kernels::Threads;
use fewbits_quant::{
    RangeRule, Stats,
    calibrate::{self, Policy},
    placement::{Placement, Site, place},
    stats::{ChannelStats, ImageStats},
};
use std::collections::{BTreeMap, BTreeSet};

/// A network, and the same with grids.
pub struct Network {
    pub graph: Graph,
    pub placement: Placement,
    pub facts: BTreeMap<String, Fact>,
    pub stats: Stats,
    pub draft: Draft,
    /// Of the input.
    pub shape: Vec<usize>,
}

impl Network {
    pub fn ground(&self) -> Ground<'_> {
        Ground { float: &self.graph, placement: &self.placement, facts: &self.facts, stats: &self.stats }
    }
}

/// The zoo's demo network (inverted residuals, depthwise layers, a concatenation) with 4-bit weights.
pub fn residual() -> Network {
    zoo("demo", 4, 8)
}

/// An architecture of the zoo with random weights, quantized to the nearest codes.
pub fn zoo(name: &str, weight_bits: u8, activation_bits: u8) -> Network {
    let options = fewbits_zoo::Options { input: Some([3, 16, 16]), classes: Some(10), ..Default::default() };
    let graph = fewbits_zoo::find(name).unwrap().build(&options).unwrap();
    quantized(&graph, &[1, 3, 16, 16], weight_bits, activation_bits)
}

/// `graph` on inputs of `shape`, quantized to the nearest codes, mean-squared-error scales, min-max ranges.
pub fn quantized(graph: &Graph, shape: &[usize], weight_bits: u8, activation_bits: u8) -> Network {
    let policy = Policy::new(weight_bits, activation_bits, 8);
    let target = "ort".parse().unwrap();
    let graph = passes::drop_neutral_slots(&passes::prepare(graph).unwrap().0);
    let graph = passes::drop_layer_input_slots(&graph, |_| activation_bits == 8);
    let placement = place(&graph, &target, &BTreeSet::new());
    let facts = infer(&graph, &[shape.to_vec()]).unwrap();
    let observed: Vec<String> = placement.sites.keys().cloned().collect();
    let mut stats = Stats::default();
    for (i, sample) in images(4, shape).iter().enumerate() {
        let threads = Threads::new(1);
        let mut tap = |tensor: Tapped<'_>| {
            let (values, channels) = (tensor.to_f32(), tensor.fact.dims.get(1).copied().unwrap_or(1));
            let channels = match tensor.fact.layout {
                Layout::ChannelsLast => ChannelStats::of(&values, channels),
                Layout::Plain => ChannelStats::of_planes(&values, channels),
            };
            let image = ImageStats::of(&values, i as u64, &[]).with_channels(Some(channels));
            stats.0.entry(tensor.name.to_string()).or_default().add(&image);
        };
        let mut executor = Executor::new(&graph, Mode::Float, &threads).observing(observed.iter().cloned());
        executor.run_tapped(sample, &mut tap).unwrap();
    }
    let none = BTreeMap::new();
    let mut grids =
        calibrate::activations(&graph, &placement, &stats, &policy, &target, RangeRule::MinMax, &none).unwrap();
    let weights = calibrate::weights(&graph, &placement, &policy).unwrap();
    calibrate::add_weights(&graph, &placement, &weights, &mut grids);
    assert!(placement.sites.values().any(|s| matches!(s, Site::Weight { .. })));
    let draft = Draft { graph: graph.clone(), grids };
    Network { graph, placement, facts, stats, draft, shape: shape.to_vec() }
}

/// Smooth images with a different pattern each.
pub fn images(count: usize, shape: &[usize]) -> Vec<Vec<Tensor>> {
    let len: usize = shape.iter().product();
    let value = |i: usize, x: usize| {
        let (x, i) = (x as f32, i as f32);
        (x * (0.11 + 0.013 * i)).sin() + 0.5 * (x * x * 0.0007 + i).cos()
    };
    (0..count).map(|i| vec![Tensor::f32(shape, (0..len).map(|x| value(i, x)).collect())]).collect()
}

/// The tensors `names` of one sample; graph inputs are what was given.
pub fn tensors(graph: &Graph, mode: Mode<'_>, inputs: &[Tensor], names: &[&str]) -> Vec<Tensor> {
    let made = |name: &&&str| !graph.inputs.iter().any(|v| v.name == **name);
    let mut whole = graph.clone();
    let info = |name: &&str| ValueInfo { name: name.to_string(), dtype: fewbits_graph::DType::F32, dims: None };
    whole.outputs = names.iter().filter(made).map(info).collect();
    let mut outputs = Executor::new(&whole, mode, &Threads::new(1)).run(inputs).unwrap().into_iter();
    let given = |name: &&str| graph.inputs.iter().position(|v| v.name == **name).map(|i| inputs[i].clone());
    names.iter().map(|name| given(name).unwrap_or_else(|| outputs.next().unwrap())).collect()
}

/// Mean squared difference of the outputs in fake quantization from those of the float network.
pub fn damage(network: &Network, draft: &Draft, samples: &[Vec<Tensor>]) -> f64 {
    let threads = Threads::new(1);
    let mut float = Executor::new(&network.graph, Mode::Float, &threads);
    let mut quantized = Executor::new(&draft.graph, Mode::FakeQuant(&draft.grids), &threads);
    let (mut sum, mut count) = (0.0, 0);
    for sample in samples {
        let (a, b) = (float.run(sample).unwrap(), quantized.run(sample).unwrap());
        for (a, b) in a.iter().zip(&b) {
            let pairs = a.as_f32().unwrap().iter().zip(b.as_f32().unwrap());
            sum += pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            count += a.len();
        }
    }
    sum / count as f64
}
