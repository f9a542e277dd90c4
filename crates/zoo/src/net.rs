//! A graph under construction: layers enter, named nodes and initialised weights leave. It knows no architecture.
//!
//! Convolution weights are Kaiming-normal by fan-out: variance `2 / (out / groups · kernel²)` (He et al. 2015, section 2.2,
//! backward case). torchvision leaves out the division by `groups`, which makes depthwise weights smaller there. Batch
//! normalizations start as identities; biases of convolutions and classifiers start at 0.

use crate::random::Random;
use fewbits_graph::{
    Attr, Attrs, DType, Dim, Graph, GraphError, Node, Op, Tensor, ValueInfo, exec,
    op::CANONICAL_OPSET,
    ops::{self, window::Window},
};
use std::sync::Arc;

/// A tensor that the graph computes.
#[derive(Clone, Debug)]
pub struct Value {
    name: String,
    /// Size along axis 1.
    pub channels: usize,
}

/// A convolution with a square window, padded so that stride 1 keeps the size.
#[derive(Clone, Copy, Debug)]
pub struct Convolution {
    out: usize,
    kernel: usize,
    stride: usize,
    groups: usize,
}

impl Convolution {
    pub fn new(out: usize, kernel: usize) -> Self {
        Convolution { out, kernel, stride: 1, groups: 1 }
    }

    pub fn stride(self, stride: usize) -> Self {
        Convolution { stride, ..self }
    }

    pub fn groups(self, groups: usize) -> Self {
        Convolution { groups, ..self }
    }
}

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// `max(x, 0)`
    Relu,
    /// `min(max(x, 0), 6)`, a Clip.
    Relu6,
    /// `x · σ(x)`, a Sigmoid and a Mul.
    Swish,
    /// `max(x, 0.1 x)`
    LeakyRelu,
}

/// How the weights of a classifier start.
#[derive(Clone, Copy, Debug)]
pub enum Init {
    /// Standard deviation of a normal distribution.
    Normal(f64),
    /// Bound of a uniform distribution.
    Uniform(f64),
}

/// A graph under construction.
#[derive(Debug)]
pub struct Net {
    graph: Graph,
    random: Random,
}

impl Net {
    /// An empty network and its input `image`, `[batch, channels, height, width]`.
    pub fn new(name: &str, input: [usize; 3], seed: u64) -> (Self, Value) {
        let dims = std::iter::once(Dim::Symbol("batch".into())).chain(input.map(Dim::Fixed)).collect();
        let image = ValueInfo { name: "image".into(), dtype: DType::F32, dims: Some(dims) };
        let value = Value { name: image.name.clone(), channels: input[0] };
        let graph = Graph { name: name.into(), inputs: vec![image], opset: CANONICAL_OPSET, ..Graph::default() };
        (Net { graph, random: Random::new(seed) }, value)
    }

    /// The graph with these outputs; their shapes are computed.
    pub fn finish(mut self, outputs: &[Value]) -> Result<Graph, GraphError> {
        let declared = |value: &Value| ValueInfo { name: value.name.clone(), dtype: DType::F32, dims: None };
        self.graph.outputs = outputs.iter().map(declared).collect();
        self.graph.sort()?;
        let size = |dim: &Dim| if let Dim::Fixed(n) = dim { *n } else { 1 };
        let shapes = self.graph.inputs.iter().map(|v| v.dims.iter().flatten().map(size).collect()).collect::<Vec<_>>();
        let facts = exec::infer(&self.graph, &shapes)?;
        for output in &mut self.graph.outputs {
            let sizes = facts[&output.name].dims.iter().skip(1).copied().map(Dim::Fixed);
            output.dims = Some(std::iter::once(Dim::Symbol("batch".into())).chain(sizes).collect());
        }
        Ok(self.graph)
    }

    fn constant(&mut self, name: String, tensor: Tensor) -> String {
        self.graph.constants.insert(name.clone(), Arc::new(tensor));
        name
    }

    /// The same number for each of `channels` channels.
    fn filled(&mut self, name: String, channels: usize, number: f32) -> String {
        self.constant(name, Tensor::f32(&[channels], vec![number; channels]))
    }

    fn node(&mut self, name: &str, op: impl Into<Op>, inputs: Vec<String>, channels: usize) -> Value {
        let node = Node { name: name.into(), op: op.into(), inputs, outputs: vec![name.into()] };
        self.graph.nodes.push(node);
        Value { name: name.into(), channels }
    }

    fn unary(&mut self, name: &str, op: impl Into<Op>, x: &Value) -> Value {
        self.node(name, op, vec![x.name.clone()], x.channels)
    }

