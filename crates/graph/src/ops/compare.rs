//! Comparisons of two tensors, broadcast against each other: Equal, Less and their kin, Min and Max, And and Or.

use super::{
    backward::{self, Elementwise, Source},
    broadcast::{self, broadcast_dims},
    dispatch::{Element, copy, with_element},
    samples::sample,
};
use crate::{
    attrs::Attrs,
    error::OpError,
    op::{Fact, Facts, Kernel, LayoutRule, OpDef, OpFile, Pass, Sample, Want, expect_dtype, required},
    tensor::{DType, Tensor},
};

/// Type of the inputs and common shape of the first two.
fn operands(ins: Facts) -> Result<(DType, Vec<usize>), OpError> {
    let (a, b) = (required(ins, 0)?, required(ins, 1)?);
    expect_dtype(ins, 1, a.dtype)?;
    Ok((a.dtype, broadcast_dims(&a.dims, &b.dims)?))
}

/// `y[i] = f(a[i], b[i])`
fn pairwise<T: Element, O: Element>(
    ins: Facts,
    out: &Fact,
    f: impl Fn(T, T) -> O + Copy + Send + Sync + 'static,
) -> Result<Kernel, OpError> {
    let walk = broadcast::walk(required(ins, 0)?, required(ins, 1)?, out);
    Ok(Kernel::new(move |io| {
        let (threads, a, b) = (io.threads, T::input(io, 0), T::input(io, 1));
        walk.map(threads, a, b, O::output(io, 0), f);
    }))
}

macro_rules! pairs {
    ($($(#[$meta:meta])* $Name:ident: $infer:expr, $build:expr, $samples:expr $(, $backward:expr)?;)*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $Name;

        impl OpDef for $Name {
            fn attrs(&self) -> Attrs {
                Attrs::default()
            }

            fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
                let infer: fn(Facts) -> Result<Fact, OpError> = $infer;
                Ok(vec![infer(ins)?])
            }

            fn layout(&self) -> LayoutRule {
                LayoutRule::Any
            }

            fn build(&self, ins: Facts, outs: &[Fact]) -> Result<Kernel, OpError> {
                let build: fn(Facts, &Fact) -> Result<Kernel, OpError> = $build;
                build(ins, &outs[0])
            }

            $(fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
                $backward(ins, outs, wants)
            })?
        }

        impl OpFile for $Name {
            const NAME: &'static str = stringify!($Name);

            fn from_attrs(_attrs: &Attrs) -> Result<Self, OpError> {
                Ok($Name)
            }

            fn samples() -> Vec<Sample> {
                $samples($Name.into())
            }
        }
    )*};
}

fn verdict(ins: Facts) -> Result<Fact, OpError> {
    let (dtype, dims) = operands(ins)?;
    with_element!(dtype, T => { let _ = T::default(); });
    Ok(Fact::new(DType::Bool, &dims))
}

fn logic(ins: Facts) -> Result<Fact, OpError> {
    expect_dtype(ins, 0, DType::Bool)?;
    verdict(ins)
}

fn extreme(ins: Facts) -> Result<Fact, OpError> {
    match ins.len() {
        1 => required(ins, 0).map(|x| Fact::new(x.dtype, &x.dims)),
        2 => operands(ins).map(|(dtype, dims)| Fact::new(dtype, &dims)),
        n => Err(OpError::Unsupported(format!("{n} operands"))),
    }
}

/// A tensor of each kind against another that stretches.
fn numbers(op: crate::Op) -> Vec<Sample> {
    let ints = |dims: &[usize], v: &[i64]| Some(Tensor::i64(dims, v.to_vec()));
    vec![
        sample(op.clone(), &[&[2, 3, 2, 2], &[3, 1, 1]]),
        Sample { op, inputs: vec![ints(&[2, 2], &[1, -2, 3, 4]), ints(&[2], &[3, -2])] },
    ]
}

fn flags(op: crate::Op) -> Vec<Sample> {
    let flags = |dims: &[usize], v: &[bool]| Some(Tensor::bool(dims, v.to_vec()));
    vec![Sample { op, inputs: vec![flags(&[2, 2], &[true, false, true, false]), flags(&[2, 1], &[true, false])] }]
}

macro_rules! comparison {
    ($method:ident) => {
        |ins, out| with_element!(operands(ins)?.0, T => pairwise(ins, out, |a: T, b: T| a.$method(&b)))
    };
}

