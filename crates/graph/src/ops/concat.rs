//! Concat: joins tensors along one axis.

use super::{
    backward::{gradient_index, is_float, put},
    dispatch::{Element, with_element},
    integer,
};
use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{
        Activation, Fact, Facts, Kernel, LayoutRule, OpDef, OpFile, Pass, QuantRule, Sample, Want, normal_axis,
        required,
    },
    tensor::{DType, Tensor},
};
use fewbits_kernels::{int::lookup::Table, movement};

/// `y = x_0 ++ x_1 ++ …` along `axis`. All inputs have the same shape but for that axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Concat {
    /// May be negative.
    pub axis: i64,
}

impl Concat {
    /// Elements that each input adds to a row of the output.
    fn runs(&self, ins: Facts) -> Result<Vec<usize>, OpError> {
        let run = |i| {
            let fact = required(ins, i)?;
            let rank = fact.dims.len();
            let axis = fact.layout.physical_axis(normal_axis(self.axis, rank)?, rank);
            Ok(fact.physical_dims()[axis..].iter().product())
        };
        (0..ins.len()).map(run).collect()
    }
}

impl OpDef for Concat {
    fn attrs(&self) -> Attrs {
        Attrs::default().with("axis", Attr::Int(self.axis))
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let first = required(ins, 0)?;
        let axis = normal_axis(self.axis, first.dims.len())?;
        let mut dims = first.dims.clone();
        dims[axis] = 0;
        for i in 0..ins.len() {
            let input = required(ins, i)?;
            let same = |(a, d): (usize, &usize)| a == axis || input.dims.get(a) == Some(d);
            if input.dims.len() != dims.len() || !first.dims.iter().enumerate().all(same) {
                return Err(OpError::Shapes { what: "inputs", left: first.dims.clone(), right: input.dims.clone() });
            }
            if input.dtype != first.dtype {
                return Err(OpError::DType { index: i, expected: first.dtype, found: input.dtype });
            }
            dims[axis] += input.dims[axis];
        }
        Ok(vec![Fact::new(first.dtype, &dims)])
    }

    fn layout(&self) -> LayoutRule {
        LayoutRule::Any
    }

    fn build(&self, ins: Facts, outs: &[Fact]) -> Result<Kernel, OpError> {
        let runs = self.runs(ins)?;
        Ok(with_element!(outs[0].dtype, T => Kernel::new(move |io| {
            let parts: Vec<_> = runs.iter().enumerate().map(|(i, &run)| (T::input(io, i), run)).collect();
            movement::concat(io.threads, &parts, T::output(io, 0));
        })))
    }

    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        let (runs, wants, gradient) = (self.runs(ins)?, wants.to_vec(), gradient_index(ins, outs));
        let row: usize = runs.iter().sum();
        let kernel = Kernel::new(move |io| {
            let (dy, mut start) = (io.f32(gradient), 0);
            for (i, (&run, &want)) in runs.iter().zip(&wants).enumerate() {
                let rows = dy.chunks_exact(row.max(1)).zip(io.out_f32(i).chunks_exact_mut(run.max(1)));
                rows.for_each(|(dy, dx)| put(want, &dy[start..start + run], dx));
                start += run;
            }
        });
        Ok(is_float(ins, outs)?.then(|| Pass::new(kernel)))
    }

    fn build_integer(&self, ins: Facts, outs: &[Fact], clamp: Activation) -> Result<Option<Kernel>, OpError> {
        let Some(out) = integer::clamped(&outs[0], clamp) else { return Ok(None) };
        let grids: Option<Vec<_>> = ins.iter().map(|fact| integer::grid((*fact)?)).collect();
        let (Some(grids), runs) = (grids, self.runs(ins)?) else { return Ok(None) };
        // As QLinearConcat: an input on the output's grid is copied, another one is requantized code by code.
        let tables: Vec<_> = grids.iter().map(|grid| (*grid != out).then(|| Table::requantize(grid, &out))).collect();
        Ok(Some(Kernel::new(move |io| {
            let parts: Vec<_> = runs.iter().enumerate().map(|(i, &run)| (io.u8(i), run)).collect();
            movement::concat_with(io.threads, &parts, io.out_u8(0), |i, from, to| match &tables[i] {
                Some(table) => table.run(from, to),
                None => to.copy_from_slice(from),
            });
        })))
    }

    fn quant_rule(&self) -> QuantRule {
        QuantRule::data()
    }
}

