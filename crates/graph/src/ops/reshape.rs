//! Reshape, Flatten, Squeeze, Unsqueeze: other dimensions over the same elements.

use super::{
    backward,
    dispatch::{copy, move_codes},
};
use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{
        Activation, Fact, Facts, Kernel, OpDef, OpFile, Pass, QuantRule, Sample, Want, known_ints, normal_axis,
        optional, required,
    },
    tensor::Tensor,
};

/// `y` has the dimensions of input 1, of which 0 stands for that of `x` and one −1 for what is left over.
#[derive(Clone, Debug, PartialEq)]
pub struct Reshape {
    /// 0 stands for 0.
    pub allow_zero: bool,
}

impl Reshape {
    fn dims(&self, ins: Facts) -> Result<Vec<usize>, OpError> {
        let (x, shape) = (required(ins, 0)?, known_ints(ins, 1)?);
        let misfit = || OpError::Shapes {
            what: "elements and the new shape",
            left: x.dims.clone(),
            right: shape.iter().map(|&d| usize::try_from(d).unwrap_or(0)).collect(),
        };
        let size = |(axis, &d): (usize, &i64)| match d {
            -1 => Some(1),
            0 if !self.allow_zero => x.dims.get(axis).copied(),
            d => usize::try_from(d).ok(),
        };
        let mut dims = shape.iter().enumerate().map(size).collect::<Option<Vec<_>>>().ok_or_else(misfit)?;
        let known = dims.iter().try_fold(1usize, |product, &d| product.checked_mul(d)).ok_or_else(misfit)?;
        let mut free = shape.iter().enumerate().filter(|&(_, &d)| d == -1).map(|(axis, _)| axis);
        let fits = match (free.next(), free.next()) {
            (None, _) => known == x.len(),
            (Some(axis), None) if known > 0 => {
                dims[axis] = x.len() / known;
                dims[axis] * known == x.len()
            }
            _ => false,
        };
        if fits { Ok(dims) } else { Err(misfit()) }
    }
}

/// `y` is a matrix: the axes before `axis` make its rows, the others its columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Flatten {
    /// May be negative, and equal to the rank.
    pub axis: i64,
}

impl Flatten {
    fn dims(&self, ins: Facts) -> Result<Vec<usize>, OpError> {
        let x = required(ins, 0)?;
        let rank = x.dims.len();
        let axis = if self.axis == rank as i64 { rank } else { normal_axis(self.axis, rank)? };
        Ok(vec![x.dims[..axis].iter().product(), x.dims[axis..].iter().product()])
    }
}

/// `y` lacks the axes of input 1, which must have length 1; without input 1, all axes of length 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Squeeze;

impl Squeeze {
    fn dims(&self, ins: Facts) -> Result<Vec<usize>, OpError> {
        let x = required(ins, 0)?;
        let mut keep: Vec<bool> = x.dims.iter().map(|&d| d != 1).collect();
        if optional(ins, 1).is_some() {
            keep.fill(true);
            for axis in known_ints(ins, 1)? {
                let axis = normal_axis(axis, x.dims.len())?;
                if x.dims[axis] != 1 {
                    let right = vec![axis];
                    return Err(OpError::Shapes {
                        what: "an axis longer than 1 cannot go",
                        left: x.dims.clone(),
                        right,
                    });
                }
                keep[axis] = false;
            }
        }
        Ok(x.dims.iter().zip(keep).filter(|&(_, keep)| keep).map(|(&d, _)| d).collect())
    }
}

/// `y` has an axis of length 1 at each of the places that input 1 lists.
#[derive(Clone, Debug, PartialEq)]
pub struct Unsqueeze;

impl Unsqueeze {
    fn dims(&self, ins: Facts) -> Result<Vec<usize>, OpError> {
        let (x, axes) = (required(ins, 0)?, known_ints(ins, 1)?);
        let rank = x.dims.len() + axes.len();
        let mut new = vec![false; rank];
        for &axis in &axes {
            let axis = normal_axis(axis, rank)?;
            if std::mem::replace(&mut new[axis], true) {
                return Err(OpError::Attribute { name: "axes", reason: format!("{axes:?} names an axis twice") });
            }
        }
        let mut old = x.dims.iter();
        Ok(new.into_iter().map(|new| if new { 1 } else { old.next().copied().unwrap_or(1) }).collect())
    }
}

macro_rules! reshapes {
    ($($Name:ident)*) => {
        $(impl OpDef for $Name {
            fn attrs(&self) -> Attrs {
                self.to_attrs()
            }

            fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
                Ok(vec![Fact::new(required(ins, 0)?.dtype, &self.dims(ins)?)])
            }

            fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
                copy(required(ins, 0)?)
            }

            fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
                backward::copy(ins, outs, wants)
            }

            fn build_integer(&self, ins: Facts, outs: &[Fact], clamp: Activation) -> Result<Option<Kernel>, OpError> {
                move_codes(self, ins, outs, clamp)
            }

            fn quant_rule(&self) -> QuantRule {
                QuantRule::movement()
            }
        })*
    };
}
reshapes! { Reshape Flatten Squeeze Unsqueeze }

impl Reshape {
    fn to_attrs(&self) -> Attrs {
        Attrs::default().with("allowzero", Attr::Int(self.allow_zero.into()))
    }
}

impl Flatten {
    fn to_attrs(&self) -> Attrs {
        Attrs::default().with("axis", Attr::Int(self.axis))
    }
}

