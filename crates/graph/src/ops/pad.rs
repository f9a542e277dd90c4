//! Pad: adds a border around a tensor, or cuts one off.

use super::{
    backward, codes,
    dispatch::{Tables, take},
};
use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{
        Activation, Fact, Facts, Kernel, LayoutRule, OpDef, OpFile, Pass, QuantRule, Sample, Want, check_axes, known,
        known_ints, normal_axis, optional, required,
    },
    tensor::Tensor,
};
use fewbits_kernels::{
    int::quantize::quantize_value,
    movement::{self, PadMode},
};

/// `y` is `x` with `pads` elements more (fewer, where negative) at both ends of each axis. Inputs: data, pads (all begins, then
/// all ends), the value of a constant border (default 0), axes (default: all).
#[derive(Clone, Debug, PartialEq)]
pub struct Pad {
    /// What the border holds.
    pub mode: PadMode,
}

impl Pad {
    /// Index tables for the axes that change.
    pub(crate) fn tables(&self, ins: Facts) -> Result<Tables, OpError> {
        let x = required(ins, 0)?;
        let (rank, pads) = (x.dims.len(), known_ints(ins, 1)?);
        let axes = match optional(ins, 3) {
            Some(_) => known_ints(ins, 3)?,
            None => (0..rank as i64).collect(),
        };
        if pads.len() != 2 * axes.len() {
            return Err(OpError::Shapes { what: "pads and axes", left: vec![pads.len()], right: vec![axes.len()] });
        }
        let (mut borders, mut dims) = (vec![[0; 2]; rank], x.dims.clone());
        for (i, &axis) in axes.iter().enumerate() {
            let axis = normal_axis(axis, rank)?;
            let (len, before, after) = (x.dims[axis], pads[i], pads[axes.len() + i]);
            let fits = |pad: i64| pad.unsigned_abs() <= i32::MAX as u64;
            let empty = len as i64 + before.min(0) + after.min(0) <= 0 && self.mode != PadMode::Constant;
            if !fits(before) || !fits(after) || (len as i64) + before + after < 0 || (empty && before.max(after) > 0) {
                let reason = format!("pads {before} and {after} do not fit an axis of {len}");
                return Err(OpError::Unsupported(reason));
            }
            dims[axis] = (len as i64 + before + after) as usize;
            borders[axis] = [before as isize, after as isize];
        }
        check_axes(&dims)?;
        let table = |(&len, [before, after]): (&usize, [isize; 2])| {
            ([before, after] != [0, 0]).then(|| movement::pad(len, before, after, self.mode))
        };
        Ok(x.dims.iter().zip(borders).map(table).collect())
    }

    /// The value of a constant border, where one is given.
    fn fill<'a>(&self, ins: Facts<'a>) -> Result<Option<&'a Tensor>, OpError> {
        if optional(ins, 2).is_none() || self.mode != PadMode::Constant {
            return Ok(None);
        }
        let fill = known(ins, 2)?;
        match fill.len() {
            1 => Ok(Some(fill)),
            n => Err(OpError::Shapes { what: "border value and a scalar", left: vec![n], right: vec![] }),
        }
    }
}

impl OpDef for Pad {
    fn attrs(&self) -> Attrs {
        let mode = match self.mode {
            PadMode::Constant => "constant",
            PadMode::Reflect => "reflect",
            PadMode::Edge => "edge",
            PadMode::Wrap => "wrap",
        };
        Attrs::default().with("mode", Attr::Str(mode.into()))
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let x = required(ins, 0)?;
        if let Some(fill) = self.fill(ins)?.filter(|fill| fill.dtype() != x.dtype) {
            return Err(OpError::DType { index: 2, expected: x.dtype, found: fill.dtype() });
        }
        let dims: Vec<usize> =
            x.dims.iter().zip(self.tables(ins)?).map(|(&d, table)| table.map_or(d, |indices| indices.len())).collect();
        Ok(vec![Fact::new(x.dtype, &dims)])
    }

    fn layout(&self) -> LayoutRule {
        LayoutRule::Any
    }

    fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
        take(required(ins, 0)?, self.tables(ins)?, self.fill(ins)?)
    }

    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        backward::scatter(ins, outs, wants, required(ins, 0)?, self.tables(ins)?)
    }

    fn build_integer(&self, ins: Facts, outs: &[Fact], clamp: Activation) -> Result<Option<Kernel>, OpError> {
        let x = required(ins, 0)?;
        let Some(grid) = x.grid.as_ref().and_then(codes::stored) else { return Ok(None) };
        if clamp != Activation::Identity || outs[0].grid != x.grid {
            return Ok(None);
        }
        let value = self.fill(ins)?.and_then(Tensor::scalar_f32).unwrap_or(0.0);
        let fill = Tensor::u8(&[], vec![quantize_value(value, &grid) as u8]);
        take(x, self.tables(ins)?, Some(&fill)).map(Some)
    }

    fn quant_rule(&self) -> QuantRule {
        QuantRule::movement()
    }
}

