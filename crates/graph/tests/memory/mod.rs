//! Tensors as kernels see them: samples with their place in memory, and slices.

use fewbits_graph::{
    DType, Data, Tensor,
    op::{Fact, Layout, LayoutRule, Op, Role, Sample, Slice, SliceMut},
    ops::REGISTRY,
};
use fewbits_kernels::{Threads, movement::Transpose};

/// Every sample: name of its operator, its index there.
pub fn indexed() -> impl Iterator<Item = (String, usize, Sample)> {
    REGISTRY.iter().flat_map(|(name, samples)| {
        samples().into_iter().enumerate().map(move |(index, sample)| (name.to_string(), index, sample))
    })
}

/// Gives the inputs and outputs of `op` their memory orders, as the executor does: data of lower rank gets leading ones, and
/// everything of the output's rank one order. False if the operator does not work in `layout`.
pub fn lay_out(op: &Op, facts: &mut [Option<Fact>], outs: &mut [Fact], layout: Layout) -> bool {
    let op = op.def();
    let rank = outs[0].dims.len();
    let spatial = facts.first().and_then(Option::as_ref).is_some_and(|x| x.dims.len() >= 3);
    let fits = match (op.layout(), layout) {
        (LayoutRule::ChannelsLast, Layout::Plain) => !spatial,
        (LayoutRule::ChannelsLast, Layout::ChannelsLast) => spatial,
        (LayoutRule::Plain, layout) => layout == Layout::Plain,
        (LayoutRule::Any, layout) => layout == Layout::Plain || rank >= 3,
    };
    if !fits {
        return false;
    }
    for (i, fact) in facts.iter_mut().enumerate() {
        let Some(fact) = fact else { continue };
        let follows = match op.layout() {
            LayoutRule::Any => {
                if op.quant_rule().role(i) == Role::Data && fact.dims.len() < rank {
                    fact.dims.splice(0..0, vec![1; rank - fact.dims.len()]);
                }
                fact.dims.len() == rank
            }
            LayoutRule::ChannelsLast => i == 0,
            LayoutRule::Plain => false,
        };
        fact.layout = if follows { layout } else { Layout::Plain };
    }
    outs.iter_mut().filter(|out| out.dims.len() >= 3).for_each(|out| out.layout = layout);
    true
}

/// The elements of `tensor` in the order that `fact` says.
pub fn stored(tensor: &Tensor, fact: &Fact) -> Tensor {
    to_memory(&Tensor { dims: fact.dims.clone(), data: tensor.data.clone() }, fact.layout)
}

/// The same elements in the order of `layout`.
pub fn to_memory(tensor: &Tensor, layout: Layout) -> Tensor {
    let rank = tensor.dims.len();
    let channels_last: Vec<usize> = [0].into_iter().chain(2..rank).chain([1]).collect();
    if layout == Layout::ChannelsLast && rank >= 3 { permuted(tensor, &channels_last) } else { tensor.clone() }
}

/// The axes of `tensor` in another order.
pub fn permuted(tensor: &Tensor, perm: &[usize]) -> Tensor {
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

/// A tensor in the order of memory, full of what no kernel would write.
pub fn unwritten(fact: &Fact) -> Tensor {
    let n = fact.dims.iter().product();
    let data = match fact.dtype {
        DType::F32 => Data::F32(vec![f32::NAN; n]),
        DType::I64 => Data::I64(vec![-77; n]),
        DType::I32 => Data::I32(vec![-77; n]),
        DType::U8 => Data::U8(vec![77; n]),
        DType::I8 => Data::I8(vec![-77; n]),
        DType::Bool => Data::Bool(vec![false; n]),
        DType::Raw(data_type) => Data::Raw { data_type, bytes: vec![] },
    };
    Tensor { dims: fact.physical_dims(), data }
}

pub fn slice(tensor: &Tensor) -> Slice<'_> {
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

pub fn slice_mut(tensor: &mut Tensor) -> SliceMut<'_> {
    match &mut tensor.data {
        Data::F32(v) => SliceMut::F32(v),
        Data::I64(v) => SliceMut::I64(v),
        Data::I32(v) => SliceMut::I32(v),
        Data::U8(v) => SliceMut::U8(v),
        Data::I8(v) => SliceMut::I8(v),
        Data::Bool(v) => SliceMut::Bool(v),
        Data::Raw { .. } => panic!("operators do not compute with raw data"),
    }
}
