//! DequantizeLinear: from codes to real numbers, where a model says so itself.

use super::quantize_linear::Scales;
use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{Fact, Facts, Kernel, LayoutRule, OpDef, OpFile, Sample, optional, required},
    tensor::{DType, Tensor},
};
use fewbits_kernels::chunks::for_each_chunk;

/// `y = (x − zero_point) · scale` with one scale, or one for each index along `axis`. Inputs: codes (u8, i8 or i32), scale, zero
/// point (default 0). Scale and zero point must be known ahead.
#[derive(Clone, Debug, PartialEq)]
pub struct DequantizeLinear {
    /// Where scales are listed; may be negative.
    pub axis: i64,
    /// Elements that share a scale along `axis`; 0 is no blocks.
    pub block_size: i64,
}

impl OpDef for DequantizeLinear {
    fn attrs(&self) -> Attrs {
        Attrs::default().with("axis", Attr::Int(self.axis)).with("block_size", Attr::Int(self.block_size))
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let x = required(ins, 0)?;
        if !matches!(x.dtype, DType::U8 | DType::I8 | DType::I32) {
            return Err(OpError::Unsupported(format!("dequantization of {}", x.dtype)));
        }
        if let Some(zero_point) = optional(ins, 2).filter(|zero_point| zero_point.dtype != x.dtype) {
            return Err(OpError::DType { index: 2, expected: x.dtype, found: zero_point.dtype });
        }
        Scales::new(ins, x, self.axis, self.block_size)?;
        Ok(vec![Fact::new(DType::F32, &x.dims)])
    }

    fn layout(&self) -> LayoutRule {
        LayoutRule::Any
    }

    fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
        let x = required(ins, 0)?;
        let (dtype, scales) = (x.dtype, Scales::new(ins, x, self.axis, self.block_size)?);
        let real = move |i: usize, code: i32| {
            let group = scales.group(i);
            code.wrapping_sub(scales.zero_point[group]) as f32 * scales.scale[group]
        };
        Ok(Kernel::new(move |io| {
            macro_rules! fill {
                ($x:expr) => {{
                    let (threads, x) = (io.threads, $x);
                    for_each_chunk(threads, io.out_f32(0), 1, 4, |first, y| {
                        y.iter_mut().enumerate().for_each(|(i, y)| *y = real(first + i, x[first + i].into()));
                    })
                }};
            }
            match dtype {
                DType::U8 => fill!(io.u8(0)),
                DType::I8 => fill!(io.i8(0)),
                _ => fill!(io.i32(0)),
            }
        }))
    }
}

impl OpFile for DequantizeLinear {
    const NAME: &'static str = "DequantizeLinear";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        Ok(DequantizeLinear {
            axis: attrs.int("axis")?.unwrap_or(1),
            block_size: attrs.int("block_size")?.unwrap_or(0),
        })
    }

    fn samples() -> Vec<Sample> {
        let op = DequantizeLinear { axis: 0, block_size: 0 };
        let scalar = Some(Tensor::f32(&[], vec![0.1]));
        let scales = Some(Tensor::f32(&[2], vec![0.5, 0.25]));
        let codes = Some(Tensor::u8(&[1, 2, 1, 2], vec![0, 10, 128, 255]));
        let weights = Some(Tensor::i8(&[2, 2], vec![-128, 127, 0, 3]));
        let bias = Some(Tensor::i32(&[2], vec![-70_000, 5]));
        vec![
            Sample { op: op.clone().into(), inputs: vec![codes, scalar, Some(Tensor::u8(&[], vec![128]))] },
            Sample { op: op.clone().into(), inputs: vec![weights, scales.clone(), Some(Tensor::i8(&[2], vec![0, 1]))] },
            Sample { op: op.into(), inputs: vec![bias, scales] },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::first;
    use super::*;

    const FIRST: DequantizeLinear = DequantizeLinear { axis: 0, block_size: 0 };

    #[test]
    fn codes_become_reals() {
        let scales = || Tensor::f32(&[2], vec![0.5, 0.25]);
        let y = first(FIRST, &[Tensor::i8(&[2, 2], vec![-128, 127, 0, 3]), scales(), Tensor::i8(&[2], vec![0, 1])]);
        assert_eq!(y.unwrap(), Tensor::f32(&[2, 2], vec![-64.0, 63.5, -0.25, 0.5]));
        let codes = Tensor::u8(&[1, 2, 1, 2], vec![0, 255, 0, 255]);
        let y = first(DequantizeLinear { axis: 1, ..FIRST }, &[codes, scales(), Tensor::u8(&[2], vec![0, 255])]);
        assert_eq!(y.unwrap(), Tensor::f32(&[1, 2, 1, 2], vec![0.0, 127.5, -63.75, 0.0]));
        let y = first(FIRST, &[Tensor::i32(&[2], vec![-70_000, 5]), scales()]);
        assert_eq!(y.unwrap(), Tensor::f32(&[2], vec![-35_000.0, 1.25]));
    }

    #[test]
    fn what_is_not_computed_is_named() {
        let one = || Tensor::f32(&[], vec![1.0]);
        let long = first(FIRST, &[Tensor::i64(&[1], vec![1]), one()]).unwrap_err();
        assert_eq!(long.to_string(), "not supported: dequantization of int64");
        let mixed = first(FIRST, &[Tensor::u8(&[1], vec![1]), one(), Tensor::i8(&[], vec![1])]);
        assert_eq!(mixed, Err(OpError::DType { index: 2, expected: DType::U8, found: DType::I8 }));
        assert!(first(FIRST, &[Tensor::u8(&[3], vec![1; 3]), Tensor::f32(&[2], vec![1.0; 2])]).is_err());
        assert!(first(DequantizeLinear { block_size: 2, ..FIRST }, &[Tensor::u8(&[1], vec![1]), one()]).is_err());
    }
}
