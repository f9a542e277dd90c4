//! Gather: picks slices by their index along one axis.

use super::{
    backward,
    dispatch::{Tables, move_codes, take},
};
use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{
        Activation, Fact, Facts, Kernel, OpDef, OpFile, Pass, QuantRule, Sample, Want, known_ints, normal_axis,
        required,
    },
    tensor::Tensor,
};

/// `y[…, i, …] = x[…, indices[i], …]`: the dimensions of the indices stand in place of `axis`. Negative indices count from the
/// end. Indices must be known ahead, so that they can be checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Gather {
    /// May be negative.
    pub axis: i64,
}

impl Gather {
    fn table(&self, ins: Facts) -> Result<Vec<usize>, OpError> {
        let dims = &required(ins, 0)?.dims;
        let len = dims[normal_axis(self.axis, dims.len())?];
        let index = |i: i64| {
            let inside =
                usize::try_from(if i < 0 { i.saturating_add(len as i64) } else { i }).ok().filter(|&i| i < len);
            inside.ok_or_else(|| OpError::Unsupported(format!("index {i} outside of an axis of {len}")))
        };
        known_ints(ins, 1)?.into_iter().map(index).collect()
    }

    fn tables(&self, ins: Facts) -> Result<Tables, OpError> {
        let rank = required(ins, 0)?.dims.len();
        let mut tables = vec![None; rank];
        tables[normal_axis(self.axis, rank)?] = Some(self.table(ins)?);
        Ok(tables)
    }
}

impl OpDef for Gather {
    fn attrs(&self) -> Attrs {
        Attrs::default().with("axis", Attr::Int(self.axis))
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let (x, indices) = (required(ins, 0)?, required(ins, 1)?);
        let axis = normal_axis(self.axis, x.dims.len())?;
        self.table(ins)?;
        let dims = [&x.dims[..axis], &indices.dims, &x.dims[axis + 1..]].concat();
        Ok(vec![Fact::new(x.dtype, &dims)])
    }

    fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
        take(required(ins, 0)?, self.tables(ins)?, None)
    }

    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        backward::scatter(ins, outs, wants, required(ins, 0)?, self.tables(ins)?)
    }

    fn build_integer(&self, ins: Facts, outs: &[Fact], clamp: Activation) -> Result<Option<Kernel>, OpError> {
        move_codes(self, ins, outs, clamp)
    }

    fn quant_rule(&self) -> QuantRule {
        QuantRule::movement()
    }
}

impl OpFile for Gather {
    const NAME: &'static str = "Gather";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        Ok(Gather { axis: attrs.int("axis")?.unwrap_or(0) })
    }

    fn samples() -> Vec<Sample> {
        let x = Some(Tensor::f32(&[2, 3, 2], (0..12).map(|i| i as f32).collect()));
        let shape = Some(Tensor::i64(&[4], vec![1, 3, 8, 8]));
        let rows = Some(Tensor::i64(&[2, 2], vec![2, -3, 1, 1]));
        let scalar = Some(Tensor::i64(&[], vec![2]));
        vec![
            Sample { op: Gather { axis: 1 }.into(), inputs: vec![x, rows] },
            Sample { op: Gather { axis: 0 }.into(), inputs: vec![shape, scalar] },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::{first, iota};
    use super::*;

    #[test]
    fn picks_as_numpy_take_does() {
        // numpy.take(numpy.arange(6).reshape(2, 3), [[2, -3], [1, 1]], 1)
        let indices = Tensor::i64(&[2, 2], vec![2, -3, 1, 1]);
        let y = first(Gather { axis: 1 }, &[iota(&[2, 3]), indices.clone()]).unwrap();
        assert_eq!(y, Tensor::f32(&[2, 2, 2], vec![2., 0., 1., 1., 5., 3., 4., 4.]));
        let y = first(Gather { axis: -2 }, &[iota(&[2, 3]), Tensor::i32(&[], vec![1])]).unwrap();
        assert_eq!(y, Tensor::f32(&[3], vec![3., 4., 5.]));
        assert!(first(Gather { axis: 0 }, &[iota(&[2, 3]), indices]).is_err());
        assert!(first(Gather { axis: 0 }, &[iota(&[]), Tensor::i64(&[], vec![0])]).is_err());
    }
}