impl OpFile for Pad {
    const NAME: &'static str = "Pad";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        let mode = match attrs.str("mode")?.as_deref() {
            None | Some("constant") => PadMode::Constant,
            Some("reflect") => PadMode::Reflect,
            Some("edge") => PadMode::Edge,
            Some("wrap") => PadMode::Wrap,
            Some(other) => return Err(OpError::Attribute { name: "mode", reason: format!("`{other}` is unknown") }),
        };
        Ok(Pad { mode })
    }

    fn samples() -> Vec<Sample> {
        let x = Some(Tensor::f32(&[1, 2, 3, 4], (0..24).map(|i| i as f32 - 10.0).collect()));
        let pads = Some(Tensor::i64(&[8], vec![0, 0, 1, 2, 0, 1, 0, 2]));
        let some_axes = [Some(Tensor::i64(&[4], vec![1, 2, 2, 1])), None, Some(Tensor::i64(&[2], vec![-2, 3]))];
        let value = Some(Tensor::f32(&[], vec![-3.5]));
        let constant = Pad { mode: PadMode::Constant };
        let reflected = [[x.clone()].to_vec(), some_axes.to_vec()].concat();
        vec![
            Sample { op: constant.clone().into(), inputs: vec![x.clone(), pads.clone()] },
            Sample { op: constant.into(), inputs: vec![x.clone(), pads.clone(), value] },
            Sample { op: Pad { mode: PadMode::Reflect }.into(), inputs: reflected },
            Sample { op: Pad { mode: PadMode::Edge }.into(), inputs: vec![x.clone(), pads.clone()] },
            Sample { op: Pad { mode: PadMode::Wrap }.into(), inputs: vec![x, pads] },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::{first, iota, trial};
    use super::*;
    use crate::grid::{Grid, QuantParams};
    use crate::op::{Io, Slice, SliceMut};
    use fewbits_kernels::Threads;
    use std::sync::Arc;

    #[test]
    fn modes_equal_numpy() {
        let pads = Tensor::i64(&[4], vec![1, 2, 0, 1]);
        // numpy.pad(numpy.arange(6).reshape(2, 3), ((1, 0), (2, 1)), mode)
        let cases: [(PadMode, &[f32]); 4] = [
            (PadMode::Constant, &[0., 0., 0., 0., 0., 0., 0., 0., 0., 1., 2., 0., 0., 0., 3., 4., 5., 0.]),
            (PadMode::Reflect, &[5., 4., 3., 4., 5., 4., 2., 1., 0., 1., 2., 1., 5., 4., 3., 4., 5., 4.]),
            (PadMode::Edge, &[0., 0., 0., 1., 2., 2., 0., 0., 0., 1., 2., 2., 3., 3., 3., 4., 5., 5.]),
            (PadMode::Wrap, &[4., 5., 3., 4., 5., 3., 1., 2., 0., 1., 2., 0., 4., 5., 3., 4., 5., 3.]),
        ];
        for (mode, expected) in cases {
            let y = first(Pad { mode }, &[iota(&[2, 3]), pads.clone()]).unwrap();
            assert_eq!((&y.dims[..], y.as_f32().unwrap()), (&[3, 6][..], expected), "{mode:?}");
        }
    }

    #[test]
    fn pads_given_axes_with_a_value_and_cuts_off() {
        let x = Tensor::i8(&[1, 2, 2, 1], vec![1, 2, 3, 4]);
        let (pads, axes) = (Tensor::i64(&[4], vec![1, -1, 0, 1]), Tensor::i64(&[2], vec![-1, 1]));
        let y =
            trial(Pad { mode: PadMode::Constant }, &[Some(x), Some(pads), Some(Tensor::i8(&[], vec![9])), Some(axes)])
                .unwrap();
        assert_eq!(y[0], Tensor::i8(&[1, 2, 2, 2], vec![9, 3, 9, 4, 9, 9, 9, 9]));
    }

    #[test]
    fn a_constant_border_is_quantized_like_the_data() {
        let grid = QuantParams::per_tensor(Grid { bits: 8, signed: true, narrow: false }, 0.5, -3);
        let fact = |len| Fact { grid: Some(grid.clone()), ..Fact::new(crate::DType::U8, &[len]) };
        let (x, y) = (fact(1), fact(3));
        let pads = Fact::constant(Arc::new(Tensor::i64(&[2], vec![1, 1])));
        let value = Fact::constant(Arc::new(Tensor::f32(&[], vec![2.25])));
        for (value, code) in [(None, 125), (Some(&value), 129)] {
            let kernel = Pad { mode: PadMode::Constant }
                .build_integer(&[Some(&x), Some(&pads), value], std::slice::from_ref(&y), Activation::Identity)
                .unwrap()
                .unwrap();
            let mut out = [0; 3];
            let (ins, outs) = ([Slice::U8(&[200])], &mut [SliceMut::U8(&mut out)]);
            kernel.run(&mut Io { threads: &Threads::new(1), ins: &ins, outs, scratch: &mut [] });
            assert_eq!(out, [code, 200, code]);
        }
    }

    #[test]
    fn misfits_are_refused() {
        let refused =
            |mode, pads: &[i64]| first(Pad { mode }, &[iota(&[2]), Tensor::i64(&[pads.len()], pads.to_vec())]).is_err();
        assert!(refused(PadMode::Constant, &[1]));
        assert!(refused(PadMode::Constant, &[-2, -1]));
        assert!(refused(PadMode::Constant, &[i64::MAX, 0]));
        assert!(refused(PadMode::Edge, &[-2, 1]));
        let huge = Tensor::i64(&[4], vec![1 << 30; 4]);
        assert!(first(Pad { mode: PadMode::Constant }, &[iota(&[2, 2]), huge]).is_err());
        assert!(!refused(PadMode::Constant, &[-2, 1]));
        let fill = first(
            Pad { mode: PadMode::Constant },
            &[iota(&[2]), Tensor::i64(&[2], vec![1, 0]), Tensor::i64(&[], vec![1])],
        );
        assert!(matches!(fill, Err(OpError::DType { index: 2, .. })));
        assert!(Pad::from_attrs(&Attrs::default().with("mode", Attr::Str("mirror".into()))).is_err());
    }
}
