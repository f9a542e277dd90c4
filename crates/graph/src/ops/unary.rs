//! Elementwise functions of one tensor that stay float: of shapes and boxes (Abs, Ceil, Floor, Neg, Not, Reciprocal, Round, Sqrt),
//! and smooth activations (Erf, Log, Mish, Softplus).

use super::{
    backward::{self, Source},
    dispatch::{Element, untyped},
    samples::varied,
};
use crate::{
    attrs::Attrs,
    error::OpError,
    op::{Fact, Facts, Kernel, LayoutRule, OpDef, OpFile, Pass, Sample, Want, required},
    tensor::{DType, Tensor},
};
use fewbits_kernels::chunks::for_each_chunk;

/// `y[i] = f(x[i])`
fn map<T: Element>(f: impl Fn(T) -> T + Copy + Send + Sync + 'static) -> Kernel {
    Kernel::new(move |io| {
        let (threads, x) = (io.threads, T::input(io, 0));
        for_each_chunk(threads, T::output(io, 0), 1, 1, |first, y| {
            y.iter_mut().zip(&x[first..]).for_each(|(y, &x)| *y = f(x));
        });
    })
}

/// The error function, within 1.2e-7: `1 − t · e^(−x² + p(t))` with `t = 1 / (1 + |x| / 2)` and the polynomial of Numerical Recipes
/// (Press et al., 2nd edition, §6.2), in f64.
pub(super) fn erf(x: f32) -> f32 {
    const P: [f64; 10] = [
        0.17087277,
        -0.82215223,
        1.48851587,
        -1.13520398,
        0.27886807,
        -0.18628806,
        0.09678418,
        0.37409196,
        1.00002368,
        -1.26551223,
    ];
    let z = f64::from(x).abs();
    let t = 1.0 / (1.0 + z / 2.0);
    let p = P.iter().fold(0.0, |p, coefficient| p * t + coefficient);
    (1.0 - t * (p - z * z).exp()).copysign(f64::from(x)) as f32
}

/// `ln(1 + e^x)`, without overflow.
fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `σ(x) = 1 / (1 + e^−x)`
fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn mish_slope(x: f32, dy: f32) -> f32 {
    let t = softplus(x).tanh();
    (t + x * logistic(x) * (1.0 - t * t)) * dy
}

macro_rules! unary {
    ($($(#[$meta:meta])* $Name:ident $([$read:expr, $derivative:expr])?: $($DType:ident => $f:expr),+;)*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $Name;

        impl OpDef for $Name {
            fn attrs(&self) -> Attrs {
                Attrs::default()
            }

            fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
                let x = required(ins, 0)?;
                match x.dtype {
                    $(DType::$DType)|+ => Ok(vec![Fact::new(x.dtype, &x.dims)]),
                    other => Err(untyped(other)),
                }
            }

            fn layout(&self) -> LayoutRule {
                LayoutRule::Any
            }

            fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
                match required(ins, 0)?.dtype {
                    $(DType::$DType => Ok(map($f)),)+
                    other => Err(untyped(other)),
                }
            }

            $(fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
                backward::map(ins, outs, wants, $read, $derivative)
            })?
        }

        impl OpFile for $Name {
            const NAME: &'static str = stringify!($Name);

            fn from_attrs(_attrs: &Attrs) -> Result<Self, OpError> {
                Ok($Name)
            }

            fn samples() -> Vec<Sample> {
                let inputs = [
                    varied(&[1, 3, 2, 2], 1),
                    Tensor::i64(&[3], vec![-4, 0, 9]),
                    Tensor::i32(&[3], vec![-4, 0, 9]),
                    Tensor::bool(&[2], vec![true, false]),
                ];
                let accepted = inputs.into_iter().filter(|t| matches!(t.dtype(), $(DType::$DType)|+));
                accepted.map(|t| Sample { op: $Name.into(), inputs: vec![Some(t)] }).collect()
            }
        }
    )*};
}

