//! `y = a·x + b` by channel, and how a layer takes it in: what BatchNormalizations and constants behind layers come to.

use crate::{
    graph::Graph,
    op::{Op, Role},
    tensor::Tensor,
};
use std::sync::Arc;

/// `a·x + b`, a number of each for every channel.
pub(super) struct Affine {
    pub a: Vec<f64>,
    pub b: Vec<f64>,
}

impl Affine {
    /// A BatchNormalization with constant statistics: `a = γ/√(σ² + ε)`, `b = β − a·μ`.
    pub fn of_norm(graph: &Graph, node: usize) -> Option<Affine> {
        let node = &graph.nodes[node];
        let Op::BatchNormalization(op) = &node.op else { return None };
        let values = |i: usize| -> Option<Vec<f64>> {
            let tensor = graph.constant(node.input(i)?)?;
            Some(tensor.as_f32()?.iter().map(|&v| v.into()).collect())
        };
        let (gamma, beta, mean, variance) = (values(1)?, values(2)?, values(3)?, values(4)?);
        let scale = |(g, v): (&f64, &f64)| g / (v + f64::from(op.epsilon)).sqrt();
        let a: Vec<f64> = gamma.iter().zip(&variance).map(scale).collect();
        let b = beta.iter().zip(&a).zip(&mean).map(|((b, a), m)| b - a * m).collect();
        (node.outputs.iter().skip(1).all(String::is_empty)).then_some(Affine { a, b })
    }

    /// Makes `layer` compute `a·layer(x) + b`. Returns whether it can.
    pub fn fold_into_layer(&self, graph: &mut Graph, layer: usize) -> bool {
        let Affine { a, b } = self;
        let Some((weight, axis, channels)) = weight_of(graph, layer).filter(|_| takes(&graph.nodes[layer].op)) else {
            return false;
        };
        let Some(bias) = bias_of(graph, layer, channels).filter(|_| a.len() == channels) else { return false };
        // A weight that stays the same stays shared, too.
        if a.iter().any(|&a| a != 1.0) {
            let Some(weight) = scaled_weight(graph, &weight, axis, |c| a[c]) else { return false };
            graph.nodes[layer].inputs[1] = weight;
        }
        let bias = (0..channels).map(|c| (a[c] * f64::from(bias[c]) + b[c]) as f32).collect();
        let weight = graph.nodes[layer].inputs[1].clone();
        set_bias(graph, layer, &weight, Tensor::f32(&[channels], bias));
        true
    }
}

/// Whether `a·layer(x) + b` is a layer of the same kind with other weights.
fn takes(op: &Op) -> bool {
    match op {
        Op::Conv(_) => true,
        Op::ConvTranspose(conv) => conv.group == 1,
        Op::Gemm(gemm) => gemm.alpha == 1.0 && gemm.beta == 1.0,
        _ => false,
    }
}

/// The layer's weight name and the number of output channels along the axis that its quantization rule names.
pub(super) fn weight_of(graph: &Graph, layer: usize) -> Option<(String, usize, usize)> {
    let node = &graph.nodes[layer];
    let Role::Weight { channel_axis } = node.op.def().quant_rule().role(1) else { return None };
    let weight = node.input(1)?;
    let tensor = graph.constant(weight)?;
    tensor.as_f32()?;
    Some((weight.into(), channel_axis, *tensor.dims.get(channel_axis)?))
}

/// The layer's bias, zeros if it has none; `None` if it is not a constant with a number for each channel.
pub(super) fn bias_of(graph: &Graph, layer: usize, channels: usize) -> Option<Vec<f32>> {
    let Some(name) = graph.nodes[layer].input(2) else { return Some(vec![0.0; channels]) };
    graph.constant(name)?.as_f32().filter(|bias| bias.len() == channels).map(<[f32]>::to_vec)
}

/// Multiplies the weight along `axis` by `factor` and returns it as a new constant next to the old one.
pub(super) fn scaled_weight(
    graph: &mut Graph,
    name: &str,
    axis: usize,
    factor: impl Fn(usize) -> f64,
) -> Option<String> {
    let tensor = graph.constant(name)?.clone();
    let inner: usize = tensor.dims[axis + 1..].iter().product();
    let channels = tensor.dims[axis];
    let scaled = |(i, &w): (usize, &f32)| (f64::from(w) * factor(i / inner % channels)) as f32;
    let data = tensor.as_f32()?.iter().enumerate().map(scaled).collect();
    Some(store(graph, name, Tensor::f32(&tensor.dims, data)))
}

/// Stores a changed constant: under its old name if it is read once, else under a fresh one.
pub(super) fn store(graph: &mut Graph, name: &str, tensor: Tensor) -> String {
    let readings = graph.nodes.iter().flat_map(|node| &node.inputs).filter(|input| *input == name).count();
    let target = if readings == 1 { name.to_string() } else { graph.fresh_name(name) };
    graph.constants.insert(target.clone(), Arc::new(tensor));
    target
}

/// Gives `layer` a bias of its own, named after the old bias or the weight.
pub(super) fn set_bias(graph: &mut Graph, layer: usize, weight: &str, bias: Tensor) {
    let name = match graph.nodes[layer].input(2).map(String::from) {
        Some(old) => store(graph, &old, bias),
        None => {
            let fresh = graph.fresh_name(&format!("{weight}_bias"));
            graph.constants.insert(fresh.clone(), Arc::new(bias));
            fresh
        }
    };
    let inputs = &mut graph.nodes[layer].inputs;
    inputs.resize(inputs.len().max(3), String::new());
    inputs[2] = name;
}
