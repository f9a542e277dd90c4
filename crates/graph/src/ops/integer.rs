//! What the integer kernels of these files share: grids as memory sees them, absorbed activations, quantized weights, tables.

use crate::{
    error::OpError,
    grid::{Granularity, QuantParams},
    op::{Activation, Fact, Kernel},
    ops::codes,
};
use fewbits_kernels::{
    chunks,
    int::{
        lookup::Table,
        quantize::{GridParams, quantize_value},
    },
};

/// The stored grid of `fact` if it holds codes of a per-tensor grid.
pub fn grid(fact: &Fact) -> Option<GridParams> {
    codes::stored(fact.grid.as_ref()?)
}

/// The stored grid of an output behind which `clamp` was absorbed. `None` if ONNX Runtime would not absorb it, which it does
/// where the clamp changes no number of the grid (ClipQuantFusion, ReluQuantFusion).
pub fn clamped(fact: &Fact, clamp: Activation) -> Option<GridParams> {
    let params = fact.grid.as_ref()?;
    let keeps = match clamp {
        Activation::Identity => true,
        Activation::Clamp { min, max } => {
            let (lowest, highest) = params.range(0);
            min - lowest <= f32::EPSILON && highest - max <= f32::EPSILON
        }
        _ => false,
    };
    codes::stored(params).filter(|_| keeps)
}

/// A constant weight on its grid.
pub struct WeightCodes {
    /// `code − zero_point` of every element, in the weight's order.
    pub steps: Vec<i32>,
    /// Step size of each output channel.
    pub scales: Vec<f32>,
}

impl WeightCodes {
    /// Quantizes the constant `fact`, whose output channels are `channel_axis`. `None` without value or grid, for a grid along
    /// another axis, and for blocks.
    pub fn new(fact: &Fact, channel_axis: usize) -> Option<Self> {
        let (params, weight) = (fact.grid.as_ref()?, fact.value.as_ref()?.as_f32()?);
        let channels = *fact.dims.get(channel_axis)?;
        let inner: usize = fact.dims[channel_axis + 1..].iter().product();
        let groups = match params.granularity {
            Granularity::Tensor => 1,
            Granularity::Channel { axis } if axis == channel_axis => channels,
            Granularity::Channel { .. } | Granularity::Block { .. } => return None,
        };
        if params.scale.len() != groups || params.zero_point.len() != groups || params.grid.bits > 8 {
            return None;
        }
        let group = |channel: usize| channel.min(groups - 1);
        let (qmin, qmax) = (params.grid.qmin(), params.grid.qmax());
        let step = |(i, &w): (usize, &f32)| {
            let group = group(i / inner % channels);
            let grid = GridParams { scale: params.scale[group], zero: params.zero_point[group], qmin, qmax };
            quantize_value(w, &grid) - grid.zero
        };
        Some(WeightCodes {
            steps: weight.iter().enumerate().map(step).collect(),
            scales: (0..channels).map(|c| params.scale[group(c)]).collect(),
        })
    }

    /// The steps as 8-bit numbers, if they all are.
    pub fn to_i8(&self) -> Option<Vec<i8>> {
        self.steps.iter().map(|&s| i8::try_from(s).ok()).collect()
    }

    /// `f32(x_scale · scale[c])`: the step size of the sums of each channel.
    pub fn sum_scales(&self, x_scale: f32) -> Vec<f32> {
        self.scales.iter().map(|s| x_scale * s).collect()
    }
}

/// A kernel that looks up each code of `x`: the code of `f(x)` on the output's grid.
pub fn lookup(x: &Fact, out: &Fact, f: impl Fn(f32) -> f32) -> Result<Option<Kernel>, OpError> {
    let (Some(x), Some(y)) = (grid(x), grid(out)) else { return Ok(None) };
    let table = Table::new(&x, &y, f);
    Ok(Some(Kernel::new(move |io| {
        let (threads, x) = (io.threads, io.u8(0));
        chunks::for_each_chunk(threads, io.out_u8(0), 1, 1, |first, y| table.run(&x[first..][..y.len()], y));
    })))
}

/// Whether two facts hold codes of the same grid, or neither does.
pub fn same_grid(a: &Fact, b: &Fact) -> bool {
    let stored = |params: &Option<QuantParams>| params.as_ref().map(codes::stored);
    stored(&a.grid) == stored(&b.grid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        grid::Grid,
        tensor::{DType, Tensor},
    };
    use std::sync::Arc;

    #[test]
    fn a_clamp_is_absorbed_only_where_it_changes_nothing() {
        let fact = |scale, zero_point| Fact {
            grid: Some(QuantParams::per_tensor(Grid::activations(8), scale, zero_point)),
            ..Fact::new(DType::U8, &[4])
        };
        let relu = Activation::Clamp { min: 0.0, max: f32::INFINITY };
        let relu6 = Activation::Clamp { min: 0.0, max: 6.0 };
        assert!(clamped(&fact(0.1, 0), relu).is_some());
        assert!(clamped(&fact(0.1, 1), relu).is_none());
        assert!(clamped(&fact(6.0 / 255.0, 0), relu6).is_some());
        assert!(clamped(&fact(0.1, 0), relu6).is_none());
        assert!(clamped(&fact(0.1, 0), Activation::Tanh).is_none());
        assert!(clamped(&fact(0.1, 3), Activation::Identity).is_some());
    }

    #[test]
    fn weights_are_quantized_along_their_channels() {
        let tensor = Tensor::f32(&[2, 3], vec![1.0, 2.0, 3.0, -0.6, 100.0, -9.0]);
        let mut fact = Fact::constant(Arc::new(tensor));
        fact.grid = Some(QuantParams::per_channel(Grid::weights(4), 1, vec![1.0, 2.0, 0.5]));
        let codes = WeightCodes::new(&fact, 1).expect("a constant with a grid");
        assert_eq!(codes.steps, [1, 1, 6, -1, 7, -7]);
        assert_eq!(codes.sum_scales(2.0), [2.0, 4.0, 1.0]);
        assert!(WeightCodes::new(&fact, 0).is_none());
        let unsigned = QuantParams::per_tensor(Grid::activations(8), 1.0, 128);
        fact.grid = Some(unsigned);
        assert_eq!(WeightCodes::new(&fact, 0).expect("per tensor").to_i8(), Some(vec![1, 2, 3, -1, 100, -9]));
    }
}
