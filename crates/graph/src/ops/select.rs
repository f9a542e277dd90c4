//! Where: one of two tensors, element by element.

use super::{
    backward::{Walk, gradient_index, no_gradient},
    broadcast::{broadcast_dims, steps},
    dispatch::{Element, with_element},
    samples::varied,
};
use crate::{
    attrs::Attrs,
    error::OpError,
    op::{Fact, Facts, Kernel, LayoutRule, OpDef, OpFile, Pass, Sample, Want, expect_dtype, required},
    tensor::{DType, Tensor},
};

/// `y = condition ? a : b`, all three broadcast against each other. `da = condition ? dy : 0`, `db = condition ? 0 : dy`.
#[derive(Clone, Debug, PartialEq)]
pub struct Where;

impl OpDef for Where {
    fn attrs(&self) -> Attrs {
        Attrs::default()
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let (condition, a, b) = (required(ins, 0)?, required(ins, 1)?, required(ins, 2)?);
        expect_dtype(ins, 0, DType::Bool)?;
        expect_dtype(ins, 2, a.dtype)?;
        let dims = broadcast_dims(&condition.dims, &broadcast_dims(&a.dims, &b.dims)?)?;
        Ok(vec![Fact::new(a.dtype, &dims)])
    }

    fn layout(&self) -> LayoutRule {
        LayoutRule::Any
    }

    fn build(&self, ins: Facts, outs: &[Fact]) -> Result<Kernel, OpError> {
        let (dims, out) = (outs[0].physical_dims(), &outs[0]);
        let steps = [steps(required(ins, 0)?, out), steps(required(ins, 1)?, out), steps(required(ins, 2)?, out)];
        // Where in each operand element `i` of the output comes from.
        let places = move |mut i: usize| {
            let mut places = [0; 3];
            for (axis, &dim) in dims.iter().enumerate().rev() {
                (0..3).for_each(|k| places[k] += i % dim * steps[k][axis]);
                i /= dim;
            }
            places
        };
        Ok(with_element!(out.dtype, T => Kernel::new(move |io| {
            let (condition, a, b) = (io.bool(0), T::input(io, 1), T::input(io, 2));
            for (i, y) in T::output(io, 0).iter_mut().enumerate() {
                let [c, i, j] = places(i);
                *y = if condition[c] { a[i] } else { b[j] };
            }
        })))
    }

    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        if outs[0].dtype != DType::F32 {
            return Ok(None);
        }
        if wants[0] != Want::No {
            return Err(no_gradient(0));
        }
        let (condition, dy) = (required(ins, 0)?, &outs[0]);
        let walk = |input| Ok(Walk::new(dy, [condition, dy, dy, required(ins, input)?]));
        let (toward_a, toward_b, gradient, wants) =
            (walk(1)?, walk(2)?, gradient_index(ins, outs), [wants[1], wants[2]]);
        let kernel = Kernel::new(move |io| {
            let tensors = (io.bool(0), io.f32(gradient), io.f32(gradient));
            toward_a.run(tensors, io.out_f32(1), wants[0], |condition, _, dy| if condition { dy } else { 0.0 });
            toward_b.run(tensors, io.out_f32(2), wants[1], |condition, _, dy| if condition { 0.0 } else { dy });
        });
        Ok(Some(Pass::new(kernel).reading_ins(&[0])))
    }
}

impl OpFile for Where {
    const NAME: &'static str = "Where";

    fn from_attrs(_attrs: &Attrs) -> Result<Self, OpError> {
        Ok(Where)
    }

    fn samples() -> Vec<Sample> {
        let condition = Some(Tensor::bool(&[2, 1, 3], vec![true, false, true, false, false, true]));
        vec![Sample { op: Where.into(), inputs: vec![condition, Some(varied(&[2, 4, 3], 1)), Some(varied(&[1], 2))] }]
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::first;
    use super::*;

    #[test]
    fn chooses_with_broadcasting() {
        // numpy.where([[True], [False]], [1, 2, 3], [[10], [20]])
        let condition = Tensor::bool(&[2, 1], vec![true, false]);
        let (a, b) = (Tensor::i64(&[3], vec![1, 2, 3]), Tensor::i64(&[2, 1], vec![10, 20]));
        let y = first(Where, &[condition.clone(), a.clone(), b]).unwrap();
        assert_eq!(y, Tensor::i64(&[2, 3], vec![1, 2, 3, 20, 20, 20]));
        assert!(first(Where, &[a.clone(), a.clone(), a.clone()]).is_err());
        assert!(first(Where, &[condition.clone(), a.clone(), Tensor::f32(&[], vec![1.0])]).is_err());
        assert!(first(Where, &[condition, a, Tensor::i64(&[2], vec![1, 2])]).is_err());
    }
}
