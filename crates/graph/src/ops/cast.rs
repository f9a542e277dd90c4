//! Cast: the same numbers in another type.

use super::{
    backward,
    dispatch::{Element, untyped, with_element},
};
use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{Fact, Facts, Kernel, LayoutRule, OpDef, OpFile, Pass, Sample, Want, required},
    tensor::{DType, Tensor},
};
use fewbits_kernels::chunks::for_each_chunk;

/// `y = x` in the type `to`. Floats lose their fraction, integers wrap, and everything but 0 is true. Floats that do not
/// fit, which ONNX leaves open, become what ONNX Runtime makes of them on x64.
#[derive(Clone, Debug, PartialEq)]
pub struct Cast {
    /// Type of the output.
    pub to: DType,
}

/// The number of `dtype` in ONNX's `TensorProto.DataType`.
pub(super) fn onnx_code(dtype: DType) -> i64 {
    match dtype {
        DType::F32 => 1,
        DType::U8 => 2,
        DType::I8 => 3,
        DType::I32 => 6,
        DType::I64 => 7,
        DType::Bool => 9,
        DType::Raw(code) => code.into(),
    }
}

/// The type of an ONNX `TensorProto.DataType` number.
pub(super) fn from_onnx_code(code: i64) -> DType {
    let computed = [DType::F32, DType::U8, DType::I8, DType::I32, DType::I64, DType::Bool];
    computed.into_iter().find(|&dtype| onnx_code(dtype) == code).unwrap_or(DType::Raw(code.try_into().unwrap_or(0)))
}

/// A type that numbers can be turned into.
trait Number: Element {
    fn from_f32(x: f32) -> Self;
    fn from_i64(x: i64) -> Self;
}

macro_rules! numbers {
    ($($ty:ty: $from_f32:expr;)*) => {
        $(impl Number for $ty {
            fn from_f32(x: f32) -> Self {
                let convert: fn(f32) -> $ty = $from_f32;
                convert(x)
            }
            fn from_i64(x: i64) -> Self {
                x as $ty
            }
        })*
    };
}
numbers! { f32: |x| x; i64: whole_i64; i32: whole_i32; u8: |x| whole_i32(x) as u8; i8: |x| whole_i32(x) as i8; }

/// The integer part; the lowest integer if it does not fit, as the instructions of x86 have it.
fn whole_i64(x: f32) -> i64 {
    if x.abs() < 9.223_372e18 { x as i64 } else { i64::MIN }
}

fn whole_i32(x: f32) -> i32 {
    if x.abs() < 2_147_483_648.0 { x as i32 } else { i32::MIN }
}

impl Number for bool {
    fn from_f32(x: f32) -> Self {
        x != 0.0
    }
    fn from_i64(x: i64) -> Self {
        x != 0
    }
}

fn from_integers<S: Element + Into<i64>>(to: DType) -> Result<Kernel, OpError> {
    Ok(with_element!(to, T => convert(|x: S| T::from_i64(x.into()))))
}

fn convert<S: Element, T: Element>(f: impl Fn(S) -> T + Send + Sync + 'static) -> Kernel {
    Kernel::new(move |io| {
        let (threads, x) = (io.threads, S::input(io, 0));
        for_each_chunk(threads, T::output(io, 0), 1, 1, |first, y| {
            y.iter_mut().zip(&x[first..]).for_each(|(y, &x)| *y = f(x));
        });
    })
}

impl OpDef for Cast {
    fn attrs(&self) -> Attrs {
        Attrs::default().with("to", Attr::Int(onnx_code(self.to)))
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let x = required(ins, 0)?;
        match (x.dtype, self.to) {
            (raw @ DType::Raw(_), _) | (_, raw @ DType::Raw(_)) => Err(untyped(raw)),
            (_, to) => Ok(vec![Fact::new(to, &x.dims)]),
        }
    }

    fn layout(&self) -> LayoutRule {
        LayoutRule::Any
    }

    fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
        match required(ins, 0)?.dtype {
            DType::F32 => Ok(with_element!(self.to, T => convert(T::from_f32))),
            DType::I64 => from_integers::<i64>(self.to),
            DType::I32 => from_integers::<i32>(self.to),
            DType::U8 => from_integers::<u8>(self.to),
            DType::I8 => from_integers::<i8>(self.to),
            DType::Bool => from_integers::<bool>(self.to),
            raw @ DType::Raw(_) => Err(untyped(raw)),
        }
    }

    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        backward::copy(ins, outs, wants)
    }
}

impl OpFile for Cast {
    const NAME: &'static str = "Cast";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        let to = attrs.int("to")?.ok_or_else(|| OpError::Attribute { name: "to", reason: "is required".into() })?;
        Ok(Cast { to: from_onnx_code(to) })
    }

    fn samples() -> Vec<Sample> {
        let floats = Some(Tensor::f32(&[1, 2, 1, 2], vec![-1.5, 0.0, 2.9, 100.0]));
        let ints = Some(Tensor::i64(&[3], vec![-1, 0, 300]));
        let sample = |to, input: &Option<Tensor>| Sample { op: Cast { to }.into(), inputs: vec![input.clone()] };
        vec![
            sample(DType::I64, &floats),
            sample(DType::Bool, &floats),
            sample(DType::F32, &ints),
            sample(DType::U8, &ints),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::first;
    use super::*;

    #[test]
    fn numbers_are_converted() {
        let floats = Tensor::f32(&[5], vec![-1.5, 0.0, 2.9, 1e20, f32::NAN]);
        let ints = Tensor::i64(&[4], vec![-1, 0, 300, 1 << 40]);
        let flags = Tensor::bool(&[2], vec![true, false]);
        let cases = [
            (&floats, Tensor::i64(&[5], vec![-1, 0, 2, i64::MIN, i64::MIN])),
            (&floats, Tensor::i32(&[5], vec![-1, 0, 2, i32::MIN, i32::MIN])),
            (&floats, Tensor::i8(&[5], vec![-1, 0, 2, 0, 0])),
            (&floats, Tensor::u8(&[5], vec![255, 0, 2, 0, 0])),
            (&floats, Tensor::bool(&[5], vec![true, false, true, true, true])),
            (&ints, Tensor::f32(&[4], vec![-1.0, 0.0, 300.0, 1099511627776.0])),
            (&ints, Tensor::u8(&[4], vec![255, 0, 44, 0])),
            (&ints, Tensor::bool(&[4], vec![true, false, true, true])),
            (&flags, Tensor::f32(&[2], vec![1.0, 0.0])),
            (&flags, Tensor::i64(&[2], vec![1, 0])),
        ];
        for (x, expected) in cases {
            let to = expected.dtype();
            assert_eq!(first(Cast { to }, std::slice::from_ref(x)).unwrap(), expected, "{} to {to}", x.dtype());
        }
    }

    #[test]
    fn types_that_are_not_computed_with_are_refused() {
        let double = Cast::from_attrs(&Attrs::default().with("to", Attr::Int(11))).unwrap();
        assert_eq!(double.attrs().int("to"), Ok(Some(11)));
        let error = first(double, &[Tensor::i64(&[1], vec![1])]).unwrap_err();
        assert_eq!(error.to_string(), "not supported: elements of ONNX data type 11");
        assert!(Cast::from_attrs(&Attrs::default()).is_err());
    }
}