    fn conv_inputs(&mut self, name: &str, x: &Value, c: Convolution) -> (ops::Conv, Vec<String>) {
        let dims = [c.out, x.channels / c.groups, c.kernel, c.kernel];
        let fan_out = c.out / c.groups * c.kernel * c.kernel;
        let weight = self.random.normal(dims.iter().product(), (2.0 / fan_out as f64).sqrt());
        let weight = self.constant(format!("{name}.weight"), Tensor::f32(&dims, weight));
        let window = Window::square(c.kernel, c.stride, c.kernel / 2);
        (ops::Conv { window, group: c.groups }, vec![x.name.clone(), weight])
    }

    /// A convolution without bias.
    pub fn conv(&mut self, name: &str, x: &Value, convolution: Convolution) -> Value {
        let (op, inputs) = self.conv_inputs(name, x, convolution);
        self.node(name, op, inputs, convolution.out)
    }

    /// A convolution with bias.
    pub fn conv_bias(&mut self, name: &str, x: &Value, convolution: Convolution) -> Value {
        let (op, mut inputs) = self.conv_inputs(name, x, convolution);
        inputs.push(self.filled(format!("{name}.bias"), convolution.out, 0.0));
        self.node(name, op, inputs, convolution.out)
    }

    /// Batch normalization, an identity at first but for its epsilon of 1e-5.
    pub fn batch_norm(&mut self, name: &str, x: &Value) -> Value {
        let mut inputs = vec![x.name.clone()];
        for (parameter, number) in [("scale", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)] {
            inputs.push(self.filled(format!("{name}.{parameter}"), x.channels, number));
        }
        self.node(name, ops::BatchNormalization { epsilon: 1e-5, momentum: 0.9 }, inputs, x.channels)
    }

    pub fn activation(&mut self, name: &str, x: &Value, act: Act) -> Value {
        match act {
            Act::Relu => self.unary(&format!("{name}.relu"), ops::Relu {}, x),
            Act::LeakyRelu => self.unary(&format!("{name}.leaky_relu"), ops::LeakyRelu { alpha: 0.1 }, x),
            Act::Swish => {
                let gate = self.unary(&format!("{name}.sigmoid"), ops::Sigmoid {}, x);
                self.mul(&format!("{name}.swish"), x, &gate)
            }
            Act::Relu6 => {
                let mut inputs = vec![x.name.clone()];
                for (bound, number) in [("relu6.min", 0.0), ("relu6.max", 6.0)] {
                    inputs.push(self.constant(bound.into(), Tensor::f32(&[], vec![number])));
                }
                self.node(&format!("{name}.relu6"), ops::Clip, inputs, x.channels)
            }
        }
    }

    /// `NAME.conv`, `NAME.bn`.
    pub fn conv_bn(&mut self, name: &str, x: &Value, convolution: Convolution) -> Value {
        let y = self.conv(&format!("{name}.conv"), x, convolution);
        self.batch_norm(&format!("{name}.bn"), &y)
    }

    /// `NAME.conv`, `NAME.bn` and the activation.
    pub fn conv_bn_act(&mut self, name: &str, x: &Value, convolution: Convolution, act: Act) -> Value {
        let y = self.conv_bn(name, x, convolution);
        self.activation(name, &y, act)
    }

    /// A depthwise convolution whose channels are cut into as many parts as there are kernel sizes (Tan and Le 2019,
    /// "MixConv", section 3.1; equal parts); one size is an ordinary one.
    pub fn mixed_depthwise(&mut self, name: &str, x: &Value, kernels: &[usize], stride: usize) -> Value {
        let part = |channels, kernel| Convolution::new(channels, kernel).stride(stride).groups(channels);
        if let &[kernel] = kernels {
            return self.conv(&format!("{name}.conv"), x, part(x.channels, kernel));
        }
        let share = x.channels / kernels.len();
        let mut sizes = vec![share; kernels.len()];
        sizes[0] = x.channels - share * (kernels.len() - 1); // what does not divide evenly
        let parts = self.split(&format!("{name}.split"), x, &sizes);
        let convolved: Vec<Value> = parts
            .iter()
            .zip(kernels)
            .map(|(x, &kernel)| self.conv(&format!("{name}.conv{kernel}"), x, part(x.channels, kernel)))
            .collect();
        self.concat(&format!("{name}.concat"), &convolved)
    }

    fn split(&mut self, name: &str, x: &Value, sizes: &[usize]) -> Vec<Value> {
        let lengths = sizes.iter().map(|&n| n as i64).collect();
        let lengths = self.constant(format!("{name}.sizes"), Tensor::i64(&[sizes.len()], lengths));
        let part = |(i, &channels): (usize, &usize)| Value { name: format!("{name}.{i}"), channels };
        let parts: Vec<Value> = sizes.iter().enumerate().map(part).collect();
        let inputs = vec![x.name.clone(), lengths];
        let outputs = parts.iter().map(|v| v.name.clone()).collect();
        let op = ops::Split { axis: 1, num_outputs: None }.into();
        self.graph.nodes.push(Node { name: name.into(), op, inputs, outputs });
        parts
    }

