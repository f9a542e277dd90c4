//! Slice: picks a range with a step along some axes.

use super::{
    backward,
    dispatch::{Tables, move_codes, take},
};
use crate::{
    attrs::Attrs,
    error::OpError,
    op::{
        Activation, Fact, Facts, Kernel, LayoutRule, OpDef, OpFile, Pass, QuantRule, Sample, Want, known_ints,
        normal_axis, optional, required,
    },
    tensor::Tensor,
};
use fewbits_kernels::movement;

/// `y = x[starts : ends : steps]` along `axes`, with the conventions of Python: negative starts and ends count from the end of
/// the axis, and what is out of range is clamped. Inputs: data, starts, ends, axes (default: the first ones), steps (default 1).
#[derive(Clone, Debug, PartialEq)]
pub struct Slice;

/// Index tables for the axes that are cut.
pub(crate) fn tables(ins: Facts) -> Result<Tables, OpError> {
    let x = required(ins, 0)?;
    let (starts, ends) = (known_ints(ins, 1)?, known_ints(ins, 2)?);
    let axes = match optional(ins, 3) {
        Some(_) => known_ints(ins, 3)?,
        None => (0..starts.len() as i64).collect(),
    };
    let steps = match optional(ins, 4) {
        Some(_) => known_ints(ins, 4)?,
        None => vec![1; starts.len()],
    };
    for (what, list) in [("starts and ends", &ends), ("starts and axes", &axes), ("starts and steps", &steps)] {
        if list.len() != starts.len() {
            return Err(OpError::Shapes { what, left: vec![starts.len()], right: vec![list.len()] });
        }
    }
    let mut tables = vec![None; x.dims.len()];
    for (i, &axis) in axes.iter().enumerate() {
        let axis = normal_axis(axis, x.dims.len())?;
        tables[axis] = Some(indices(x.dims[axis] as i64, starts[i], ends[i], steps[i])?);
    }
    Ok(tables)
}

/// The indices of one axis of `len` elements.
fn indices(len: i64, start: i64, end: i64, step: i64) -> Result<Vec<usize>, OpError> {
    let from_front = |i: i64| if i < 0 { i.saturating_add(len) } else { i };
    // Where a walk may start and, one step behind its last place, end.
    let (start_range, end_range) = if step > 0 { ((0, len), (0, len)) } else { ((0, len - 1), (-1, len - 1)) };
    if step == 0 {
        return Err(OpError::Unsupported("a step of 0".into()));
    }
    if len == 0 {
        return Ok(vec![]);
    }
    let start = from_front(start).clamp(start_range.0, start_range.1);
    let end = from_front(end).clamp(end_range.0, end_range.1);
    let distance = if step > 0 { end - start } else { start - end }.max(0);
    let count = (distance as u64).div_ceil(step.unsigned_abs()) as usize;
    // A step longer than the axis is taken at most zero times.
    Ok(movement::slice(start as usize, step.clamp(-len, len) as isize, count))
}

impl OpDef for Slice {
    fn attrs(&self) -> Attrs {
        Attrs::default()
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let x = required(ins, 0)?;
        let dims: Vec<usize> =
            x.dims.iter().zip(tables(ins)?).map(|(&d, table)| table.map_or(d, |indices| indices.len())).collect();
        Ok(vec![Fact::new(x.dtype, &dims)])
    }

    fn layout(&self) -> LayoutRule {
        LayoutRule::Any
    }

    fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
        take(required(ins, 0)?, tables(ins)?, None)
    }

    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        backward::scatter(ins, outs, wants, required(ins, 0)?, tables(ins)?)
    }

    fn build_integer(&self, ins: Facts, outs: &[Fact], clamp: Activation) -> Result<Option<Kernel>, OpError> {
        move_codes(self, ins, outs, clamp)
    }

    fn quant_rule(&self) -> QuantRule {
        QuantRule::movement()
    }
}

impl OpFile for Slice {
    const NAME: &'static str = "Slice";

