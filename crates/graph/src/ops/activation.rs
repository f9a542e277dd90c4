//! Elementwise functions of one tensor that can also be computed at the end of a convolution. The arithmetic is
//! [`Activation`]'s; Clip's bounds are inputs.

use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{
        Activation, Fact, Facts, Kernel, LayoutRule, OpDef, OpFile, OutRule, Pass, QuantRule, Role, Sample, Want,
        expect_dtype, optional, required,
    },
    ops::{
        backward::{self, Source},
        integer,
        samples::sample,
    },
    tensor::{DType, Tensor},
};
use fewbits_kernels::{float, simd::Isa};

fn kernel(activation: Activation) -> Kernel {
    Kernel::new(move |io| {
        let (threads, x) = (io.threads, io.f32(0));
        float::map(threads, activation, x, io.out_f32(0));
    })
}

/// One function of one tensor: in integers it is a table with 256 entries.
fn lookup(activation: Activation, ins: Facts, outs: &[Fact], clamp: Activation) -> Result<Option<Kernel>, OpError> {
    let isa = Isa::best();
    integer::lookup(required(ins, 0)?, &outs[0], |x| {
        let mut y = [x];
        activation.apply(isa, &mut y);
        clamp.apply(isa, &mut y);
        y[0]
    })
}

fn unary(ins: Facts) -> Result<Vec<Fact>, OpError> {
    expect_dtype(ins, 0, DType::F32)?;
    Ok(vec![Fact::new(DType::F32, &required(ins, 0)?.dims)])
}

macro_rules! activations {
    ($(
        $(#[$meta:meta])* $Name:ident { $($field:ident: $default:literal, $doc:literal;)* }
        => $activation:expr, $read:expr, $derivative:expr;
    )*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $Name {
            $(#[doc = $doc] pub $field: f32,)*
        }

        impl OpDef for $Name {
            fn attrs(&self) -> Attrs {
                Attrs::default()$(.with(stringify!($field), Attr::Float(self.$field)))*
            }

            fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
                unary(ins)
            }

            fn layout(&self) -> LayoutRule {
                LayoutRule::Any
            }

            fn build(&self, _ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
                let $Name { $($field),* } = self.clone();
                Ok(kernel($activation))
            }

            fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
                let $Name { $($field),* } = self.clone();
                // Not every derivative depends on all of them.
                $(let _ = $field;)*
                backward::map(ins, outs, wants, $read, $derivative)
            }

            fn build_integer(&self, ins: Facts, outs: &[Fact], clamp: Activation) -> Result<Option<Kernel>, OpError> {
                let $Name { $($field),* } = self.clone();
                lookup($activation, ins, outs, clamp)
            }

            fn activation(&self, _ins: Facts) -> Option<Activation> {
                let $Name { $($field),* } = self.clone();
                Some($activation)
            }

            fn quant_rule(&self) -> QuantRule {
                QuantRule::data()
            }
        }

        impl OpFile for $Name {
            const NAME: &'static str = stringify!($Name);

            fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
                let _ = attrs;
                Ok($Name { $($field: attrs.float(stringify!($field))?.unwrap_or($default),)* })
            }

            fn samples() -> Vec<Sample> {
                let op = $Name { $($field: $default + 0.125),* };
                vec![sample(op.clone(), &[&[2, 3, 5, 7]]), sample(op, &[&[4, 1]])]
            }
        }
    )*};
}

activations! {
    /// `y = max(x, 0)`; `dx = y > 0 ? dy : 0`
    Relu {} => Activation::Clamp { min: 0.0, max: f32::INFINITY },
        Source::Output, |y, dy| if y > 0.0 { dy } else { 0.0 };
    /// `y = x < 0 ? alpha · x : x`; `dx = x < 0 ? alpha · dy : dy`
    LeakyRelu { alpha: 0.01, "Slope of the negative part."; } => Activation::LeakyRelu { alpha },
        // With a positive slope, x and y have the same sign.
        if alpha > 0.0 { Source::Output } else { Source::Input(0) },
        move |v, dy| if v < 0.0 { alpha * dy } else { dy };
    /// `y = 1 / (1 + e^−x)`; `dx = y · (1 − y) · dy`
    Sigmoid {} => Activation::Sigmoid,
        Source::Output, |y, dy| y * (1.0 - y) * dy;
    /// `y = min(max(alpha · x + beta, 0), 1)`; `dx = 0 < y < 1 ? alpha · dy : 0`
    HardSigmoid { alpha: 0.2, "Slope."; beta: 0.5, "Value at 0."; } => Activation::HardSigmoid { alpha, beta },
        Source::Output, move |y, dy| if y > 0.0 && y < 1.0 { alpha * dy } else { 0.0 };
    /// `y = x · min(max(x / 6 + 1 / 2, 0), 1)`; `dx = (x / 3 + 1 / 2) · dy` for x in −3…3, 0 below, `dy` above
    HardSwish {} => Activation::HardSwish,
        Source::Input(0), |x, dy| if x < -3.0 { 0.0 } else if x <= 3.0 { (x / 3.0 + 0.5) * dy } else { dy };
    /// `y = tanh(x)`; `dx = (1 − y²) · dy`
    Tanh {} => Activation::Tanh,
        Source::Output, |y, dy| (1.0 - y * y) * dy;
    /// `y = e^x`; `dx = y · dy`
    Exp {} => Activation::Exp,
        Source::Output, |y, dy| y * dy;
}

