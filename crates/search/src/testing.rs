//! What the tests of this room share: a small network with its placement, made-up images, random numbers.

use fewbits_graph::{
    DType, Graph, Grid, Grids, Node, Op, QuantParams, Tensor, TensorQuant, ValueInfo, exec::infer, op::Fact, ops,
    passes,
};
use fewbits_methods::{Ground, Layer};
use fewbits_quant::{
    Stats,
    calibrate::{self, Policy},
    placement::{Placement, Site, place},
};
use std::collections::{BTreeMap, BTreeSet};

/// A prepared float network and grids for it.
pub struct Network {
    pub graph: Graph,
    pub placement: Placement,
    pub facts: BTreeMap<String, Fact>,
    pub stats: Stats,
    /// Weights at 4 bits, every activation from −4 to 4.
    pub grids: Grids,
}

impl Network {
    pub fn ground(&self) -> Ground<'_> {
        Ground { float: &self.graph, placement: &self.placement, facts: &self.facts, stats: &self.stats }
    }

    pub fn layers(&self) -> Vec<Layer> {
        fewbits_methods::layers(&self.graph, &self.placement)
    }
}

const SHAPE: [usize; 4] = [1, 3, 16, 16];

/// The zoo's demo network: inverted residuals, depthwise layers, a concatenation.
pub fn network() -> Network {
    let options = fewbits_zoo::Options { input: Some([3, 16, 16]), classes: Some(10), ..Default::default() };
    let graph = fewbits_zoo::find("demo").unwrap().build(&options).unwrap();
    prepared(&graph)
}

/// The same, with an early tensor that is read once more behind everything else, for a second output.
pub fn branching() -> Network {
    let plain = network();
    let (early, mut graph) = (plain.layers()[1].input.clone(), plain.graph);
    let outputs = vec!["pooled".to_string()];
    let op = Op::GlobalAveragePool(ops::GlobalAveragePool);
    graph.nodes.push(Node { name: "pooled".into(), op, inputs: vec![early], outputs });
    graph.outputs.push(ValueInfo { name: "pooled".into(), dtype: DType::F32, dims: None });
    prepared(&graph)
}

/// `graph`, which reads images, with grids.
pub fn prepared(graph: &Graph) -> Network {
    let graph = passes::drop_neutral_slots(&passes::prepare(graph).unwrap().0);
    let placement = place(&graph, &"ort".parse().unwrap(), &BTreeSet::new());
    let facts = infer(&graph, &[SHAPE.to_vec()]).unwrap();
    let mut grids = Grids::default();
    for (name, site) in &placement.sites {
        let quant = match site {
            Site::Activation { .. } => {
                TensorQuant::Quantized(QuantParams::per_tensor(Grid::activations(8), 8.0 / 255.0, 128))
            }
            Site::SameAs(other) => TensorQuant::SameAs(other.clone()),
            Site::Weight { .. } | Site::Bias { .. } => continue,
        };
        grids.0.insert(name.clone(), quant);
    }
    let weights = calibrate::weights(&graph, &placement, &Policy::new(4, 8, 4)).unwrap();
    calibrate::add_weights(&graph, &placement, &weights, &mut grids);
    Network { graph, placement, facts, stats: Stats::default(), grids }
}

/// Smooth images with a different pattern each.
pub fn images(count: usize) -> Vec<Vec<Tensor>> {
    let value = |i: usize, x: usize| {
        let (x, i) = (x as f32, i as f32);
        (x * (0.11 + 0.013 * i)).sin() + 0.5 * (x * x * 0.0007 + i).cos()
    };
    let len = SHAPE.iter().product();
    (0..count).map(|i| vec![Tensor::f32(&SHAPE, (0..len).map(|x| value(i, x)).collect())]).collect()
}

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}