/// Keeps the operand that `$than` prefers; NaN wins.
macro_rules! extreme {
    ($than:tt) => {
        |ins, out| match ins.len() {
            1 => copy(out),
            _ => with_element!(out.dtype, T => pairwise(ins, out, |a: T, b: T| {
                if a $than b || a != a { a } else { b }
            })),
        }
    };
}

/// The gradient goes to the operand that `$than` prefers; equal ones get half of it each.
macro_rules! extreme_backward {
    ($than:tt) => {
        |ins: Facts, outs, wants| {
            let own = |own: f32, other: f32, dy: f32| {
                if own == other { dy / 2.0 } else if own $than other { dy } else { 0.0 }
            };
            match ins.len() {
                1 => backward::copy(ins, outs, wants),
                _ => Elementwise::new(ins, outs, wants)
                    .toward(0, [Source::Input(0), Source::Input(1)], own)?
                    .toward(1, [Source::Input(1), Source::Input(0)], own)?
                    .pass(),
            }
        }
    };
}

pairs! {
    /// `y = a == b`
    Equal: verdict, comparison!(eq), numbers;
    /// `y = a > b`
    Greater: verdict, comparison!(gt), numbers;
    /// `y = a >= b`
    GreaterOrEqual: verdict, comparison!(ge), numbers;
    /// `y = a < b`
    Less: verdict, comparison!(lt), numbers;
    /// `y = a <= b`
    LessOrEqual: verdict, comparison!(le), numbers;
    /// `y = a and b`
    And: logic, |ins, out| pairwise(ins, out, |a: bool, b: bool| a & b), flags;
    /// `y = a or b`
    Or: logic, |ins, out| pairwise(ins, out, |a: bool, b: bool| a | b), flags;
    /// The smaller of one or two operands; NaN if any is. The gradient goes there; equal operands get half of it each.
    Min: extreme, extreme!(<), numbers, extreme_backward!(<);
    /// The larger of one or two operands; NaN if any is. The gradient goes there; equal operands get half of it each.
    Max: extreme, extreme!(>), numbers, extreme_backward!(>);
}

#[cfg(test)]
mod tests {
    use super::super::{Op, trial::first};
    use super::*;

    #[test]
    fn floats_compare_with_broadcasting() {
        let (a, b) = (Tensor::f32(&[3], vec![1.0, 2.0, f32::NAN]), Tensor::f32(&[], vec![2.0]));
        let cases: [(Op, [bool; 3]); 5] = [
            (Equal.into(), [false, true, false]),
            (Greater.into(), [false, false, false]),
            (GreaterOrEqual.into(), [false, true, false]),
            (Less.into(), [true, false, false]),
            (LessOrEqual.into(), [true, true, false]),
        ];
        for (op, expected) in cases {
            let name = op.name().to_string();
            assert_eq!(first(op, &[a.clone(), b.clone()]).unwrap(), Tensor::bool(&[3], expected.to_vec()), "{name}");
        }
        for (op, expected) in [(Op::from(Min), [1.0, 2.0]), (Max.into(), [2.0, 2.0])] {
            for pair in [[a.clone(), b.clone()], [b.clone(), a.clone()]] {
                let y = first(op.clone(), &pair).unwrap();
                let y = y.as_f32().unwrap();
                assert!(y[..2] == expected && y[2].is_nan(), "{op:?} {y:?}");
            }
        }
    }

    #[test]
    fn other_types_and_misfits() {
        let ints = |v: [i64; 2]| Tensor::i64(&[2], v.to_vec());
        assert_eq!(first(Max, &[ints([1, 5]), ints([3, -5])]).unwrap(), ints([3, 5]));
        assert_eq!(first(Min, &[ints([1, 5])]).unwrap(), ints([1, 5]));
        assert!(first(Min, &[ints([1, 5]), ints([1, 5]), ints([1, 5])]).is_err());
        assert!(first(Less, &[ints([1, 5]), Tensor::f32(&[2], vec![1.0, 2.0])]).is_err());
        let flags = |v: [bool; 2]| Tensor::bool(&[2], v.to_vec());
        assert_eq!(first(And, &[flags([true, true]), flags([true, false])]).unwrap(), flags([true, false]));
        assert_eq!(first(Or, &[flags([false, true]), flags([false, false])]).unwrap(), flags([false, true]));
        assert!(first(And, &[ints([1, 0]), ints([1, 0])]).is_err());
    }
}
