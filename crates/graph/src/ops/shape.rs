//! Shape and ConstantOfShape: from a tensor to its dimensions, and from dimensions to a tensor.

use super::dispatch::{Element, untyped, with_element};
use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{Fact, Facts, Kernel, OpDef, OpFile, Sample, check_size, known_ints, required},
    tensor::{DType, Tensor},
};
use std::sync::Arc;

/// The dimensions of `x` from `start` to before `end`, both of which are clamped to the axes there are.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// May be negative.
    pub start: i64,
    /// May be negative; `None` is the rank.
    pub end: Option<i64>,
}

impl Shape {
    fn dims(&self, ins: Facts) -> Result<Vec<i64>, OpError> {
        let dims = &required(ins, 0)?.dims;
        let rank = dims.len() as i64;
        let place = |axis: i64| (if axis < 0 { axis.saturating_add(rank) } else { axis }).clamp(0, rank) as usize;
        let (start, end) = (place(self.start), place(self.end.unwrap_or(rank)));
        Ok(dims[start..end.max(start)].iter().map(|&d| d as i64).collect())
    }
}

impl OpDef for Shape {
    fn attrs(&self) -> Attrs {
        let attrs = Attrs::default().with("start", Attr::Int(self.start));
        match self.end {
            Some(end) => attrs.with("end", Attr::Int(end)),
            None => attrs,
        }
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let dims = self.dims(ins)?;
        Ok(vec![Fact::constant(Arc::new(Tensor::i64(&[dims.len()], dims)))])
    }

    fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
        let dims = self.dims(ins)?;
        Ok(Kernel::new(move |io| io.out_i64(0).copy_from_slice(&dims)))
    }
}

impl OpFile for Shape {
    const NAME: &'static str = "Shape";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        Ok(Shape { start: attrs.int("start")?.unwrap_or(0), end: attrs.int("end")? })
    }

    fn samples() -> Vec<Sample> {
        let x = Some(Tensor::f32(&[2, 3, 1], vec![0.0; 6]));
        vec![
            Sample { op: Shape { start: 0, end: None }.into(), inputs: vec![x.clone()] },
            Sample { op: Shape { start: -2, end: Some(2) }.into(), inputs: vec![x] },
        ]
    }
}

/// A tensor whose dimensions are the input and whose elements are all `value`.
#[derive(Clone, Debug, PartialEq)]
pub struct ConstantOfShape {
    /// One element.
    pub value: Tensor,
}

impl OpDef for ConstantOfShape {
    fn attrs(&self) -> Attrs {
        Attrs::default().with("value", Attr::Tensor(self.value.clone()))
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let shape = known_ints(ins, 0)?;
        let dims: Option<Vec<_>> = shape.iter().map(|&d| usize::try_from(d).ok()).collect();
        match dims.filter(|dims| check_size(dims).is_ok()) {
            Some(dims) => Ok(vec![Fact::new(self.value.dtype(), &dims)]),
            None => Err(OpError::Unsupported(format!("the shape {shape:?}"))),
        }
    }

    fn build(&self, _ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
        let dtype = self.value.dtype();
        Ok(with_element!(dtype, T => {
            let value = T::of(&self.value).and_then(|v| v.first().copied()).ok_or_else(|| untyped(dtype))?;
            Kernel::new(move |io| T::output(io, 0).fill(value))
        }))
    }
}

impl OpFile for ConstantOfShape {
    const NAME: &'static str = "ConstantOfShape";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        let value = attrs.tensor("value")?.unwrap_or_else(|| Tensor::f32(&[1], vec![0.0]));
        match value.len() {
            1 => Ok(ConstantOfShape { value }),
            n => Err(OpError::Attribute { name: "value", reason: format!("has {n} elements instead of 1") }),
        }
    }

    fn samples() -> Vec<Sample> {
        let shape = Some(Tensor::i64(&[3], vec![2, 1, 3]));
        let sample = |value| Sample { op: ConstantOfShape { value }.into(), inputs: vec![shape.clone()] };
        vec![sample(Tensor::f32(&[1], vec![0.5])), sample(Tensor::i64(&[1], vec![-1]))]
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::{first, iota};
    use super::*;

    #[test]
    fn shape_slices_the_dimensions() {
        let cases: [(i64, Option<i64>, &[i64]); 7] = [
            (0, None, &[2, 3, 4]),
            (1, None, &[3, 4]),
            (-1, None, &[4]),
            (0, Some(-1), &[2, 3]),
            (-9, Some(9), &[2, 3, 4]),
            (2, Some(1), &[]),
            (9, None, &[]),
        ];
        for (start, end, expected) in cases {
            let y = first(Shape { start, end }, &[iota(&[2, 3, 4])]).unwrap();
            assert_eq!(y, Tensor::i64(&[expected.len()], expected.to_vec()), "{start} {end:?}");
        }
    }

    #[test]
    fn constant_of_shape_fills() {
        let of =
            |value, shape: &[i64]| first(ConstantOfShape { value }, &[Tensor::i64(&[shape.len()], shape.to_vec())]);
        assert_eq!(of(Tensor::i64(&[1], vec![7]), &[2, 1]).unwrap(), Tensor::i64(&[2, 1], vec![7, 7]));
        assert_eq!(of(Tensor::bool(&[1], vec![true]), &[]).unwrap(), Tensor::bool(&[], vec![true]));
        let default = ConstantOfShape::from_attrs(&Attrs::default()).unwrap();
        assert_eq!(default.value, Tensor::f32(&[1], vec![0.0]));
        assert!(of(Tensor::i64(&[1], vec![7]), &[-1]).is_err());
        assert!(of(Tensor::i64(&[1], vec![7]), &[i64::MAX, 9]).is_err());
        let two = Attrs::default().with("value", Attr::Tensor(Tensor::i64(&[2], vec![1, 2])));
        assert!(ConstantOfShape::from_attrs(&two).is_err());
    }
}