/// `y = min(max(x, min), max)`; the bounds are the optional scalar inputs 1 and 2. `dx = min < y < max ? dy : 0`: nothing at the
/// bounds themselves, as in PyTorch's `hardtanh` and `relu6`.
#[derive(Clone, Debug, PartialEq)]
pub struct Clip;

impl Clip {
    /// The bounds if they are constants or absent.
    fn bounds(ins: Facts) -> Option<Activation> {
        let bound = |i: usize, absent: f32| match optional(ins, i) {
            None => Some(absent),
            Some(fact) => fact.value.as_ref()?.scalar_f32(),
        };
        Some(Activation::Clamp { min: bound(1, f32::NEG_INFINITY)?, max: bound(2, f32::INFINITY)? })
    }
}

impl OpDef for Clip {
    fn attrs(&self) -> Attrs {
        Attrs::default()
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let x = required(ins, 0)?;
        for bound in (1..=2).filter_map(|i| optional(ins, i)) {
            if bound.len() != 1 {
                return Err(OpError::Shapes {
                    what: "a bound and one number",
                    left: bound.dims.clone(),
                    right: vec![],
                });
            }
        }
        Ok(vec![Fact::new(x.dtype, &x.dims)])
    }

    fn layout(&self) -> LayoutRule {
        LayoutRule::Any
    }

    fn build(&self, ins: Facts, outs: &[Fact]) -> Result<Kernel, OpError> {
        macro_rules! integers {
            ($ty:ident, $out:ident) => {
                Kernel::new(|io| {
                    let bound = |i, absent: $ty| io.$ty(i).first().copied().unwrap_or(absent);
                    let (x, min, max) = (io.$ty(0), bound(1, $ty::MIN), bound(2, $ty::MAX));
                    io.$out(0).iter_mut().zip(x).for_each(|(y, &x)| *y = x.max(min).min(max));
                })
            };
        }
        Ok(match (outs[0].dtype, Clip::bounds(ins)) {
            (DType::F32, Some(activation)) => kernel(activation),
            (DType::F32, None) => Kernel::new(|io| {
                let bound = |i, absent: f32| io.f32(i).first().copied().unwrap_or(absent);
                let clamp = Activation::Clamp { min: bound(1, f32::NEG_INFINITY), max: bound(2, f32::INFINITY) };
                let (threads, x) = (io.threads, io.f32(0));
                float::map(threads, clamp, x, io.out_f32(0));
            }),
            (DType::I64, _) => integers!(i64, out_i64),
            (DType::I32, _) => integers!(i32, out_i32),
            (DType::U8, _) => integers!(u8, out_u8),
            (DType::I8, _) => integers!(i8, out_i8),
            (found @ (DType::Bool | DType::Raw(_)), _) => {
                return Err(OpError::DType { index: 0, expected: DType::F32, found });
            }
        })
    }

    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        if outs[0].dtype != DType::F32 {
            return Ok(None);
        }
        let Some(Activation::Clamp { min, max }) = Clip::bounds(ins) else {
            return Err(OpError::NotConstant { index: 1 });
        };
        let inside = move |y, dy| if y > min && y < max { dy } else { 0.0 };
        backward::map(ins, outs, wants, Source::Output, inside)
    }

    fn build_integer(&self, ins: Facts, outs: &[Fact], clamp: Activation) -> Result<Option<Kernel>, OpError> {
        let Some(activation) = Clip::bounds(ins) else { return Ok(None) };
        lookup(activation, ins, outs, clamp)
    }

    fn activation(&self, ins: Facts) -> Option<Activation> {
        Clip::bounds(ins)
    }

    fn quant_rule(&self) -> QuantRule {
        QuantRule { inputs: vec![Role::Data, Role::Other], output: OutRule::Own }
    }
}

impl OpFile for Clip {
    const NAME: &'static str = "Clip";

    fn from_attrs(_attrs: &Attrs) -> Result<Self, OpError> {
        Ok(Clip)
    }

    fn samples() -> Vec<Sample> {
        let bound = |v| Some(Tensor::f32(&[], vec![v]));
        let bounds = [vec![], vec![bound(0.0), bound(1.5)], vec![None, bound(0.5)], vec![bound(-1.0)]];
        let with = |bounds| {
            let mut clip = sample(Clip, &[&[1, 3, 4, 2]]);
            clip.inputs.extend(bounds);
            clip
        };
        let integers = [vec![-5, 0, 9], vec![-1], vec![3]].map(|v| Some(Tensor::i64(&[v.len()], v)));
        let mut samples: Vec<_> = bounds.into_iter().map(with).collect();
        samples.push(Sample { op: Clip.into(), inputs: integers.into() });
        samples
    }
}
