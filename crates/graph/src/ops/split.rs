//! Split: cuts a tensor into parts along one axis.

use super::{
    backward::{gradient_index, is_float, of_first, put},
    dispatch::{Element, move_codes, with_element},
};
use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{
        Activation, Fact, Facts, Kernel, LayoutRule, OpDef, OpFile, Pass, QuantRule, Sample, Want, known_ints,
        normal_axis, optional, required,
    },
    tensor::{DType, Tensor},
};
use fewbits_kernels::movement;

/// `y_0 ++ y_1 ++ … = x` along `axis`. Input 1 holds the sizes of the parts; without it there are `num_outputs` parts of
/// `ceil(size / num_outputs)` elements, of which the last may be smaller.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// May be negative.
    pub axis: i64,
    /// Number of parts, where input 1 does not say.
    pub num_outputs: Option<usize>,
}

impl Split {
    /// Sizes of the parts of an axis of `size` elements.
    fn sizes(&self, ins: Facts, size: usize) -> Result<Vec<usize>, OpError> {
        let sizes: Vec<usize> = match (optional(ins, 1), self.num_outputs) {
            (Some(_), _) => {
                let given = known_ints(ins, 1)?;
                // A negative size becomes one that does not add up.
                given.iter().map(|&s| usize::try_from(s).unwrap_or(usize::MAX)).collect()
            }
            (None, None | Some(0)) => {
                let reason = "must be positive where input 1 is absent".into();
                return Err(OpError::Attribute { name: "num_outputs", reason });
            }
            (None, Some(count)) => {
                let part = size.div_ceil(count);
                (0..count).map(|i| size.saturating_sub(i * part).min(part)).collect()
            }
        };
        match sizes.iter().try_fold(0usize, |sum, &s| sum.checked_add(s)) == Some(size) {
            true => Ok(sizes),
            false => {
                Err(OpError::Shapes { what: "sizes of the parts and of the axis", left: sizes, right: vec![size] })
            }
        }
    }
}

impl Split {
    /// Elements of a row of the input, and how many of them each output gets.
    fn runs(&self, ins: Facts) -> Result<(usize, Vec<usize>), OpError> {
        let x = required(ins, 0)?;
        let axis = normal_axis(self.axis, x.dims.len())?;
        let inner: usize = x.physical_dims()[x.layout.physical_axis(axis, x.dims.len()) + 1..].iter().product();
        Ok((x.dims[axis] * inner, self.sizes(ins, x.dims[axis])?.iter().map(|size| size * inner).collect()))
    }
}

impl OpDef for Split {
    fn attrs(&self) -> Attrs {
        let attrs = Attrs::default().with("axis", Attr::Int(self.axis));
        match self.num_outputs {
            Some(count) => attrs.with("num_outputs", Attr::Int(count as i64)),
            None => attrs,
        }
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let x = required(ins, 0)?;
        let axis = normal_axis(self.axis, x.dims.len())?;
        let part = |size: usize| {
            let mut dims = x.dims.clone();
            dims[axis] = size;
            Fact::new(x.dtype, &dims)
        };
        Ok(self.sizes(ins, x.dims[axis])?.into_iter().map(part).collect())
    }

    fn layout(&self) -> LayoutRule {
        LayoutRule::Any
    }

    fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
        let x = required(ins, 0)?;
        let (row, runs) = self.runs(ins)?;
        Ok(with_element!(x.dtype, T => Kernel::new(move |io| {
            let (threads, x, mut start) = (io.threads, T::input(io, 0), 0);
            for (i, &run) in runs.iter().enumerate() {
                movement::split(threads, x, row, start, run, T::output(io, i));
                start += run;
            }
        })))
    }

    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        let ((row, runs), want, gradient) = (self.runs(ins)?, of_first(wants)?, gradient_index(ins, outs));
        let kernel = Kernel::new(move |io| {
            let mut start = 0;
            for (i, &run) in runs.iter().enumerate() {
                let (dy, dx) = (io.f32(gradient + i), io.out_f32(0));
                let rows = dx.chunks_exact_mut(row.max(1)).map(|dx| &mut dx[start..start + run]);
                if !dy.is_empty() {
                    rows.zip(dy.chunks_exact(run.max(1))).for_each(|(dx, dy)| put(want, dy, dx));
                } else if want == Want::Write {
                    // Nobody reads this part.
                    rows.for_each(|dx| dx.fill(0.0));
                }
                start += run;
            }
        });
        Ok(is_float(ins, outs)?.then(|| Pass::new(kernel)))
    }

    fn build_integer(&self, ins: Facts, outs: &[Fact], clamp: Activation) -> Result<Option<Kernel>, OpError> {
        move_codes(self, ins, outs, clamp)
    }

    fn quant_rule(&self) -> QuantRule {
        QuantRule::movement()
    }
}

