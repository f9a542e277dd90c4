//! Random networks of one or two operators, with grids that fit what they compute.
//!
//! What enters: a seed. What leaves: a float graph, grids laid over it, and inputs. Nothing here knows how they are computed.

use fewbits_graph::{
    Attr, Attrs, DType, Dim, Graph, Grid, Grids, Node, Op, QuantParams, Tensor, TensorQuant, ValueInfo,
    exec::{Executor, Mode},
};
use fewbits_kernels::Threads;
use std::{ops::RangeInclusive, sync::Arc};

/// SplitMix64.
pub struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn within(&mut self, range: RangeInclusive<usize>) -> usize {
        range.start() + self.below(range.end() - range.start() + 1)
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// Uniform in `−1 … 1`.
    pub fn real(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// A network, the grids over it, and one batch of inputs.
pub struct Case {
    pub graph: Graph,
    pub grids: Grids,
    pub inputs: Vec<Tensor>,
}

/// Grows a [`Case`] node by node; every tensor that a node writes can be measured, because the inputs are there from the start.
pub struct Builder {
    pub random: Random,
    /// Of the grids of activations.
    pub bits: u8,
    /// Whether they are signed; none: each may be.
    pub signed: Option<bool>,
    pub case: Case,
}

impl Builder {
    pub fn new(seed: u64) -> Self {
        let graph = Graph { opset: 13, ..Graph::default() };
        let case = Case { graph, grids: Grids::default(), inputs: vec![] };
        Builder { random: Random(seed), bits: 8, signed: None, case }
    }

    /// An input on a random grid, with values on, between and beyond the grid's codes.
    pub fn input(&mut self, dims: &[usize]) -> String {
        let name = format!("x{}", self.case.inputs.len());
        let grid = self.activation_grid();
        let scale = 5.0 / grid.steps() as f32 * (1.0 + self.random.real() * 0.9);
        let zero_point = self.zero_point(grid);
        let params = QuantParams::per_tensor(grid, scale, zero_point);
        let (low, high) = params.range(0);
        let values = (0..dims.iter().product()).map(|_| {
            let x = (low + high) / 2.0 + self.random.real() * 0.55 * (high - low);
            // Halves of a step are where roundings differ.
            if self.random.chance(10) { (x / (0.5 * scale)).round() * 0.5 * scale } else { x }
        });
        self.case.inputs.push(Tensor::f32(dims, values.collect()));
        let mut declared: Vec<_> = dims.iter().map(|&d| Dim::Fixed(d)).collect();
        declared[0] = Dim::Symbol("N".into());
        self.case.graph.inputs.push(ValueInfo { name: name.clone(), dtype: DType::F32, dims: Some(declared) });
        self.case.grids.0.insert(name.clone(), TensorQuant::Quantized(params));
        name
    }

    pub fn activation_grid(&mut self) -> Grid {
        let signed = self.signed.unwrap_or_else(|| self.random.chance(30));
        Grid { bits: self.bits, signed, narrow: false }
    }

    fn zero_point(&mut self, grid: Grid) -> i32 {
        match self.random.below(4) {
            0 => grid.qmin(),
            1 => grid.qmax(),
            _ => grid.qmin() + self.random.below(grid.steps() as usize + 1) as i32,
        }
    }

    pub fn constant(&mut self, name: &str, dims: &[usize], scale: f32) -> String {
        let values = (0..dims.iter().product()).map(|_| self.random.real() * scale).collect();
        self.add_constant(name, Tensor::f32(dims, values))
    }

    pub fn add_constant(&mut self, name: &str, value: Tensor) -> String {
        self.case.graph.constants.insert(name.into(), Arc::new(value));
        name.into()
    }

    /// A weight with scales along `axis`, or one for all.
    pub fn weight(&mut self, dims: &[usize], axis: usize) -> String {
        let name = self.constant(&format!("w{}", self.case.graph.constants.len()), dims, 0.5);
        let bits = self.random.pick(&[8, 8, 8, 4, 2]);
        let grid = Grid { bits, signed: true, narrow: self.random.chance(80) };
        let mut scale = || (0.5 + self.random.real() * 0.3) / grid.qmax() as f32;
        let params = if scale() > 0.5 / grid.qmax() as f32 {
            QuantParams::per_channel(grid, axis, (0..dims[axis]).map(|_| scale()).collect())
        } else {
            QuantParams::per_tensor(grid, scale(), 0)
        };
        self.case.grids.0.insert(name.clone(), TensorQuant::Quantized(params));
        name
    }

    /// A bias for sums of `input` and `weight`, or none.
    pub fn bias(&mut self, len: usize, input: &str, weight: &str) -> Option<String> {
        self.random.chance(75).then(|| {
            let name = self.constant(&format!("b{}", self.case.graph.constants.len()), &[len], 2.0);
            let state = TensorQuant::BiasOf { input: input.into(), weight: weight.into() };
            self.case.grids.0.insert(name.clone(), state);
            name
        })
    }

    pub fn node(&mut self, op_type: &str, attrs: Attrs, inputs: &[&str]) -> String {
        let output = format!("t{}", self.case.graph.nodes.len());
        self.case.graph.nodes.push(Node {
            name: format!("n{}", self.case.graph.nodes.len()),
            op: Op::from_attrs(op_type, &attrs).expect("the attributes are those of the operator"),
            inputs: inputs.iter().map(|s| s.to_string()).collect(),
            outputs: vec![output.clone()],
        });
        output
    }

    /// A grid for tensor `name` that spans about the values it has; `clamp` if they all lie above zero point `qmin`.
    pub fn grid(&mut self, name: &str, clamp: Option<(f32, f32)>) {
        let values = self.values(name);
        let (low, high) = values.iter().fold((0f32, 1e-3f32), |(l, h), &v| (l.min(v), h.max(v)));
        let grid = self.activation_grid();
        let (stretch, steps) = (1.0 + 0.4 * self.random.real(), grid.steps() as f32);
        let (scale, zero_point) = match clamp {
            Some((_, bound)) => (high.min(bound) * stretch.min(1.0) / steps, grid.qmin()),
            None => {
                let scale = (high - low) * stretch / steps;
                (scale, ((grid.qmin() as f32 - low / scale) as i32).clamp(grid.qmin(), grid.qmax()))
            }
        };
        self.case.grids.0.insert(name.into(), TensorQuant::Quantized(QuantParams::per_tensor(grid, scale, zero_point)));
    }

    pub fn same_grid(&mut self, name: &str, other: &str) {
        self.case.grids.0.insert(name.into(), TensorQuant::SameAs(other.into()));
    }

    /// The values of `name` in float mode.
    pub fn values(&self, name: &str) -> Vec<f32> {
        let mut graph = self.case.graph.clone();
        graph.outputs = vec![ValueInfo { name: name.into(), dtype: DType::F32, dims: None }];
        let threads = Threads::new(1);
        let outputs = Executor::new(&graph, Mode::Float, &threads).run(&self.case.inputs);
        let output = outputs.unwrap_or_else(|e| panic!("{e}: {:?}", graph.nodes)).swap_remove(0);
        output.as_f32().expect("a float tensor").to_vec()
    }

    /// The finished case with outputs `names`.
    pub fn finish(mut self, names: &[&str]) -> Case {
        self.case.graph.outputs = self.infos(names);
        self.case
    }

    /// Tensors `names` as outputs.
    pub fn infos(&self, names: &[&str]) -> Vec<ValueInfo> {
        let shapes: Vec<_> = self.case.inputs.iter().map(|t| t.dims.clone()).collect();
        let facts = fewbits_graph::exec::infer(&self.case.graph, &shapes).expect("the graph is well formed");
        let info = |&name: &&str| {
            let dims = facts[name].dims.iter().map(|_| Dim::Symbol(String::new())).collect();
            ValueInfo { name: name.into(), dtype: DType::F32, dims: Some(dims) }
        };
        names.iter().map(info).collect()
    }
}

pub fn ints(name: &str, values: &[usize]) -> Attrs {
    Attrs::default().with(name, Attr::Ints(values.iter().map(|&v| v as i64).collect()))
}
