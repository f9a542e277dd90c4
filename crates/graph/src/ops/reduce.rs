//! ReduceMean, ReduceSum, ReduceL2, ReduceMax and ReduceMin: one number for all elements along some axes.

use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{
        Fact, Facts, Kernel, LayoutRule, OpDef, OpFile, OutRule, Pass, QuantRule, Role, Sample, Want, expect_dtype,
        known_ints, normal_axis, optional, required,
    },
    ops::{
        backward::{Elementwise, Source, Walk, gradient_index, of_first},
        samples::sample,
    },
    tensor::{DType, Tensor},
};
use fewbits_kernels::reduce::{Reduce, Reduction};

/// The logical axes of input 0 that input 1 names, as a mask.
fn reduced(ins: Facts, nothing_without_axes: bool) -> Result<Vec<bool>, OpError> {
    let rank = required(ins, 0)?.dims.len();
    let axes = if optional(ins, 1).is_some() { known_ints(ins, 1)? } else { vec![] };
    let mut mask = vec![axes.is_empty() && !nothing_without_axes; rank];
    for axis in axes {
        mask[normal_axis(axis, rank)?] = true;
    }
    Ok(mask)
}

/// The gradient of `x`, whose axes `mask` are gone in the output: every element of a sum gets that of the sum, of a mean the
/// same divided by their number, of a root of squares times its share in it (0 of none); the equal largest elements share that of a
/// maximum, and the smallest that of a minimum.
fn backward(
    reduction: Reduction,
    mask: &[bool],
    ins: Facts,
    outs: &[Fact],
    wants: &[Want],
) -> Result<Option<Pass>, OpError> {
    let x = required(ins, 0)?;
    let kept: Vec<usize> = x.dims.iter().zip(mask).map(|(&d, &gone)| if gone { 1 } else { d }).collect();
    let y = Fact { dims: kept, ..outs[0].clone() };
    let count = x.len() / y.len().max(1);
    if reduction == Reduction::L2 {
        let part = |x: f32, y: f32, dy: f32| if y > 0.0 { dy * x / y } else { 0.0 };
        let pass = Elementwise::new(ins, outs, wants).over(x, y);
        return pass.toward(0, [Source::Input(0), Source::Output], part)?.pass();
    }
    if !matches!(reduction, Reduction::Max | Reduction::Min) {
        let share = if reduction == Reduction::Mean { 1.0 / count as f32 } else { 1.0 };
        let pass = Elementwise::new(ins, outs, wants).over(x, y);
        return pass.toward(0, [Source::Gradient; 2], move |_, _, dy| dy * share)?.pass();
    }
    let (want, output, gradient) = (of_first(wants)?, ins.len(), gradient_index(ins, outs));
    let (counting, sharing) = (Walk::new(x, [x, &y, &y, &y]), Walk::new(x, [x, &y, &y, x]));
    let kernel = Kernel::new(move |io| {
        let (x, y, dy) = (io.f32(0), io.f32(output), io.f32(gradient));
        let (dx, scratch) = io.out_f32_and_scratch(0);
        let shares = &mut scratch[..y.len()];
        counting.run((x, y, dy), shares, Want::Write, |x, y, _| if x == y { 1.0 } else { 0.0 });
        shares.iter_mut().zip(dy).for_each(|(share, dy)| *share = dy / *share);
        sharing.run((x, y, shares), dx, want, |x, y, share| if x == y { share } else { 0.0 });
    });
    Ok(Some(Pass::new(kernel.with_scratch(y.len())).reading_ins(&[0]).reading_outs(&[0])))
}

macro_rules! reductions {
    ($($(#[$meta:meta])* $Name:ident: $reduction:ident;)*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $Name {
            /// Whether the reduced axes stay, of size 1.
            pub keep_dims: bool,
            /// Without axes: whether nothing is reduced, instead of everything.
            pub noop_with_empty_axes: bool,
        }

        impl OpDef for $Name {
            fn attrs(&self) -> Attrs {
                Attrs::default()
                    .with("keepdims", Attr::Int(self.keep_dims.into()))
                    .with("noop_with_empty_axes", Attr::Int(self.noop_with_empty_axes.into()))
            }

            fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
                expect_dtype(ins, 0, DType::F32)?;
                let mask = reduced(ins, self.noop_with_empty_axes)?;
                let dims = required(ins, 0)?.dims.iter().zip(mask);
                let kept = dims.filter_map(|(&d, gone)| if gone { self.keep_dims.then_some(1) } else { Some(d) });
                Ok(vec![Fact::new(DType::F32, &kept.collect::<Vec<_>>())])
            }

            fn layout(&self) -> LayoutRule {
                if self.keep_dims { LayoutRule::Any } else { LayoutRule::Plain }
            }

            fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
                let x = required(ins, 0)?;
                let mask = reduced(ins, self.noop_with_empty_axes)?;
                let mut placed = mask.clone();
                for (axis, &gone) in mask.iter().enumerate() {
                    placed[x.layout.physical_axis(axis, mask.len())] = gone;
                }
                let reduce = Reduce::new(Reduction::$reduction, &x.physical_dims(), &placed);
                Ok(Kernel::new(move |io| {
                    let (threads, x) = (io.threads, io.f32(0));
                    reduce.run(threads, x, io.out_f32(0));
                }))
            }

            fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
                let mask = reduced(ins, self.noop_with_empty_axes)?;
                backward(Reduction::$reduction, &mask, ins, outs, wants)
            }

            fn quant_rule(&self) -> QuantRule {
                QuantRule { inputs: vec![Role::Data, Role::Other], output: OutRule::Own }
            }
        }

        impl OpFile for $Name {
            const NAME: &'static str = stringify!($Name);

            fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
                Ok($Name {
                    keep_dims: attrs.int("keepdims")?.unwrap_or(1) != 0,
                    noop_with_empty_axes: attrs.int("noop_with_empty_axes")?.unwrap_or(0) != 0,
                })
            }

            fn samples() -> Vec<Sample> {
                let reduce = |keep_dims, noop_with_empty_axes, axes: &[i64]| {
                    let mut sample = sample($Name { keep_dims, noop_with_empty_axes }, &[&[2, 3, 4, 5]]);
                    let axes = Tensor::i64(&[axes.len()], axes.to_vec());
                    sample.inputs.extend((!axes.is_empty()).then_some(Some(axes)));
                    sample
                };
                vec![
                    reduce(true, false, &[2, 3]),
                    reduce(false, false, &[-1, -2]),
                    reduce(true, false, &[1]),
                    reduce(false, false, &[]),
                    reduce(true, true, &[]),
                ]
            }
        }
    )*};
}

reductions! {
    /// The mean.
    ReduceMean: Mean;
    /// The sum.
    ReduceSum: Sum;
    /// The root of the sum of squares.
    ReduceL2: L2;
    /// The largest.
    ReduceMax: Max;
    /// The smallest.
    ReduceMin: Min;
}
