//! ArgMax: where the largest element along an axis is.

use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{Fact, Facts, Kernel, OpDef, OpFile, Sample, expect_dtype, normal_axis, required},
    ops::{dispatch::Element, samples::sample},
    tensor::{DType, Tensor},
};

/// The index along `axis` of the largest element. Not differentiable.
#[derive(Clone, Debug, PartialEq)]
pub struct ArgMax {
    /// May be negative.
    pub axis: i64,
    /// Whether the axis stays, of size 1.
    pub keep_dims: bool,
    /// Of equal elements, the last one instead of the first.
    pub select_last_index: bool,
}

impl OpDef for ArgMax {
    fn attrs(&self) -> Attrs {
        Attrs::default()
            .with("axis", Attr::Int(self.axis))
            .with("keepdims", Attr::Int(self.keep_dims.into()))
            .with("select_last_index", Attr::Int(self.select_last_index.into()))
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        expect_dtype(ins, 0, DType::F32)?;
        let mut dims = required(ins, 0)?.dims.clone();
        let axis = normal_axis(self.axis, dims.len())?;
        if dims[axis] == 0 {
            return Err(OpError::Unsupported("the largest of no elements".into()));
        }
        if self.keep_dims {
            dims[axis] = 1;
        } else {
            dims.remove(axis);
        }
        Ok(vec![Fact::new(DType::I64, &dims)])
    }

    fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
        let dims = &required(ins, 0)?.dims;
        let axis = normal_axis(self.axis, dims.len())?;
        let (len, inner, last) = (dims[axis], dims[axis + 1..].iter().product::<usize>(), self.select_last_index);
        Ok(Kernel::new(move |io| {
            let x = io.f32(0);
            for (place, y) in i64::output(io, 0).iter_mut().enumerate() {
                let line = x[place / inner * len * inner + place % inner..].iter().step_by(inner).take(len);
                let better = |new: f32, old: f32| new > old || (last && new == old);
                let start = (0, f32::NEG_INFINITY);
                let (found, _) =
                    line.enumerate().fold(start, |best, (i, &v)| if better(v, best.1) { (i, v) } else { best });
                *y = found as i64;
            }
        }))
    }
}

impl OpFile for ArgMax {
    const NAME: &'static str = "ArgMax";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        Ok(ArgMax {
            axis: attrs.int("axis")?.unwrap_or(0),
            keep_dims: attrs.int("keepdims")?.unwrap_or(1) != 0,
            select_last_index: attrs.int("select_last_index")?.unwrap_or(0) != 0,
        })
    }

    fn samples() -> Vec<Sample> {
        let largest = |axis, keep_dims, select_last_index| ArgMax { axis, keep_dims, select_last_index };
        let equal = Some(Tensor::f32(&[2, 3], vec![1.0, 2.0, 2.0, -3.0, -3.0, -4.0]));
        vec![
            sample(largest(1, false, false), &[&[2, 5, 3, 4]]),
            sample(largest(-1, true, false), &[&[3, 7]]),
            Sample { op: largest(1, true, false).into(), inputs: vec![equal.clone()] },
            Sample { op: largest(1, true, true).into(), inputs: vec![equal] },
        ]
    }
}
