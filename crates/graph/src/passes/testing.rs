//! Small networks for the tests of passes: preparing must not change what they compute.

use super::prepare;
use crate::{
    DType, ValueInfo,
    exec::{Executor, Mode},
    graph::{Graph, Node},
    op::Op,
    ops::{BatchNormalization, Conv, samples::varied, window::Window},
    tensor::Tensor,
};
use fewbits_kernels::Threads;
use std::sync::Arc;

/// Makes graphs from the input `x: [2, 3, 6, 6]`.
#[derive(Default)]
pub(super) struct Maker(pub Graph);

impl Maker {
    pub fn node(&mut self, op: impl Into<Op>, inputs: &[&str], output: &str) {
        let inputs = inputs.iter().map(|s| s.to_string()).collect();
        self.0.nodes.push(Node { name: output.into(), op: op.into(), inputs, outputs: vec![output.into()] });
    }

    pub fn constant(&mut self, name: &str, tensor: Tensor) {
        self.0.constants.insert(name.into(), Arc::new(tensor));
    }

    pub fn conv(&mut self, input: &str, output: &str, weight: [usize; 4]) {
        let name = format!("{output}_w");
        self.constant(&name, varied(&weight, output.len() as u32));
        self.node(Conv { window: Window::square(weight[2], 1, 0), group: 1 }, &[input, &name], output);
    }

    pub fn norm(&mut self, input: &str, output: &str, channels: usize) {
        let names = [1, 2, 3, 4].map(|i| format!("{output}_{i}"));
        for (name, seed) in names.iter().zip(20..) {
            let values = varied(&[channels], seed);
            let positive = values.as_f32().unwrap().iter().map(|v| v.abs() + 0.25).collect();
            self.constant(name, Tensor::f32(&[channels], positive));
        }
        let [a, b, c, d] = names.each_ref().map(String::as_str);
        self.node(BatchNormalization { epsilon: 0.125, momentum: 0.9 }, &[input, a, b, c, d], output);
    }

    /// The operators of the prepared graph, which must compute the same, but for multiplications and additions.
    pub fn prepared(self, output: &str) -> Vec<String> {
        let names = self.graph(output).nodes.into_iter().map(|n| n.op.name().to_string());
        names.filter(|name| name != "Mul" && name != "Add").collect()
    }

    /// The prepared graph, which must compute the same.
    pub fn graph(mut self, output: &str) -> Graph {
        let value = |name: &str| ValueInfo { name: name.into(), dtype: DType::F32, dims: None };
        (self.0.inputs, self.0.outputs) = (vec![value("x")], vec![value(output)]);
        let (prepared, _) = prepare(&self.0).unwrap();
        let (x, threads) = ([varied(&[2, 3, 6, 6], 1)], Threads::new(1));
        let [before, after] = [&self.0, &prepared].map(|g| Executor::new(g, Mode::Float, &threads).run(&x).unwrap());
        let far = |(a, b): (&f32, &f32)| (a - b).abs() > 1e-4 * b.abs().max(1.0);
        assert_eq!(before[0].dims, after[0].dims);
        assert!(!after[0].as_f32().unwrap().iter().zip(before[0].as_f32().unwrap()).any(far));
        prepared
    }
}