impl OpFile for Split {
    const NAME: &'static str = "Split";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        let num_outputs = attrs.int("num_outputs")?.map(|n| usize::try_from(n).unwrap_or(0));
        Ok(Split { axis: attrs.int("axis")?.unwrap_or(0), num_outputs })
    }

    fn samples() -> Vec<Sample> {
        let x = Tensor::f32(&[1, 5, 2, 2], (0..20).map(|i| i as f32).collect());
        let sizes = Tensor::i64(&[2], vec![1, 4]);
        let bytes = Tensor::u8(&[2, 3], vec![1, 2, 3, 4, 5, 6]);
        vec![
            Sample { op: Split { axis: 1, num_outputs: Some(2) }.into(), inputs: vec![Some(x.clone())] },
            Sample { op: Split { axis: -3, num_outputs: None }.into(), inputs: vec![Some(x), Some(sizes)] },
            Sample { op: Split { axis: 0, num_outputs: Some(2) }.into(), inputs: vec![Some(bytes)] },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::{iota, trial};
    use super::*;

    #[test]
    fn parts_have_the_sizes_asked_for() {
        struct Case {
            axis: i64,
            num_outputs: Option<usize>,
            sizes: Option<Vec<i64>>,
            expected: Option<&'static [&'static [f32]]>,
        }
        let cases = [
            Case { axis: 1, num_outputs: Some(2), sizes: None, expected: Some(&[&[0., 1., 3., 4.], &[2., 5.]]) },
            Case {
                axis: -1,
                num_outputs: None,
                sizes: Some(vec![0, 3]),
                expected: Some(&[&[], &[0., 1., 2., 3., 4., 5.]]),
            },
            Case { axis: 0, num_outputs: Some(2), sizes: None, expected: Some(&[&[0., 1., 2.], &[3., 4., 5.]]) },
            Case { axis: 0, num_outputs: Some(3), sizes: None, expected: Some(&[&[0., 1., 2.], &[3., 4., 5.], &[]]) },
            Case { axis: 1, num_outputs: None, sizes: Some(vec![2, 2]), expected: None },
            Case { axis: 1, num_outputs: None, sizes: Some(vec![4, -1]), expected: None },
            Case { axis: 1, num_outputs: None, sizes: Some(vec![-1, -1, 5]), expected: None },
            Case { axis: 1, num_outputs: None, sizes: None, expected: None },
            Case { axis: 2, num_outputs: Some(1), sizes: None, expected: None },
        ];
        for Case { axis, num_outputs, sizes, expected } in cases {
            let sizes = sizes.map(|s| Tensor::i64(&[s.len()], s));
            let parts = trial(Split { axis, num_outputs }, &[Some(iota(&[2, 3])), sizes.clone()]).ok();
            let parts = parts.map(|p| p.iter().map(|t| t.as_f32().unwrap().to_vec()).collect::<Vec<_>>());
            assert_eq!(parts, expected.map(|e| e.iter().map(|p| p.to_vec()).collect()), "{axis} {sizes:?}");
        }
    }

    #[test]
    fn splits_channels_in_both_memory_orders() {
        let parts = trial(Split { axis: 1, num_outputs: Some(2) }, &[Some(iota(&[2, 3, 2, 2]))]).unwrap();
        assert_eq!(parts[1].dims, [2, 1, 2, 2]);
        assert_eq!(parts[1].as_f32().unwrap(), [8., 9., 10., 11., 20., 21., 22., 23.]);
    }
}
