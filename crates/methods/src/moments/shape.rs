//! A layer as a matrix product: which numbers of its input meet at one output position.

use crate::{Ground, Layer};
use fewbits_graph::{Graph, Op, Tensor, ops::window::Frame};

/// A convolution or a matrix product, seen as `groups` products of rows of `inputs` numbers with `outputs` columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Independent products.
    pub groups: usize,
    /// Numbers that one output of a group is computed from, `K`.
    pub inputs: usize,
    /// Outputs of a group.
    pub outputs: usize,
    /// Output positions of one run of the network.
    pub positions: usize,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Convolution {
        frame: Frame,
        channels: usize,
    },
    /// Weights `[N, K]` if transposed, else `[K, N]`.
    Product {
        transposed: bool,
    },
}

impl Shape {
    /// The shape of each of `layers`, as [`Shape::of`].
    pub fn all(ground: Ground<'_>, layers: &[Layer]) -> Vec<Option<Shape>> {
        layers.iter().map(|layer| Shape::of(ground.float, layer, &ground.facts.get(&layer.input)?.dims)).collect()
    }

    /// The shape of `layer` on inputs of dimensions `input`; `None` if it is no plain convolution or product.
    pub fn of(graph: &Graph, layer: &Layer, input: &[usize]) -> Option<Shape> {
        let weight = &graph.constant(&layer.weight)?.dims;
        match &graph.nodes[layer.node].op {
            Op::Conv(conv) => {
                let frame = conv.window.frame(input.get(2..)?, weight.get(2..)?, false).ok()?;
                let taps = frame.kernel[0] * frame.kernel[1];
                Some(Shape {
                    groups: conv.group,
                    inputs: weight[1] * taps,
                    outputs: weight[0] / conv.group,
                    positions: input[0] * frame.output[0] * frame.output[1],
                    kind: Kind::Convolution { frame, channels: input[1] },
                })
            }
            Op::Gemm(gemm) if !gemm.trans_a && gemm.alpha == 1.0 && gemm.beta == 1.0 => {
                let [rows, columns] = weight[..] else { return None };
                let (outputs, inputs) = if gemm.trans_b { (rows, columns) } else { (columns, rows) };
                let kind = Kind::Product { transposed: gemm.trans_b };
                Some(Shape { groups: 1, inputs, outputs, positions: *input.first()?, kind })
            }
            Op::MatMul(_) => {
                let [inputs, outputs] = weight[..] else { return None };
                let (width, rows) = input.split_last()?;
                let kind = Kind::Product { transposed: false };
                (*width == inputs).then(|| Shape { groups: 1, inputs, outputs, positions: rows.iter().product(), kind })
            }
            _ => None,
        }
    }

    /// All output channels.
    pub fn channels(&self) -> usize {
        self.groups * self.outputs
    }

    /// The weight as one row of `K` numbers for each output channel.
    pub fn rows(&self, weight: &[f32]) -> Vec<f32> {
        match self.kind {
            Kind::Product { transposed: false } => transpose(weight, self.inputs, self.outputs),
            _ => weight.to_vec(),
        }
    }

    /// The weight tensor with these rows.
    pub fn tensor(&self, dims: &[usize], rows: Vec<f32>) -> Tensor {
        match self.kind {
            Kind::Product { transposed: false } => Tensor::f32(dims, transpose(&rows, self.outputs, self.inputs)),
            _ => Tensor::f32(dims, rows),
        }
    }

    /// Writes the `K` numbers of `x` (plain order) that the outputs of `group` at `position` are computed from.
    pub fn gather(&self, x: &[f32], group: usize, position: usize, row: &mut [f32]) {
        let Kind::Convolution { frame, channels } = &self.kind else {
            return row.copy_from_slice(&x[position * self.inputs..][..self.inputs]);
        };
        let [height, width] = frame.input;
        let [oh, ow] = frame.output;
        let (image, place) = (position / (oh * ow), position % (oh * ow));
        let per_group = channels / self.groups;
        let planes = &x[(image * channels + group * per_group) * height * width..];
        let first = |axis: usize, at: usize| at * frame.stride[axis];
        let (top, left) = (first(0, place / ow), first(1, place % ow));
        let taps = frame.kernel[0] * frame.kernel[1];
        for tap in 0..taps {
            let y = top + tap / frame.kernel[1] * frame.dilation[0];
            let x = left + tap % frame.kernel[1] * frame.dilation[1];
            let inside = (frame.pads[0]..frame.pads[0] + height).contains(&y)
                && (frame.pads[1]..frame.pads[1] + width).contains(&x);
            let at = if inside { Some((y - frame.pads[0]) * width + x - frame.pads[1]) } else { None };
            for c in 0..per_group {
                row[c * taps + tap] = at.map_or(0.0, |at| planes[c * height * width + at]);
            }
        }
    }
}

fn transpose(matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|c| (0..rows).map(move |r| matrix[r * columns + c])).collect()
}