impl Squeeze {
    fn to_attrs(&self) -> Attrs {
        Attrs::default()
    }
}

impl Unsqueeze {
    fn to_attrs(&self) -> Attrs {
        Attrs::default()
    }
}

fn image() -> Option<Tensor> {
    Some(Tensor::f32(&[2, 3, 1, 2], (0..12).map(|i| i as f32 - 4.0).collect()))
}

fn ints(v: &[i64]) -> Option<Tensor> {
    Some(Tensor::i64(&[v.len()], v.to_vec()))
}

impl OpFile for Reshape {
    const NAME: &'static str = "Reshape";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        Ok(Reshape { allow_zero: attrs.int("allowzero")?.unwrap_or(0) != 0 })
    }

    fn samples() -> Vec<Sample> {
        let empty = Some(Tensor::f32(&[0, 2], vec![]));
        vec![
            Sample { op: Reshape { allow_zero: false }.into(), inputs: vec![image(), ints(&[0, -1])] },
            Sample { op: Reshape { allow_zero: true }.into(), inputs: vec![empty, ints(&[3, 0])] },
        ]
    }
}

impl OpFile for Flatten {
    const NAME: &'static str = "Flatten";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        Ok(Flatten { axis: attrs.int("axis")?.unwrap_or(1) })
    }

    fn samples() -> Vec<Sample> {
        let flatten = |axis| Sample { op: Flatten { axis }.into(), inputs: vec![image()] };
        vec![flatten(1), flatten(-1), flatten(4), flatten(0)]
    }
}

impl OpFile for Squeeze {
    const NAME: &'static str = "Squeeze";

    fn from_attrs(_attrs: &Attrs) -> Result<Self, OpError> {
        Ok(Squeeze)
    }

    fn samples() -> Vec<Sample> {
        vec![
            Sample { op: Squeeze.into(), inputs: vec![image()] },
            Sample { op: Squeeze.into(), inputs: vec![image(), ints(&[-2])] },
        ]
    }
}

impl OpFile for Unsqueeze {
    const NAME: &'static str = "Unsqueeze";

    fn from_attrs(_attrs: &Attrs) -> Result<Self, OpError> {
        Ok(Unsqueeze)
    }

    fn samples() -> Vec<Sample> {
        vec![Sample { op: Unsqueeze.into(), inputs: vec![image(), ints(&[-1, 0])] }]
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        Op,
        trial::{first, iota},
    };
    use super::*;

    #[test]
    fn dimensions_follow_the_specification() {
        let reshape = |allow_zero| -> Op { Reshape { allow_zero }.into() };
        let flatten = |axis| -> Op { Flatten { axis }.into() };
        type Case = (Op, &'static [usize], Option<&'static [i64]>, Option<&'static [usize]>);
        let cases: Vec<Case> = vec![
            (reshape(false), &[2, 3, 4], Some(&[4, 6]), Some(&[4, 6])),
            (reshape(false), &[2, 3, 4], Some(&[0, -1]), Some(&[2, 12])),
            (reshape(false), &[2, 3, 4], Some(&[-1]), Some(&[24])),
            (reshape(false), &[1], Some(&[]), Some(&[])),
            (reshape(false), &[0, 3], Some(&[3, 0]), None),
            (reshape(false), &[0, 3], Some(&[0, -1]), None),
            (reshape(true), &[0, 3], Some(&[3, 0]), Some(&[3, 0])),
            (reshape(true), &[2, 3], Some(&[0, -1]), None),
            (reshape(false), &[2, 3], Some(&[-1, -1]), None),
            (reshape(false), &[2, 3], Some(&[4, -1]), None),
            (reshape(false), &[2, 3], Some(&[-2, -3]), None),
            (reshape(false), &[2, 3], Some(&[2, 3, 0]), None),
            (reshape(false), &[2, 3], Some(&[i64::MAX, i64::MAX]), None),
            (flatten(1), &[2, 3, 4], None, Some(&[2, 12])),
            (flatten(0), &[2, 3, 4], None, Some(&[1, 24])),
            (flatten(3), &[2, 3, 4], None, Some(&[24, 1])),
            (flatten(-1), &[2, 3, 4], None, Some(&[6, 4])),
            (flatten(4), &[2, 3, 4], None, None),
            (Squeeze.into(), &[1, 3, 1], None, Some(&[3])),
            (Squeeze.into(), &[1, 3, 1], Some(&[-1]), Some(&[1, 3])),
            (Squeeze.into(), &[1, 3, 1], Some(&[1]), None),
            (Squeeze.into(), &[1, 3, 1], Some(&[3]), None),
            (Unsqueeze.into(), &[3, 4], Some(&[0, -1]), Some(&[1, 3, 4, 1])),
            (Unsqueeze.into(), &[3], Some(&[2, 0]), Some(&[1, 3, 1])),
            (Unsqueeze.into(), &[3], Some(&[0, 0]), None),
            (Unsqueeze.into(), &[3], Some(&[2]), None),
            (Unsqueeze.into(), &[3], None, None),
        ];
        for (op, dims, list, expected) in cases {
            let inputs: Vec<_> = [Some(iota(dims)), list.and_then(ints)].into_iter().flatten().collect();
            let y = first(op.clone(), &inputs).ok();
            assert_eq!(y.as_ref().map(|y| &y.dims[..]), expected, "{op:?} {dims:?} {list:?}");
            if let Some(y) = y {
                assert_eq!(y.data, iota(dims).data);
            }
        }
    }
}