    pub fn concat(&mut self, name: &str, parts: &[Value]) -> Value {
        let inputs = parts.iter().map(|v| v.name.clone()).collect();
        self.node(name, ops::Concat { axis: 1 }, inputs, parts.iter().map(|v| v.channels).sum())
    }

    pub fn add(&mut self, name: &str, a: &Value, b: &Value) -> Value {
        self.node(name, ops::Add, vec![a.name.clone(), b.name.clone()], a.channels)
    }

    /// `a · b`, where `b` may have one pixel.
    fn mul(&mut self, name: &str, a: &Value, b: &Value) -> Value {
        self.node(name, ops::Mul, vec![a.name.clone(), b.name.clone()], a.channels)
    }

    /// `x · σ(expand(act(squeeze(mean x))))`, with `squeezed` channels in between (Hu et al. 2018).
    pub fn squeeze_excite(&mut self, name: &str, x: &Value, squeezed: usize, act: Act) -> Value {
        let mean = self.unary(&format!("{name}.pool"), ops::GlobalAveragePool, x);
        let squeeze = format!("{name}.squeeze");
        let inner = self.conv_bias(&squeeze, &mean, Convolution::new(squeezed, 1));
        let inner = self.activation(&squeeze, &inner, act);
        let gate = self.conv_bias(&format!("{name}.expand"), &inner, Convolution::new(x.channels, 1));
        let gate = self.unary(&format!("{name}.sigmoid"), ops::Sigmoid {}, &gate);
        self.mul(&format!("{name}.scale"), x, &gate)
    }

    pub fn max_pool(&mut self, name: &str, x: &Value, window: Window) -> Value {
        self.unary(name, ops::MaxPool { window, ceil_mode: false, column_major: false }, x)
    }

    /// Every second pixel of every second row, with zero channels before and after up to `out`.
    pub fn subsample(&mut self, name: &str, x: &Value, out: usize) -> Value {
        let mut inputs = vec![x.name.clone()];
        for (argument, numbers) in [("starts", [0; 2]), ("ends", [i64::MAX; 2]), ("axes", [2, 3]), ("steps", [2; 2])] {
            inputs.push(self.constant(format!("{name}.slice.{argument}"), Tensor::i64(&[2], numbers.to_vec())));
        }
        let picked = self.node(&format!("{name}.slice"), ops::Slice, inputs, x.channels);
        let before = (out - x.channels) / 2;
        let pads = [0, before, 0, 0, 0, out - x.channels - before, 0, 0].map(|n| n as i64);
        let pads = self.constant(format!("{name}.pad.pads"), Tensor::i64(&[8], pads.to_vec()));
        let pad = Op::from_attrs("Pad", &Attrs::default()).expect("a Pad without attributes fills with a constant");
        self.node(&format!("{name}.pad"), pad, vec![picked.name, pads], out)
    }

    /// Twice the height and width, by the nearest neighbour.
    pub fn upsample(&mut self, name: &str, x: &Value) -> Value {
        let scales = self.constant("upsample.scales".into(), Tensor::f32(&[4], vec![1.0, 1.0, 2.0, 2.0]));
        let word = |text: &str| Attr::Str(text.into());
        let attrs = Attrs::default()
            .with("coordinate_transformation_mode", word("asymmetric"))
            .with("nearest_mode", word("floor"));
        let resize = Op::from_attrs("Resize", &attrs).expect("these words are ONNX's");
        self.node(name, resize, vec![x.name.clone(), String::new(), scales], x.channels)
    }

    /// The mean of each channel and a product with a matrix: `logits`, `[batch, classes]`.
    pub fn classifier(&mut self, x: &Value, classes: usize, init: Init) -> Value {
        let x = self.unary("pool", ops::GlobalAveragePool, x);
        let x = self.unary("flatten", ops::Flatten { axis: 1 }, &x);
        let weight = match init {
            Init::Normal(deviation) => self.random.normal(classes * x.channels, deviation),
            Init::Uniform(bound) => self.random.uniform(classes * x.channels, bound),
        };
        let weight = self.constant("classifier.weight".into(), Tensor::f32(&[classes, x.channels], weight));
        let bias = self.filled("classifier.bias".into(), classes, 0.0);
        self.node("logits", ops::Gemm { trans_b: true, ..ops::Gemm::default() }, vec![x.name, weight, bias], classes)
    }
}
