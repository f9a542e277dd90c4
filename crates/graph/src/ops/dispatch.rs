//! Kernels that move elements of any type about: the choice of the type when a kernel is made, and the common parts of such operators.

use crate::{
    error::OpError,
    op::{Activation, Fact, Facts, Io, Kernel, Layout, OpDef, required},
    tensor::{DType, Tensor},
};
use fewbits_kernels::movement::Take;

/// An element type that kernels can move.
pub(super) trait Element: Copy + Default + Send + Sync + 'static {
    /// Input `i`.
    fn input<'a>(io: &Io<'a>, i: usize) -> &'a [Self];
    /// Output `i`.
    fn output<'a>(io: &'a mut Io<'_>, i: usize) -> &'a mut [Self];
    /// The elements of a tensor of this type.
    fn of(tensor: &Tensor) -> Option<&[Self]>;
}

macro_rules! elements {
    ($($ty:ty, $input:ident, $output:ident, $of:ident;)*) => {
        $(impl Element for $ty {
            fn input<'a>(io: &Io<'a>, i: usize) -> &'a [Self] {
                io.$input(i)
            }
            fn output<'a>(io: &'a mut Io<'_>, i: usize) -> &'a mut [Self] {
                io.$output(i)
            }
            fn of(tensor: &Tensor) -> Option<&[Self]> {
                tensor.$of()
            }
        })*
    };
}
elements! {
    f32, f32, out_f32, as_f32;
    i64, i64, out_i64, as_i64;
    i32, i32, out_i32, as_i32;
    u8, u8, out_u8, as_u8;
    i8, i8, out_i8, as_i8;
    bool, bool, out_bool, as_bool;
}

/// `with_element!(dtype, T => expression)`: the expression with `T` as the Rust type of `dtype`; returns
/// [`OpError::Unsupported`] from the function around it if there is none.
macro_rules! with_element {
    ($dtype:expr, $T:ident => $body:expr) => {{
        macro_rules! of_type {
            ($ty:ty) => {{
                type $T = $ty;
                $body
            }};
        }
        match $dtype {
            DType::F32 => of_type!(f32),
            DType::I64 => of_type!(i64),
            DType::I32 => of_type!(i32),
            DType::U8 => of_type!(u8),
            DType::I8 => of_type!(i8),
            DType::Bool => of_type!(bool),
            DType::Raw(_) => return Err($crate::ops::dispatch::untyped($dtype)),
        }
    }};
}
pub(super) use with_element;

/// The error for a type that Fewbits carries through but does not compute with.
pub(super) fn untyped(dtype: DType) -> OpError {
    OpError::Unsupported(format!("elements of {dtype}"))
}

/// A kernel that copies input 0 to output 0.
pub(super) fn copy(fact: &Fact) -> Result<Kernel, OpError> {
    Ok(with_element!(fact.dtype, T => Kernel::new(|io| {
        let x = T::input(io, 0);
        T::output(io, 0).copy_from_slice(x);
    })))
}

/// For each logical axis, which of its indices are picked; `None` picks all.
pub(crate) type Tables = Vec<Option<Vec<usize>>>;

/// A kernel that picks elements of input 0 by one index table per logical axis. Places without a source get the only
/// element of `fill`, or zero.
pub(super) fn take(input: &Fact, tables: Tables, fill: Option<&Tensor>) -> Result<Kernel, OpError> {
    let take = Take::new(&input.physical_dims(), &physical(input.layout, tables));
    Ok(with_element!(input.dtype, T => {
        let fill = fill.and_then(T::of).and_then(|v| v.first().copied()).unwrap_or_default();
        Kernel::new(move |io| {
            let (threads, x) = (io.threads, T::input(io, 0));
            take.run(threads, x, fill, T::output(io, 0));
        })
    }))
}

/// Things that belong to the logical axes, in the order of memory.
pub(super) fn physical<X: Default>(layout: Layout, mut logical: Vec<X>) -> Vec<X> {
    let order = layout.physical_dims(&(0..logical.len()).collect::<Vec<_>>());
    order.into_iter().map(|axis| std::mem::take(&mut logical[axis])).collect()
}

/// The integer kernel of an operator that moves elements: its own kernel on the codes, if nothing changes them.
pub(super) fn move_codes(
    op: &dyn OpDef,
    ins: Facts,
    outs: &[Fact],
    clamp: Activation,
) -> Result<Option<Kernel>, OpError> {
    let grid = &required(ins, 0)?.grid;
    if clamp == Activation::Identity && outs.iter().all(|out| out.grid == *grid) {
        op.build(ins, outs).map(Some)
    } else {
        Ok(None)
    }
}