    fn from_attrs(_attrs: &Attrs) -> Result<Self, OpError> {
        Ok(Slice)
    }

    fn samples() -> Vec<Sample> {
        let ints = |v: &[i64]| Some(Tensor::i64(&[v.len()], v.to_vec()));
        let x = Some(Tensor::f32(&[1, 3, 4, 4], (0..48).map(|i| i as f32).collect()));
        let shape = Some(Tensor::i64(&[4], vec![1, 3, 8, 8]));
        vec![
            Sample {
                op: Slice.into(),
                inputs: vec![x.clone(), ints(&[0, 1]), ints(&[i64::MAX; 2]), ints(&[3, 2]), ints(&[2, 2])],
            },
            Sample { op: Slice.into(), inputs: vec![x, ints(&[-1]), ints(&[i64::MIN]), ints(&[1]), ints(&[-1])] },
            Sample { op: Slice.into(), inputs: vec![shape, ints(&[2]), ints(&[4])] },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::{first, iota};
    use super::*;

    #[test]
    fn ranges_follow_python() {
        // (start, end, step, numpy.arange(5)[start:end:step])
        let cases: [(i64, i64, i64, &[f32]); 14] = [
            (1, 3, 1, &[1., 2.]),
            (0, i64::MAX, 2, &[0., 2., 4.]),
            (-3, -1, 1, &[2., 3.]),
            (-100, 100, 3, &[0., 3.]),
            (4, 1, 1, &[]),
            (5, 9, 1, &[]),
            (-1, -6, -1, &[4., 3., 2., 1., 0.]),
            (100, i64::MIN, -2, &[4., 2., 0.]),
            (3, 0, -1, &[3., 2., 1.]),
            (1, 3, -1, &[]),
            (0, -1, -1, &[]),
            (-9, i64::MIN, -1, &[0.]),
            (1, i64::MAX, i64::MAX, &[1.]),
            (3, i64::MIN, i64::MIN, &[3.]),
        ];
        for (start, end, step, expected) in cases {
            let one = |v: i64| Tensor::i64(&[1], vec![v]);
            let y = first(Slice, &[iota(&[5]), one(start), one(end), one(0), one(step)]).unwrap();
            assert_eq!(y.as_f32().unwrap(), expected, "{start}:{end}:{step}");
        }
    }

    #[test]
    fn cuts_several_axes_in_both_memory_orders() {
        let ints = |v: &[i64]| Tensor::i64(&[v.len()], v.to_vec());
        let inputs = [iota(&[2, 3, 2, 4]), ints(&[1, -2, 3]), ints(&[9, 9, -5]), ints(&[0, 1, -1]), ints(&[1, 1, -2])];
        let y = first(Slice, &inputs).unwrap();
        assert_eq!(y.dims, [1, 2, 2, 2]);
        assert_eq!(y.as_f32().unwrap(), [35., 33., 39., 37., 43., 41., 47., 45.]);
        let whole = first(Slice, &[iota(&[2, 2]), ints(&[1]), ints(&[2])]).unwrap();
        assert_eq!(whole.as_f32().unwrap(), [2., 3.]);
    }

    #[test]
    fn misfits_are_refused() {
        let ints = |v: &[i64]| Tensor::i64(&[v.len()], v.to_vec());
        let refused = |rest: &[Tensor]| first(Slice, &[&[iota(&[4])], rest].concat()).is_err();
        assert!(refused(&[ints(&[0]), ints(&[1, 2])]));
        assert!(refused(&[ints(&[0]), ints(&[1]), ints(&[1])]));
        assert!(refused(&[ints(&[0]), ints(&[1]), ints(&[0]), ints(&[0])]));
        let unknown = Fact::new(crate::DType::I64, &[1]);
        let facts = [Fact::new(crate::DType::F32, &[4]), unknown.clone(), unknown];
        let ins: Vec<_> = facts.iter().map(Some).collect();
        assert_eq!(Slice.infer(&ins), Err(OpError::NotConstant { index: 1 }));
    }
}
