//! Which numbers a quantized tensor can hold: grids, scales and zero points. Values only; `fewbits-kernels` does the arithmetic.
//!
//! `quantize(x) = clamp(round_ties_even(x / scale) + zero_point, qmin, qmax)`, `dequantize(q) = (q − zero_point) · scale`
//! (ONNX QuantizeLinear / DequantizeLinear).

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The integers that exist: `bits` wide, signed or not; `narrow` leaves out the lowest signed code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grid {
    /// Width in bits, 2–8 for weights and activations, 32 for biases.
    pub bits: u8,
    /// Two's complement if true.
    pub signed: bool,
    /// Drops the lowest signed code, so that the range is symmetric (−127…127 at 8 bits).
    pub narrow: bool,
}

impl Grid {
    /// The grid of 8-bit-container weights: signed, narrow.
    pub const fn weights(bits: u8) -> Self {
        Grid { bits, signed: true, narrow: true }
    }

    /// The grid of unsigned activations.
    pub const fn activations(bits: u8) -> Self {
        Grid { bits, signed: false, narrow: false }
    }

    /// Lowest code.
    pub const fn qmin(self) -> i32 {
        match (self.signed, self.narrow) {
            (false, _) => 0,
            (true, false) => (-1i64 << (self.bits - 1)) as i32,
            (true, true) => -(((1i64 << (self.bits - 1)) - 1) as i32),
        }
    }

    /// Highest code.
    pub const fn qmax(self) -> i32 {
        if self.signed { ((1i64 << (self.bits - 1)) - 1) as i32 } else { ((1i64 << self.bits) - 1) as i32 }
    }

    /// Number of steps between the lowest and the highest code.
    pub const fn steps(self) -> i32 {
        self.qmax() - self.qmin()
    }
}

/// How far one scale reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Granularity {
    /// One scale for the whole tensor.
    Tensor,
    /// One scale for each index along `axis`.
    Channel {
        /// The channel axis.
        axis: usize,
    },
    /// One scale for each block of `size` elements along `axis`.
    Block {
        /// The blocked axis.
        axis: usize,
        /// Elements per block.
        size: usize,
    },
}

/// `real = scale · (code − zero_point)`; one entry per group of the granularity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuantParams {
    /// Which integers exist.
    pub grid: Grid,
    /// How many groups there are.
    pub granularity: Granularity,
    /// Step sizes, all positive and finite.
    pub scale: Vec<f32>,
    /// Codes of real zero.
    pub zero_point: Vec<i32>,
}

impl QuantParams {
    /// One scale and zero point for the whole tensor.
    pub fn per_tensor(grid: Grid, scale: f32, zero_point: i32) -> Self {
        QuantParams { grid, granularity: Granularity::Tensor, scale: vec![scale], zero_point: vec![zero_point] }
    }

    /// Symmetric scales along `axis`, zero points 0.
    pub fn per_channel(grid: Grid, axis: usize, scale: Vec<f32>) -> Self {
        let zero_point = vec![0; scale.len()];
        QuantParams { grid, granularity: Granularity::Channel { axis }, scale, zero_point }
    }

    /// The single scale and zero point, if the granularity is per tensor.
    pub fn tensor_params(&self) -> Option<(f32, i32)> {
        match (self.granularity, &self.scale[..], &self.zero_point[..]) {
            (Granularity::Tensor, [s], [z]) => Some((*s, *z)),
            _ => None,
        }
    }

    /// The real interval that the codes of group `i` span.
    pub fn range(&self, i: usize) -> (f32, f32) {
        let real = |q: i32| (q - self.zero_point[i]) as f32 * self.scale[i];
        (real(self.grid.qmin()), real(self.grid.qmax()))
    }
}

/// What a tensor is quantized to. Every tensor is in exactly one of these states; a tensor without an entry is [`TensorQuant::Float`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TensorQuant {
    /// Stays float.
    Float,
    /// Has a grid of its own.
    Quantized(QuantParams),
    /// Shares the grid of another tensor (MaxPool, Reshape …).
    SameAs(String),
    /// A bias: 32-bit, scale `f32(scale_input · scale_weight[c])`, zero point 0.
    BiasOf {
        /// The activation multiplied with the weight.
        input: String,
        /// The weight.
        weight: String,
    },
}

/// The quantization of a graph: tensor name → state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Grids(pub BTreeMap<String, TensorQuant>);

impl Grids {
    /// The tensor whose grid `name` has: itself, unless it shares another's.
    pub fn owner<'a>(&'a self, name: &'a str) -> &'a str {
        let mut name = name;
        for _ in 0..self.0.len() {
            let Some(TensorQuant::SameAs(other)) = self.0.get(name) else { break };
            name = other;
        }
        name
    }

    /// The parameters of `name`, following `SameAs`; `None` for float tensors, biases and cycles.
    pub fn params(&self, name: &str) -> Option<&QuantParams> {
        match self.0.get(self.owner(name))? {
            TensorQuant::Quantized(params) => Some(params),
            TensorQuant::SameAs(_) | TensorQuant::Float | TensorQuant::BiasOf { .. } => None,
        }
    }

    /// Scales of a bias, `f32(scale_input · scale_weight[c])`; `None` if `name` is not the bias of two quantized tensors.
    pub fn bias_scales(&self, name: &str) -> Option<Vec<f32>> {
        let Some(TensorQuant::BiasOf { input, weight }) = self.0.get(name) else { return None };
        let (input_scale, _) = self.params(input)?.tensor_params()?;
        Some(self.params(weight)?.scale.iter().map(|s| input_scale * s).collect())
    }
}
