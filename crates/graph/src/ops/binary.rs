//! Elementwise arithmetic of two tensors, broadcast against each other.

use crate::{
    attrs::Attrs,
    error::OpError,
    op::{Activation, Fact, Facts, Kernel, LayoutRule, OpDef, OpFile, Pass, QuantRule, Sample, Want, required},
    ops::{
        backward::{Elementwise, Source},
        broadcast::{self, broadcast_dims},
        integer,
        samples::sample,
    },
    tensor::{DType, Tensor},
};
use fewbits_kernels::int::elementwise::{Affine, QAdd, QMul};

fn infer(ins: Facts) -> Result<Vec<Fact>, OpError> {
    let (a, b) = (required(ins, 0)?, required(ins, 1)?);
    if a.dtype != b.dtype {
        return Err(OpError::DType { index: 1, expected: a.dtype, found: b.dtype });
    }
    Ok(vec![Fact::new(a.dtype, &broadcast_dims(&a.dims, &b.dims)?)])
}

/// A kernel with one function for floats and one for each integer type; integers wrap.
macro_rules! arithmetic {
    ($ins:ident, $outs:ident, $float:expr, $wrapping:ident) => {{
        let walk = broadcast::walk(required($ins, 0)?, required($ins, 1)?, &$outs[0]);
        macro_rules! kernel {
            ($get:ident, $out:ident, $f:expr) => {
                Kernel::new(move |io| {
                    let (threads, a, b) = (io.threads, io.$get(0), io.$get(1));
                    walk.map(threads, a, b, io.$out(0), $f);
                })
            };
        }
        Ok(match $outs[0].dtype {
            DType::F32 => kernel!(f32, out_f32, $float),
            DType::I64 => kernel!(i64, out_i64, i64::$wrapping),
            DType::I32 => kernel!(i32, out_i32, i32::$wrapping),
            DType::U8 => kernel!(u8, out_u8, u8::$wrapping),
            DType::I8 => kernel!(i8, out_i8, i8::$wrapping),
            found @ (DType::Bool | DType::Raw(_)) => {
                return Err(OpError::DType { index: 0, expected: DType::F32, found });
            }
        })
    }};
}

/// Division as integer tensors need it: no panic where the divisor is 0 (the result is then 0; ONNX leaves it open).
trait DivideOrZero {
    fn divide_or_zero(self, by: Self) -> Self;
}

macro_rules! divide_or_zero {
    ($($ty:ty)*) => {
        $(impl DivideOrZero for $ty {
            fn divide_or_zero(self, by: Self) -> Self {
                if by == 0 { 0 } else { self.wrapping_div(by) }
            }
        })*
    };
}
divide_or_zero! { i64 i32 u8 i8 }

/// Integer arithmetic of two quantized tensors.
#[derive(Clone, Copy)]
enum Quantized {
    Add(QAdd),
    Mul(QMul),
}

impl Quantized {
    fn run(&self, a: &[u8], b: &[u8], y: &mut [u8]) {
        match self {
            Quantized::Add(op) => op.run(a, b, y),
            Quantized::Mul(op) => op.run(a, b, y),
        }
    }

    fn run_scalar(&self, a: &[u8], b: u8, y: &mut [u8]) {
        match self {
            Quantized::Add(op) => op.run_scalar(a, b, y),
            Quantized::Mul(op) => op.run_scalar(a, b, y),
        }
    }
}

type Make = fn(Affine, Affine, Affine) -> Quantized;

/// The kernel of QLinearAdd or QLinearMul; `None` for operators that have no integer form.
fn integer_kernel(ins: Facts, out: &Fact, clamp: Activation, make: Option<Make>) -> Result<Option<Kernel>, OpError> {
    let (a, b) = (required(ins, 0)?, required(ins, 1)?);
    let grids = (make, integer::grid(a), integer::grid(b), integer::clamped(out, clamp));
    let (Some(make), Some(left), Some(right), Some(y)) = grids else { return Ok(None) };
    let [left, right, sum] = [left, right, y].map(|grid| Affine { scale: grid.scale, zero: grid.zero as u8 });
    // ONNX Runtime exchanges the operands where the first is one number for a whole run of the second.
    let exchange = a.dims.last().is_none_or(|&d| d == 1) && b.dims.last().is_some_and(|&d| d != 1);
    let (op, order) = if exchange { (make(right, left, sum), [1, 0]) } else { (make(left, right, sum), [0, 1]) };
    let (qmin, qmax) = (y.qmin as u8, y.qmax as u8);
    let walk = broadcast::walk(a, b, out);
    Ok(Some(Kernel::new(move |io| {
        let (threads, operands) = (io.threads, order.map(|i| io.u8(i)));
        walk.for_each_row(threads, io.out_u8(0), |starts, steps, y| {
            let [a, b] = [0, 1].map(|i| &operands[i][starts[order[i]]..]);
            match order.map(|i| steps[i]) {
                [1, 1] => op.run(&a[..y.len()], &b[..y.len()], y),
                [1, 0] => op.run_scalar(&a[..y.len()], b[0], y),
                [s, t] => {
                    let [a, b] =
                        [(a, s), (b, t)].map(|(x, step)| (0..y.len()).map(|i| x[i * step]).collect::<Vec<_>>());
                    op.run(&a, &b, y);
                }
            }
            if (qmin, qmax) != (0, 255) {
                y.iter_mut().for_each(|y| *y = (*y).clamp(qmin, qmax));
            }
        });
    })))
}

