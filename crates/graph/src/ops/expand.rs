//! Expand and Tile: a tensor repeated along its axes.

use super::{
    backward,
    broadcast::broadcast_dims,
    dispatch::{Tables, move_codes, take},
    samples::varied,
};
use crate::{
    attrs::Attrs,
    error::OpError,
    op::{Activation, Fact, Facts, Kernel, OpDef, OpFile, Pass, QuantRule, Sample, Want, check_axes, known_ints, required},
    tensor::Tensor,
};

/// `y = x` stretched to the common shape of its own and input 1, by the rules of broadcasting.
#[derive(Clone, Debug, PartialEq)]
pub struct Expand;

/// `y = x`, repeated along each axis as often as input 1 says.
#[derive(Clone, Debug, PartialEq)]
pub struct Tile;

/// The list of sizes in input 1.
fn sizes(ins: Facts) -> Result<Vec<usize>, OpError> {
    let list = known_ints(ins, 1)?;
    let sizes: Option<Vec<_>> = list.iter().map(|&d| u32::try_from(d).ok().map(|d| d as usize)).collect();
    sizes.ok_or_else(|| OpError::Unsupported(format!("the sizes {list:?}")))
}

impl Expand {
    /// `x` with leading ones, and how its axes are repeated.
    fn tables(ins: Facts) -> Result<(Fact, Tables), OpError> {
        let x = required(ins, 0)?;
        let out = broadcast_dims(&x.dims, &sizes(ins)?)?;
        check_axes(&out)?;
        let dims = [&vec![1; out.len() - x.dims.len()], &x.dims[..]].concat();
        let table = |(&from, &to): (&usize, &usize)| (from != to).then(|| vec![0; to]);
        let tables = dims.iter().zip(&out).map(table).collect();
        Ok((Fact { dims, ..x.clone() }, tables))
    }
}

impl Tile {
    fn tables(ins: Facts) -> Result<(Fact, Tables), OpError> {
        let (x, repeats) = (required(ins, 0)?, sizes(ins)?);
        if repeats.len() != x.dims.len() {
            return Err(OpError::Shapes { what: "axes and repeats", left: x.dims.clone(), right: repeats });
        }
        check_axes(&x.dims.iter().zip(&repeats).map(|(&len, &count)| len.saturating_mul(count)).collect::<Vec<_>>())?;
        let table = |(&len, &count): (&usize, &usize)| (count != 1).then(|| (0..count).flat_map(|_| 0..len).collect());
        Ok((x.clone(), x.dims.iter().zip(&repeats).map(table).collect()))
    }
}

macro_rules! repeats {
    ($($Name:ident)*) => {
        $(impl OpDef for $Name {
            fn attrs(&self) -> Attrs {
                Attrs::default()
            }

            fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
                let (x, tables) = Self::tables(ins)?;
                let dim = |(&d, table): (&usize, &Option<Vec<usize>>)| table.as_ref().map_or(d, Vec::len);
                let dims: Vec<usize> = x.dims.iter().zip(&tables).map(dim).collect();
                Ok(vec![Fact::new(x.dtype, &dims)])
            }

            fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
                let (x, tables) = Self::tables(ins)?;
                take(&x, tables, None)
            }

            fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
                let (x, tables) = Self::tables(ins)?;
                backward::scatter(ins, outs, wants, &x, tables)
            }

            fn build_integer(&self, ins: Facts, outs: &[Fact], clamp: Activation) -> Result<Option<Kernel>, OpError> {
                move_codes(self, ins, outs, clamp)
            }

            fn quant_rule(&self) -> QuantRule {
                QuantRule::movement()
            }
        }

        impl OpFile for $Name {
            const NAME: &'static str = stringify!($Name);

            fn from_attrs(_attrs: &Attrs) -> Result<Self, OpError> {
                Ok($Name)
            }

            fn samples() -> Vec<Sample> {
                let sizes = Some(Tensor::i64(&[3], vec![3, 1, 2]));
                vec![Sample { op: $Name.into(), inputs: vec![Some(varied(&[1, 4, 1], 1)), sizes] }]
            }
        })*
    };
}
repeats! { Expand Tile }

#[cfg(test)]
mod tests {
    use super::super::trial::{first, iota};
    use super::*;

    #[test]
    fn repeats_as_numpy_does() {
        let ints = |v: &[i64]| Tensor::i64(&[v.len()], v.to_vec());
        // numpy.broadcast_to(numpy.arange(2).reshape(2, 1), (2, 2, 3))
        let y = first(Expand, &[iota(&[2, 1]), ints(&[2, 1, 3])]).unwrap();
        assert_eq!(y, Tensor::f32(&[2, 2, 3], vec![0., 0., 0., 1., 1., 1., 0., 0., 0., 1., 1., 1.]));
        assert_eq!(first(Expand, &[iota(&[2, 3]), ints(&[1])]).unwrap(), iota(&[2, 3]));
        assert!(first(Expand, &[iota(&[2, 3]), ints(&[2])]).is_err());
        assert!(first(Expand, &[iota(&[1]), ints(&[-1])]).is_err());
        // numpy.tile(numpy.arange(4).reshape(2, 2), (2, 2))
        let y = first(Tile, &[iota(&[2, 2]), ints(&[2, 2])]).unwrap();
        assert_eq!(y, Tensor::f32(&[4, 4], vec![0., 1., 0., 1., 2., 3., 2., 3., 0., 1., 0., 1., 2., 3., 2., 3.]));
        assert!(first(Tile, &[iota(&[2, 2]), ints(&[2])]).is_err());
        let huge = i64::from(u32::MAX);
        assert!(first(Tile, &[iota(&[2, 2]), ints(&[huge, 1])]).is_err());
        assert!(first(Expand, &[iota(&[1, 1]), ints(&[huge, huge])]).is_err());
        assert_eq!(first(Tile, &[iota(&[2]), ints(&[0])]).unwrap(), iota(&[0]));
    }
}
