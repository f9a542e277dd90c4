//! Running a single operator in the unit tests of this folder.

use crate::{
    error::OpError,
    op::{Fact, Io, Layout, LayoutRule, Op, Slice, SliceMut},
    tensor::{DType, Data, Tensor},
};
use fewbits_kernels::{Threads, movement::Transpose};
use std::sync::Arc;

/// The outputs of `op` for `inputs`, all of which count as known ahead. An operator that works in either memory order is run in
/// both, and the results must be equal.
pub fn trial(op: impl Into<Op>, inputs: &[Option<Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let op = op.into();
    let facts: Vec<_> = inputs.iter().map(|t| t.clone().map(|t| Fact::constant(Arc::new(t)))).collect();
    let facts_in: Vec<_> = facts.iter().map(Option::as_ref).collect();
    let outs = op.def().infer(&facts_in)?;
    let plain = run(&op, &facts_in, inputs, &outs)?;
    let rank = outs[0].dims.len();
    if op.def().layout() == LayoutRule::Any && rank >= 3 {
        let moved = |fact: &Fact| match fact.dims.len() == rank {
            true => Fact { layout: Layout::ChannelsLast, ..fact.clone() },
            false => fact.clone(),
        };
        let facts: Vec<_> = facts.iter().map(|f| f.as_ref().map(moved)).collect();
        let outs: Vec<_> = outs.iter().map(moved).collect();
        let to_last = |t: &Tensor| if t.dims.len() == rank { permuted(t, &channels_last(rank)) } else { t.clone() };
        let inputs: Vec<_> = inputs.iter().map(|t| t.as_ref().map(to_last)).collect();
        let last = run(&op, &facts.iter().map(Option::as_ref).collect::<Vec<_>>(), &inputs, &outs)?;
        assert_eq!(last, plain.iter().map(to_last).collect::<Vec<_>>(), "channels-last {op:?}");
    }
    Ok(plain)
}

/// The first output of `op` for inputs that are all present.
pub fn first(op: impl Into<Op>, inputs: &[Tensor]) -> Result<Tensor, OpError> {
    let inputs: Vec<_> = inputs.iter().cloned().map(Some).collect();
    Ok(trial(op, &inputs)?.swap_remove(0))
}

/// `0, 1, 2, …` as floats.
pub fn iota(dims: &[usize]) -> Tensor {
    Tensor::f32(dims, (0..dims.iter().product::<usize>()).map(|i| i as f32).collect())
}

fn channels_last(rank: usize) -> Vec<usize> {
    [0].into_iter().chain(2..rank).chain([1]).collect()
}

fn permuted(tensor: &Tensor, perm: &[usize]) -> Tensor {
    macro_rules! each {
        ($($variant:ident)*) => {
            match &tensor.data {
                $(Data::$variant(x) => {
                    let mut out = x.clone();
                    Transpose::new(&tensor.dims, perm).run(&Threads::new(1), x, &mut out);
                    Data::$variant(out)
                })*
                Data::Raw { .. } => tensor.data.clone(),
            }
        };
    }
    let data = each!(F32 I64 I32 U8 I8 Bool);
    Tensor { dims: perm.iter().map(|&axis| tensor.dims[axis]).collect(), data }
}

fn run(op: &Op, facts: &[Option<&Fact>], inputs: &[Option<Tensor>], outs: &[Fact]) -> Result<Vec<Tensor>, OpError> {
    let kernel = op.def().build(facts, outs)?;
    let zeros = |fact: &Fact| Tensor { dims: fact.physical_dims(), data: zeros(fact) };
    let mut outputs: Vec<_> = outs.iter().map(zeros).collect();
    let ins: Vec<_> = inputs.iter().map(|t| t.as_ref().map_or(Slice::Absent, slice)).collect();
    let mut slices: Vec<_> = outputs.iter_mut().map(slice_mut).collect();
    let mut scratch = vec![0.0; kernel.scratch];
    kernel.run(&mut Io { threads: &Threads::new(1), ins: &ins, outs: &mut slices, scratch: &mut scratch });
    Ok(outputs)
}

fn zeros(fact: &Fact) -> Data {
    match fact.dtype {
        DType::F32 => Data::F32(vec![f32::NAN; fact.len()]),
        DType::I64 => Data::I64(vec![-77; fact.len()]),
        DType::I32 => Data::I32(vec![-77; fact.len()]),
        DType::U8 => Data::U8(vec![77; fact.len()]),
        DType::I8 => Data::I8(vec![-77; fact.len()]),
        DType::Bool => Data::Bool(vec![false; fact.len()]),
        DType::Raw(data_type) => Data::Raw { data_type, bytes: vec![] },
    }
}

fn slice(tensor: &Tensor) -> Slice<'_> {
    match &tensor.data {
        Data::F32(v) => Slice::F32(v),
        Data::I64(v) => Slice::I64(v),
        Data::I32(v) => Slice::I32(v),
        Data::U8(v) => Slice::U8(v),
        Data::I8(v) => Slice::I8(v),
        Data::Bool(v) => Slice::Bool(v),
        Data::Raw { .. } => Slice::Absent,
    }
}

fn slice_mut(tensor: &mut Tensor) -> SliceMut<'_> {
    match &mut tensor.data {
        Data::F32(v) => SliceMut::F32(v),
        Data::I64(v) => SliceMut::I64(v),
        Data::I32(v) => SliceMut::I32(v),
        Data::U8(v) => SliceMut::U8(v),
        Data::I8(v) => SliceMut::I8(v),
        Data::Bool(v) => SliceMut::Bool(v),
        Data::Raw { .. } => unreachable!("operators do not compute with raw data"),
    }
}