impl OpFile for Concat {
    const NAME: &'static str = "Concat";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        let axis =
            attrs.int("axis")?.ok_or_else(|| OpError::Attribute { name: "axis", reason: "is required".into() })?;
        Ok(Concat { axis })
    }

    fn samples() -> Vec<Sample> {
        let a = Tensor::f32(&[2, 1, 2], vec![1., 2., 3., 4.]);
        let b = Tensor::f32(&[2, 2, 2], vec![5., 6., 7., 8., 9., 10., 11., 12.]);
        let image = |channels: usize| {
            let values = (0..channels * 6).map(|i| i as f32 * 0.7 - channels as f32).collect();
            Some(Tensor::f32(&[1, channels, 2, 3], values))
        };
        vec![
            Sample { op: Concat { axis: -2 }.into(), inputs: vec![Some(a), Some(b)] },
            Sample { op: Concat { axis: 1 }.into(), inputs: vec![image(2), image(1), image(3)] },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::{first, iota};
    use super::*;
    use crate::{
        grid::{Grid, QuantParams},
        op::{Io, Slice, SliceMut},
    };
    use fewbits_kernels::Threads;

    #[test]
    fn joins_along_any_axis() {
        let y = first(Concat { axis: 1 }, &[iota(&[2, 1, 1, 2]), iota(&[2, 2, 1, 2])]).unwrap();
        assert_eq!(y, Tensor::f32(&[2, 3, 1, 2], vec![0., 1., 0., 1., 2., 3., 2., 3., 4., 5., 6., 7.]));
        let y = first(Concat { axis: -1 }, &[iota(&[2, 1, 1, 1]), iota(&[2, 1, 1, 2])]).unwrap();
        assert_eq!(y, Tensor::f32(&[2, 1, 1, 3], vec![0., 0., 1., 1., 2., 3.]));
        let y = first(
            Concat { axis: 0 },
            &[Tensor::i64(&[1], vec![7]), Tensor::i64(&[0], vec![]), Tensor::i64(&[2], vec![8, 9])],
        );
        assert_eq!(y.unwrap(), Tensor::i64(&[3], vec![7, 8, 9]));
    }

    #[test]
    fn misfits_are_refused() {
        assert!(first(Concat { axis: 2 }, &[iota(&[2, 2])]).is_err());
        assert!(first(Concat { axis: 0 }, &[iota(&[2, 2]), iota(&[2, 3])]).is_err());
        assert!(first(Concat { axis: 0 }, &[iota(&[2, 2]), iota(&[2])]).is_err());
        assert!(first(Concat { axis: 0 }, &[iota(&[2]), Tensor::i64(&[2], vec![1, 2])]).is_err());
        assert!(Concat { axis: 0 }.infer(&[]).is_err());
    }

    #[test]
    fn codes_of_other_grids_are_requantized() {
        let fact = |dims: &[usize], scale, zero_point| Fact {
            grid: Some(QuantParams::per_tensor(Grid::activations(8), scale, zero_point)),
            ..Fact::new(DType::U8, dims)
        };
        let (a, b, y) = (fact(&[1, 2], 0.5, 10), fact(&[1, 3], 0.25, 0), fact(&[1, 5], 0.5, 10));
        let kernel =
            Concat { axis: 1 }.build_integer(&[Some(&a), Some(&b)], &[y], Activation::Identity).unwrap().unwrap();
        let mut out = [0; 5];
        let (ins, outs) = ([Slice::U8(&[3, 255]), Slice::U8(&[1, 3, 255])], &mut [SliceMut::U8(&mut out)]);
        kernel.run(&mut Io { threads: &Threads::new(1), ins: &ins, outs, scratch: &mut [] });
        // 0.25 / 0.5 and 0.75 / 0.5 are ties, rounded to even.
        assert_eq!(out, [3, 255, 10, 12, 138]);
    }
}
