//! Pow: powers with exponents that are a tensor.

use crate::{
    attrs::Attrs,
    error::OpError,
    op::{Fact, Facts, Kernel, LayoutRule, OpDef, OpFile, Pass, Sample, Want, expect_dtype, known, required},
    ops::{
        backward::{Walk, gradient_index, of_first},
        broadcast::{self, broadcast_dims},
        samples::sample,
    },
    tensor::{DType, Tensor},
};
use std::sync::Arc;

/// `y = base ^ exponent`, broadcast. Exponents that are no floats must be constants; for the gradient
/// `exponent · base ^ (exponent − 1) · dy` of the base, all must be.
#[derive(Clone, Debug, PartialEq)]
pub struct Pow;

/// Squares and cubes are products, as in ONNX Runtime.
fn power(base: f32, exponent: f32) -> f32 {
    match exponent {
        2.0 => base * base,
        3.0 => base * base * base,
        _ => base.powf(exponent),
    }
}

impl OpDef for Pow {
    fn attrs(&self) -> Attrs {
        Attrs::default()
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        expect_dtype(ins, 0, DType::F32)?;
        let dims = broadcast_dims(&required(ins, 0)?.dims, &required(ins, 1)?.dims)?;
        Ok(vec![Fact::new(DType::F32, &dims)])
    }

    fn layout(&self) -> LayoutRule {
        LayoutRule::Any
    }

    fn build(&self, ins: Facts, outs: &[Fact]) -> Result<Kernel, OpError> {
        let exponent = required(ins, 1)?;
        let walk = broadcast::walk(required(ins, 0)?, exponent, &outs[0]);
        if exponent.dtype == DType::F32 {
            return Ok(Kernel::new(move |io| {
                let (threads, base, exponent) = (io.threads, io.f32(0), io.f32(1));
                walk.map(threads, base, exponent, io.out_f32(0), power);
            }));
        }
        let found = exponent.dtype;
        let whole = known(ins, 1)?.to_i64().ok_or(OpError::DType { index: 1, expected: DType::F32, found })?;
        let exponent: Arc<[f32]> = whole.into_iter().map(|e| e as f32).collect();
        Ok(Kernel::new(move |io| {
            let (threads, base) = (io.threads, io.f32(0));
            walk.map(threads, base, &exponent, io.out_f32(0), power);
        }))
    }

    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        let (base, exponent, dy) = (required(ins, 0)?, known(ins, 1)?, &outs[0]);
        let found = OpError::DType { index: 1, expected: DType::F32, found: exponent.dtype() };
        let whole = || exponent.to_i64().map(|e| e.into_iter().map(|e| e as f32).collect());
        let exponents: Vec<f32> = exponent.as_f32().map(<[f32]>::to_vec).or_else(whole).ok_or(found)?;
        let walk = Walk::new(dy, [base, &Fact::new(DType::F32, &exponent.dims), dy, base]);
        let (want, gradient) = (of_first(wants)?, gradient_index(ins, outs));
        let slope = |x, e, dy| if e == 0.0 { 0.0 } else { e * power(x, e - 1.0) * dy };
        let kernel = Kernel::new(move |io| {
            let (x, dy) = (io.f32(0), io.f32(gradient));
            walk.run((x, &exponents, dy), io.out_f32(0), want, slope);
        });
        Ok(Some(Pass::new(kernel).reading_ins(&[0])))
    }
}

impl OpFile for Pow {
    const NAME: &'static str = "Pow";

    fn from_attrs(_attrs: &Attrs) -> Result<Self, OpError> {
        Ok(Pow)
    }

    fn samples() -> Vec<Sample> {
        let to = |exponent| {
            let mut pow = sample(Pow, &[&[2, 3, 4, 5]]);
            pow.inputs.push(Some(exponent));
            pow
        };
        let scalar = |e| Tensor::f32(&[], vec![e]);
        vec![to(scalar(2.0)), to(scalar(3.0)), to(scalar(0.5)), to(Tensor::f32(&[3, 1, 1], vec![1.0, -2.0, 4.0]))]
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::first;
    use super::*;

    #[test]
    fn whole_exponents_are_of_any_type() {
        let base = Tensor::f32(&[3], vec![-2.0, 0.5, 3.0]);
        let y = first(Pow, &[base, Tensor::i64(&[], vec![4])]).unwrap();
        assert_eq!(y, Tensor::f32(&[3], vec![16.0, 0.0625, 81.0]));
    }
}
