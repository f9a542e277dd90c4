//! Work on tensors known before the run: folding nodes, rounding constants to their grids, changing memory order.

use super::program::{slice, slice_mut};
use crate::{
    error::OpError,
    grid::{Granularity, Grids, QuantParams},
    op::{Fact, Facts, Io, Layout, LayoutRule, Op},
    ops::codes,
    tensor::{DType, Data, Tensor},
};
use fewbits_kernels::{
    Threads,
    int::{self, quantize},
    movement::Transpose,
};
use std::sync::Arc;

/// The outputs of `op` on known inputs, in plain order; `None` if an input is unknown or the operator only works channels-last.
pub(crate) fn fold(op: &Op, ins: Facts, outs: &[Fact], threads: &Threads) -> Result<Option<Vec<Tensor>>, OpError> {
    let values: Option<Vec<_>> = ins.iter().map(|f| f.map_or(Some(None), |f| f.value.clone().map(Some))).collect();
    let Some(values) = values else { return Ok(None) };
    let raw = |fact: &Fact| matches!(fact.dtype, DType::Raw(_));
    if op.def().layout() == LayoutRule::ChannelsLast || outs.iter().any(raw) || ins.iter().flatten().any(|f| raw(f)) {
        return Ok(None);
    }
    let kernel = op.def().build(ins, outs)?;
    let slices: Vec<_> =
        values.iter().map(|v| v.as_ref().map_or(crate::op::Slice::Absent, |t| slice(&t.data, t.len()))).collect();
    let mut written: Vec<Tensor> = outs.iter().map(zeros).collect();
    let mut views: Vec<_> = written
        .iter_mut()
        .map(|t| {
            let len = t.len();
            slice_mut(&mut t.data, len)
        })
        .collect();
    let mut scratch = vec![0.0; kernel.scratch];
    kernel.run(&mut Io { threads, ins: &slices, outs: &mut views, scratch: &mut scratch });
    Ok(Some(written))
}

fn zeros(fact: &Fact) -> Tensor {
    let data = super::memory::Slot { dtype: fact.dtype, len: fact.len() }.allocate();
    Tensor { dims: fact.dims.clone(), data }
}

/// The same elements in channels-last memory order (`dims` then state the physical order).
pub(super) fn channels_last(tensor: &Tensor) -> Tensor {
    let rank = tensor.dims.len();
    let permutation: Vec<usize> = std::iter::once(0).chain(2..rank).chain([1]).collect();
    let (threads, plan) = (Threads::new(1), Transpose::new(&tensor.dims, &permutation));
    macro_rules! permuted {
        ($v:ident, $variant:ident, $zero:expr) => {{
            let mut out = vec![$zero; $v.len()];
            plan.run(&threads, $v, &mut out);
            Data::$variant(out)
        }};
    }
    let data = match &tensor.data {
        Data::F32(v) => permuted!(v, F32, 0.0),
        Data::I64(v) => permuted!(v, I64, 0),
        Data::I32(v) => permuted!(v, I32, 0),
        Data::U8(v) => permuted!(v, U8, 0),
        Data::I8(v) => permuted!(v, I8, 0),
        Data::Bool(v) => permuted!(v, Bool, false),
        raw @ Data::Raw { .. } => raw.clone(),
    };
    Tensor { dims: Layout::ChannelsLast.physical_dims(&tensor.dims), data }
}

/// The codes of a constant activation.
pub(super) fn quantized(tensor: &Tensor, grid: &int::GridParams) -> Option<Tensor> {
    let values = tensor.as_f32()?;
    let mut out = vec![0; values.len()];
    quantize::quantize(values, grid, &mut out);
    Some(Tensor::u8(&tensor.dims, out))
}

/// The constant `name` with every element rounded to the grid that `grids` give it; unchanged if they give none.
pub fn rounded_constant(name: &str, tensor: &Arc<Tensor>, grids: &Grids) -> Arc<Tensor> {
    let Some(values) = tensor.as_f32() else { return tensor.clone() };
    let mut out = values.to_vec();
    if let Some(params) = grids.params(name) {
        round_groups(&mut out, &tensor.dims, params);
    } else if let Some(scales) = grids.bias_scales(name) {
        let last = scales.len().saturating_sub(1);
        for (c, b) in out.iter_mut().enumerate() {
            let scale = scales[c.min(last)];
            *b = quantize::quantize_bias(&[*b], 1.0, &[scale])[0] as f32 * scale;
        }
    } else {
        return tensor.clone();
    }
    Arc::new(Tensor::f32(&tensor.dims, out))
}

fn round_groups(values: &mut [f32], dims: &[usize], params: &QuantParams) {
    let (axis, size) = match params.granularity {
        Granularity::Tensor => (0, dims.first().copied().unwrap_or(1)),
        Granularity::Channel { axis } => (axis, 1),
        Granularity::Block { axis, size } => (axis, size),
    };
    let inner: usize = dims.iter().skip(axis + 1).product();
    let count = dims.get(axis).copied().unwrap_or(1);
    for (row, chunk) in values.chunks_mut(inner.max(1)).enumerate() {
        let group = (row % count.max(1)) / size.max(1);
        let group = group.min(params.scale.len().saturating_sub(1));
        let grid = int::GridParams {
            scale: params.scale[group],
            zero: params.zero_point[group],
            qmin: params.grid.qmin(),
            qmax: params.grid.qmax(),
        };
        quantize::fake_quantize_in_place(chunk, &grid);
    }
}

/// The stored form of the grid of tensor `name`, if it has one.
pub(super) fn stored_grid<'g>(grids: &'g Grids, name: &str) -> Option<(&'g QuantParams, int::GridParams)> {
    let params = grids.params(name)?;
    codes::stored(params).map(|grid| (params, grid))
}