macro_rules! binary {
    ($($(#[$meta:meta])* $Name:ident: $float:expr, $wrapping:ident, $integer:expr, $derivatives:expr;)*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $Name;

        impl OpDef for $Name {
            fn attrs(&self) -> Attrs {
                Attrs::default()
            }

            fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
                infer(ins)
            }

            fn layout(&self) -> LayoutRule {
                LayoutRule::Any
            }

            fn build(&self, ins: Facts, outs: &[Fact]) -> Result<Kernel, OpError> {
                arithmetic!(ins, outs, $float, $wrapping)
            }

            fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
                let derivatives: fn(Elementwise) -> Result<Elementwise, OpError> = $derivatives;
                derivatives(Elementwise::new(ins, outs, wants))?.pass()
            }

            fn build_integer(&self, ins: Facts, outs: &[Fact], clamp: Activation) -> Result<Option<Kernel>, OpError> {
                integer_kernel(ins, &outs[0], clamp, $integer)
            }

            fn quant_rule(&self) -> QuantRule {
                QuantRule::data()
            }
        }

        impl OpFile for $Name {
            const NAME: &'static str = stringify!($Name);

            fn from_attrs(_attrs: &Attrs) -> Result<Self, OpError> {
                Ok($Name)
            }

            fn samples() -> Vec<Sample> {
                let ints = |dims: &[usize], v: &[i64]| Some(Tensor::i64(dims, v.to_vec()));
                let shapes: [[&[usize]; 2]; 5] = [
                    [&[2, 3, 4, 5], &[2, 3, 4, 5]],
                    [&[2, 3, 4, 5], &[3, 1, 1]],
                    [&[1, 3, 1, 1], &[2, 3, 4, 5]],
                    [&[4, 1], &[5]],
                    [&[3, 2], &[]],
                ];
                let mut samples: Vec<_> = shapes.iter().map(|dims| sample($Name, dims)).collect();
                let inputs = vec![ints(&[3], &[7, -9, 8]), ints(&[1], &[2])];
                samples.push(Sample { op: $Name.into(), inputs });
                samples
            }
        }
    )*};
}

binary! {
    /// `y = a + b`; `da = db = dy`
    Add: |a, b| a + b, wrapping_add, Some(|a, b, y| Quantized::Add(QAdd::new(a, b, y))), |pass| {
        pass.toward(0, [Source::Gradient; 2], |_, _, dy| dy)?.toward(1, [Source::Gradient; 2], |_, _, dy| dy)
    };
    /// `y = a − b`; `da = dy`, `db = −dy`
    Sub: |a, b| a - b, wrapping_sub, None, |pass| {
        pass.toward(0, [Source::Gradient; 2], |_, _, dy| dy)?.toward(1, [Source::Gradient; 2], |_, _, dy| -dy)
    };
    /// `y = a · b`; `da = b · dy`, `db = a · dy`
    Mul: |a, b| a * b, wrapping_mul, Some(|a, b, y| Quantized::Mul(QMul::new(a, b, y))), |pass| {
        pass.toward(0, [Source::Input(1), Source::Gradient], |b, _, dy| b * dy)?
            .toward(1, [Source::Input(0), Source::Gradient], |a, _, dy| a * dy)
    };
    /// `y = a / b`; integers are cut towards zero. `da = dy / b`, `db = −y · dy / b`
    Div: |a, b| a / b, divide_or_zero, None, |pass| {
        pass.toward(0, [Source::Input(1), Source::Gradient], |b, _, dy| dy / b)?
            .toward(1, [Source::Input(1), Source::Output], |b, y, dy| -y * dy / b)
    };
}
