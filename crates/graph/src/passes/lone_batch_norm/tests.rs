use super::super::prepare;
use crate::{
    DType, ValueInfo,
    exec::{Executor, Mode},
    graph::{Graph, Node},
    op::Op,
    ops::{BatchNormalization, Concat, Conv, Flatten, MaxPool, Relu, samples::varied, window::Window},
    tensor::Tensor,
};
use fewbits_kernels::Threads;
use std::sync::Arc;

/// Makes graphs from the input `x: [2, 3, 6, 6]`.
#[derive(Default)]
struct Maker(Graph);

impl Maker {
    fn node(&mut self, op: impl Into<Op>, inputs: &[&str], output: &str) {
        let inputs = inputs.iter().map(|s| s.to_string()).collect();
        self.0.nodes.push(Node { name: output.into(), op: op.into(), inputs, outputs: vec![output.into()] });
    }

    fn constant(&mut self, name: &str, tensor: Tensor) {
        self.0.constants.insert(name.into(), Arc::new(tensor));
    }

    fn conv(&mut self, input: &str, output: &str, weight: [usize; 4]) {
        let name = format!("{output}_w");
        self.constant(&name, varied(&weight, output.len() as u32));
        self.node(Conv { window: Window::square(weight[2], 1, 0), group: 1 }, &[input, &name], output);
    }

    fn norm(&mut self, input: &str, output: &str, channels: usize) {
        let names = [1, 2, 3, 4].map(|i| format!("{output}_{i}"));
        for (name, seed) in names.iter().zip(20..) {
            let values = varied(&[channels], seed);
            let positive = values.as_f32().unwrap().iter().map(|v| v.abs() + 0.25).collect();
            self.constant(name, Tensor::f32(&[channels], positive));
        }
        let [a, b, c, d] = names.each_ref().map(String::as_str);
        self.node(BatchNormalization { epsilon: 0.125, momentum: 0.9 }, &[input, a, b, c, d], output);
    }

    /// The operators of the prepared graph, which must compute the same.
    fn prepared(mut self, output: &str) -> Vec<String> {
        let value = |name: &str| ValueInfo { name: name.into(), dtype: DType::F32, dims: None };
        (self.0.inputs, self.0.outputs) = (vec![value("x")], vec![value(output)]);
        let (prepared, _) = prepare(&self.0).unwrap();
        let (x, threads) = ([varied(&[2, 3, 6, 6], 1)], Threads::new(1));
        let [before, after] = [&self.0, &prepared].map(|g| Executor::new(g, Mode::Float, &threads).run(&x).unwrap());
        let far = |(a, b): (&f32, &f32)| (a - b).abs() > 1e-4 * b.abs().max(1.0);
        assert_eq!(before[0].dims, after[0].dims);
        assert!(!after[0].as_f32().unwrap().iter().zip(before[0].as_f32().unwrap()).any(far));
        prepared.nodes.iter().map(|n| n.op.name().to_string()).filter(|name| name != "Mul" && name != "Add").collect()
    }
}

#[test]
fn behind_a_concat_of_convolutions_it_goes_into_each() {
    let mut maker = Maker::default();
    maker.conv("x", "a", [4, 3, 1, 1]);
    maker.conv("x", "bb", [2, 3, 1, 1]);
    maker.node(Concat { axis: 1 }, &["a", "bb"], "c");
    maker.norm("c", "d", 6);
    maker.conv("d", "e", [3, 6, 3, 3]);
    assert_eq!(maker.prepared("e"), ["Conv", "Conv", "Concat", "Conv"]);
}

#[test]
fn behind_a_flattened_pixel_it_goes_into_the_convolution() {
    let mut maker = Maker::default();
    maker.conv("x", "a", [4, 3, 6, 6]);
    maker.node(Flatten { axis: 1 }, &["a"], "f");
    maker.norm("f", "g", 4);
    assert_eq!(maker.prepared("g"), ["Conv", "Flatten"]);
    // With more than one pixel the columns are no channels.
    let mut maker = Maker::default();
    maker.conv("x", "a", [4, 3, 5, 5]);
    maker.node(Flatten { axis: 1 }, &["a"], "f");
    maker.norm("f", "g", 16);
    assert_eq!(maker.prepared("g"), ["Conv", "Flatten", "BatchNormalization"]);
}

#[test]
fn between_pooling_and_an_activation_it_is_a_depthwise_convolution() {
    let mut maker = Maker::default();
    maker.conv("x", "a", [4, 3, 1, 1]);
    maker.node(MaxPool { window: Window::square(2, 2, 0), ceil_mode: false, column_major: false }, &["a"], "p");
    maker.norm("p", "n", 4);
    maker.node(Relu {}, &["n"], "r");
    maker.conv("r", "y", [2, 4, 3, 3]);
    assert_eq!(maker.prepared("y"), ["Conv", "MaxPool", "Conv", "Relu", "Conv"]);
    // In front of the first layer, and behind the last, it stays what it is.
    let mut maker = Maker::default();
    maker.norm("x", "n", 3);
    maker.node(Relu {}, &["n"], "r");
    maker.conv("r", "y", [2, 3, 3, 3]);
    maker.node(MaxPool { window: Window::square(2, 2, 0), ceil_mode: false, column_major: false }, &["y"], "p");
    maker.norm("p", "z", 2);
    assert_eq!(maker.prepared("z"), ["BatchNormalization", "Relu", "Conv", "MaxPool", "BatchNormalization"]);
}