unary! {
    /// The magnitude; that of the lowest integer wraps to itself. `dx = sign(x) · dy`, 0 at 0
    Abs [Source::Input(0), |x, dy| if x > 0.0 { dy } else if x < 0.0 { -dy } else { 0.0 }]:
        F32 => f32::abs, I64 => i64::wrapping_abs, I32 => i32::wrapping_abs;
    /// The next integer upwards.
    Ceil: F32 => f32::ceil;
    /// `y = 2/√π · ∫₀ˣ e^−t² dt`; `dx = 2/√π · e^−x² · dy`
    Erf [Source::Input(0), |x, dy| std::f32::consts::FRAC_2_SQRT_PI * (-x * x).exp() * dy]: F32 => erf;
    /// The next integer downwards.
    Floor: F32 => f32::floor;
    /// The natural logarithm; NaN for negative numbers. `dx = dy / x`
    Log [Source::Input(0), |x, dy| dy / x]: F32 => f32::ln;
    /// `y = x · tanh(ln(1 + e^x))`; with `t` that hyperbolic tangent, `dx = (t + x · σ(x) · (1 − t²)) · dy`
    Mish [Source::Input(0), mish_slope]: F32 => |x: f32| x * softplus(x).tanh();
    /// `y = −x`; the lowest integer wraps to itself. `dx = −dy`
    Neg [Source::Gradient, |_, dy| -dy]: F32 => |x: f32| -x, I64 => i64::wrapping_neg, I32 => i32::wrapping_neg;
    /// The other truth value.
    Not: Bool => |x: bool| !x;
    /// `y = 1 / x`; `dx = −y² · dy`
    Reciprocal [Source::Output, |y, dy| -y * y * dy]: F32 => |x: f32| 1.0 / x;
    /// The nearest integer; ties go to the even one.
    Round: F32 => f32::round_ties_even;
    /// `y = ln(1 + e^x)`; `dx = σ(x) · dy`
    Softplus [Source::Input(0), |x, dy| logistic(x) * dy]: F32 => softplus;
    /// The square root; NaN for negative numbers. `dx = dy / 2y`
    Sqrt [Source::Output, |y, dy| dy / (2.0 * y)]: F32 => f32::sqrt;
}

#[cfg(test)]
mod tests {
    use super::super::{Op, trial::first};
    use super::*;

    #[test]
    fn the_error_function_has_its_tabulated_values() {
        // Abramowitz and Stegun, table 7.1.
        for (x, y) in [(0.0, 0.0), (0.1, 0.112_462_92), (0.5, 0.520_499_9), (1.0, 0.842_700_8), (2.0, 0.995_322_3)] {
            assert!((erf(x) - y).abs() < 1.5e-7 && (erf(-x) + y).abs() < 1.5e-7, "{x}: {}", erf(x));
        }
    }

    #[test]
    fn floats_and_other_types() {
        let x = [-2.5f32, -0.0, 0.5, 2.25];
        let cases: [(Op, [f32; 4]); 5] = [
            (Abs.into(), [2.5, 0.0, 0.5, 2.25]),
            (Ceil.into(), [-2.0, 0.0, 1.0, 3.0]),
            (Floor.into(), [-3.0, 0.0, 0.0, 2.0]),
            (Neg.into(), [2.5, 0.0, -0.5, -2.25]),
            (Round.into(), [-2.0, 0.0, 0.0, 2.0]),
        ];
        for (op, expected) in cases {
            let y = first(op.clone(), &[Tensor::f32(&[4], x.to_vec())]).unwrap();
            assert_eq!(y, Tensor::f32(&[4], expected.to_vec()), "{op:?}");
        }
        assert_eq!(first(Sqrt, &[Tensor::f32(&[1], vec![2.25])]).unwrap(), Tensor::f32(&[1], vec![1.5]));
        assert_eq!(first(Neg, &[Tensor::i64(&[2], vec![3, i64::MIN])]).unwrap(), Tensor::i64(&[2], vec![-3, i64::MIN]));
        assert_eq!(
            first(Not, &[Tensor::bool(&[2], vec![true, false])]).unwrap(),
            Tensor::bool(&[2], vec![false, true])
        );
        assert!(first(Floor, &[Tensor::i64(&[1], vec![1])]).is_err());
        assert!(first(Not, &[Tensor::i64(&[1], vec![1])]).is_err());
    }
}
