//! Transpose: permutes the axes.

use super::{
    backward,
    dispatch::{Element, move_codes, with_element},
};
use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{Activation, Fact, Facts, Kernel, OpDef, OpFile, Pass, QuantRule, Sample, Want, required},
    tensor::{DType, Tensor},
};
use fewbits_kernels::movement;

/// Axis `k` of `y` is axis `perm[k]` of `x`.
#[derive(Clone, Debug, PartialEq)]
pub struct Transpose {
    /// All axes in their new order; `None` reverses them.
    pub perm: Option<Vec<usize>>,
}

impl Transpose {
    fn perm(&self, rank: usize) -> Result<Vec<usize>, OpError> {
        let perm = self.perm.clone().unwrap_or_else(|| (0..rank).rev().collect());
        let mut sorted = perm.clone();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..rank) {
            let reason = format!("{perm:?} is no permutation of {rank} axes");
            return Err(OpError::Attribute { name: "perm", reason });
        }
        Ok(perm)
    }
}

impl OpDef for Transpose {
    fn attrs(&self) -> Attrs {
        match &self.perm {
            Some(perm) => Attrs::default().with("perm", Attr::Ints(perm.iter().map(|&axis| axis as i64).collect())),
            None => Attrs::default(),
        }
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let x = required(ins, 0)?;
        let dims: Vec<usize> = self.perm(x.dims.len())?.into_iter().map(|axis| x.dims[axis]).collect();
        Ok(vec![Fact::new(x.dtype, &dims)])
    }

    fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
        let x = required(ins, 0)?;
        let transpose = movement::Transpose::new(&x.dims, &self.perm(x.dims.len())?);
        Ok(with_element!(x.dtype, T => {
            Kernel::new(move |io| transpose.run(io.threads, T::input(io, 0), T::output(io, 0)))
        }))
    }

    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        let dims = &required(ins, 0)?.dims;
        backward::permute(ins, outs, wants, dims, &self.perm(dims.len())?)
    }

    fn build_integer(&self, ins: Facts, outs: &[Fact], clamp: Activation) -> Result<Option<Kernel>, OpError> {
        move_codes(self, ins, outs, clamp)
    }

    fn quant_rule(&self) -> QuantRule {
        QuantRule::movement()
    }
}

impl OpFile for Transpose {
    const NAME: &'static str = "Transpose";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        Ok(Transpose { perm: attrs.sizes("perm")? })
    }

    fn samples() -> Vec<Sample> {
        let x = Some(Tensor::f32(&[2, 3, 2, 2], (0..24).map(|i| i as f32).collect()));
        let sample = |perm| Sample { op: Transpose { perm }.into(), inputs: vec![x.clone()] };
        vec![sample(None), sample(Some(vec![0, 2, 3, 1])), sample(Some(vec![1, 0, 2, 3]))]
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::{first, iota};
    use super::*;

    #[test]
    fn axes_move_as_in_numpy() {
        let y = first(Transpose { perm: None }, &[iota(&[2, 3])]).unwrap();
        assert_eq!(y, Tensor::f32(&[3, 2], vec![0., 3., 1., 4., 2., 5.]));
        // numpy.arange(12).reshape(2, 3, 1, 2).transpose(0, 2, 3, 1)
        let y = first(Transpose { perm: Some(vec![0, 2, 3, 1]) }, &[iota(&[2, 3, 1, 2])]).unwrap();
        assert_eq!(y, Tensor::f32(&[2, 1, 2, 3], vec![0., 2., 4., 1., 3., 5., 6., 8., 10., 7., 9., 11.]));
        let y = first(Transpose { perm: Some(vec![1, 0]) }, &[Tensor::bool(&[1, 2], vec![true, false])]).unwrap();
        assert_eq!(y, Tensor::bool(&[2, 1], vec![true, false]));
    }

    #[test]
    fn what_is_no_permutation_is_refused() {
        for perm in [vec![0], vec![0, 0], vec![0, 2], vec![0, 1, 2]] {
            assert!(first(Transpose { perm: Some(perm) }, &[iota(&[2, 3])]).is_err());
        }
    }
}
