//! DepthToSpace and SpaceToDepth: blocks of pixels to channels and back.

use super::{
    backward,
    dispatch::{Element, move_codes, with_element},
};
use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{Activation, Fact, Facts, Kernel, OpDef, OpFile, Pass, QuantRule, Sample, Want, required},
    ops::samples::sample,
    tensor::DType,
};
use fewbits_kernels::movement::Transpose;

/// `[N, C, H, W]` → `[N, C / b², H·b, W·b]`: channels become blocks of `b × b` pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct DepthToSpace {
    /// Side of a block.
    pub block: usize,
    /// Whether the place in the block is the inner part of the channel index (mode `CRD`, as PyTorch's PixelShuffle has it).
    pub place_inside: bool,
}

/// `[N, C, H, W]` → `[N, C·b², H / b, W / b]`: the inverse of [`DepthToSpace`] with the place outside.
#[derive(Clone, Debug, PartialEq)]
pub struct SpaceToDepth {
    /// Side of a block.
    pub block: usize,
}

/// The four dimensions of input 0.
fn image(ins: Facts) -> Result<[usize; 4], OpError> {
    let dims = &required(ins, 0)?.dims;
    <[usize; 4]>::try_from(&dims[..]).map_err(|_| OpError::Shapes {
        what: "the input and 4 axes",
        left: dims.clone(),
        right: vec![4],
    })
}

fn block(attrs: &Attrs) -> Result<usize, OpError> {
    match attrs.int("blocksize")? {
        Some(block @ 1..=65536) => Ok(block as usize),
        other => Err(OpError::Attribute { name: "blocksize", reason: format!("{other:?} is not in 1..=65536") }),
    }
}

/// An error unless `block` divides `sizes`.
fn divides(block: usize, sizes: &[usize]) -> Result<(), OpError> {
    if sizes.iter().all(|s| s % block == 0) {
        Ok(())
    } else {
        Err(OpError::Shapes { what: "sizes and the block", left: sizes.to_vec(), right: vec![block] })
    }
}

/// Input 0 seen as `split`, permuted.
fn rearrange(ins: Facts, split: [usize; 6], permutation: [usize; 6]) -> Result<Kernel, OpError> {
    let transpose = Transpose::new(&split, &permutation);
    Ok(with_element!(required(ins, 0)?.dtype, T => {
        Kernel::new(move |io| transpose.run(io.threads, T::input(io, 0), T::output(io, 0)))
    }))
}

impl DepthToSpace {
    /// How the axes of input 0 are split, and their order after that.
    fn arrangement(&self, ins: Facts) -> Result<([usize; 6], [usize; 6]), OpError> {
        let ([n, c, h, w], b) = (image(ins)?, self.block);
        let c = c / (b * b);
        Ok(match self.place_inside {
            true => ([n, c, b, b, h, w], [0, 1, 4, 2, 5, 3]),
            false => ([n, b, b, c, h, w], [0, 3, 4, 1, 5, 2]),
        })
    }
}

impl OpDef for DepthToSpace {
    fn attrs(&self) -> Attrs {
        let mode = if self.place_inside { "CRD" } else { "DCR" };
        Attrs::default().with("blocksize", Attr::Int(self.block as i64)).with("mode", Attr::Str(mode.into()))
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let ([n, c, h, w], b) = (image(ins)?, self.block);
        divides(b * b, &[c])?;
        Ok(vec![Fact::new(required(ins, 0)?.dtype, &[n, c / (b * b), h * b, w * b])])
    }

    fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
        let (split, permutation) = self.arrangement(ins)?;
        rearrange(ins, split, permutation)
    }

    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        let (split, permutation) = self.arrangement(ins)?;
        backward::permute(ins, outs, wants, &split, &permutation)
    }

    fn build_integer(&self, ins: Facts, outs: &[Fact], clamp: Activation) -> Result<Option<Kernel>, OpError> {
        move_codes(self, ins, outs, clamp)
    }

    fn quant_rule(&self) -> QuantRule {
        QuantRule::movement()
    }
}

impl SpaceToDepth {
    fn arrangement(&self, ins: Facts) -> Result<([usize; 6], [usize; 6]), OpError> {
        let ([n, c, h, w], b) = (image(ins)?, self.block);
        Ok(([n, c, h / b, b, w / b, b], [0, 3, 5, 1, 2, 4]))
    }
}

impl OpDef for SpaceToDepth {
    fn attrs(&self) -> Attrs {
        Attrs::default().with("blocksize", Attr::Int(self.block as i64))
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let ([n, c, h, w], b) = (image(ins)?, self.block);
        divides(b, &[h, w])?;
        Ok(vec![Fact::new(required(ins, 0)?.dtype, &[n, c * b * b, h / b, w / b])])
    }

    fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
        let (split, permutation) = self.arrangement(ins)?;
        rearrange(ins, split, permutation)
    }

    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        let (split, permutation) = self.arrangement(ins)?;
        backward::permute(ins, outs, wants, &split, &permutation)
    }

    fn build_integer(&self, ins: Facts, outs: &[Fact], clamp: Activation) -> Result<Option<Kernel>, OpError> {
        move_codes(self, ins, outs, clamp)
    }

    fn quant_rule(&self) -> QuantRule {
        QuantRule::movement()
    }
}

impl OpFile for DepthToSpace {
    const NAME: &'static str = "DepthToSpace";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        let mode = attrs.str("mode")?.unwrap_or_else(|| "DCR".into());
        if !["DCR", "CRD"].contains(&mode.as_str()) {
            return Err(OpError::Attribute { name: "mode", reason: format!("`{mode}` is neither DCR nor CRD") });
        }
        Ok(DepthToSpace { block: block(attrs)?, place_inside: mode == "CRD" })
    }

    fn samples() -> Vec<Sample> {
        let shuffle = |place_inside| sample(DepthToSpace { block: 2, place_inside }, &[&[2, 12, 2, 3]]);
        vec![shuffle(false), shuffle(true)]
    }
}

impl OpFile for SpaceToDepth {
    const NAME: &'static str = "SpaceToDepth";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        Ok(SpaceToDepth { block: block(attrs)? })
    }

    fn samples() -> Vec<Sample> {
        vec![sample(SpaceToDepth { block: 2 }, &[&[2, 3, 4, 6]])]
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::{first, iota};
    use super::*;

    #[test]
    fn the_two_are_inverse_and_blocks_must_fit() {
        let x = iota(&[2, 8, 3, 2]);
        let wide = first(DepthToSpace { block: 2, place_inside: false }, std::slice::from_ref(&x)).unwrap();
        assert_eq!(wide.dims, [2, 2, 6, 4]);
        assert_eq!(first(SpaceToDepth { block: 2 }, &[wide]).unwrap(), x);
        assert!(first(DepthToSpace { block: 3, place_inside: true }, std::slice::from_ref(&x)).is_err());
        assert!(first(SpaceToDepth { block: 2 }, &[x]).is_err());
    }
}
