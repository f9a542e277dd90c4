//! Softmax along one axis.

use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{
        Activation, Fact, Facts, Kernel, LayoutRule, OpDef, OpFile, Pass, QuantRule, Sample, Want, expect_dtype,
        normal_axis, required,
    },
    ops::{
        backward::{gradient_index, of_first},
        codes,
        samples::sample,
    },
    tensor::DType,
};
use fewbits_kernels::{float, int::softmax::QSoftmax, movement::Transpose};

/// `y = e^x / Σ e^x`, the sum taken along `axis`; `dx = y · (dy − Σ y · dy)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Softmax {
    /// May be negative.
    pub axis: i64,
}

impl Softmax {
    /// The axis in memory and the dimensions there.
    fn place(&self, out: &Fact) -> Result<(usize, Vec<usize>), OpError> {
        let rank = out.dims.len();
        Ok((out.layout.physical_axis(normal_axis(self.axis, rank)?, rank), out.physical_dims()))
    }
}

/// Exchanges `axis` with the last one: its own inverse, apart from the dimensions.
fn exchange(dims: &[usize], axis: usize) -> (Transpose, Transpose) {
    let mut perm: Vec<usize> = (0..dims.len()).collect();
    perm.swap(axis, dims.len() - 1);
    let mut moved = dims.to_vec();
    moved.swap(axis, dims.len() - 1);
    (Transpose::new(dims, &perm), Transpose::new(&moved, &perm))
}

impl OpDef for Softmax {
    fn attrs(&self) -> Attrs {
        Attrs::default().with("axis", Attr::Int(self.axis))
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let x = required(ins, 0)?;
        expect_dtype(ins, 0, DType::F32)?;
        normal_axis(self.axis, x.dims.len())?;
        Ok(vec![Fact::new(DType::F32, &x.dims)])
    }

    fn layout(&self) -> LayoutRule {
        LayoutRule::Any
    }

    fn build(&self, _ins: Facts, outs: &[Fact]) -> Result<Kernel, OpError> {
        let (axis, dims) = self.place(&outs[0])?;
        let len = dims[axis];
        if dims[axis + 1..].iter().all(|&d| d == 1) {
            return Ok(Kernel::new(move |io| {
                let (threads, x) = (io.threads, io.f32(0));
                float::softmax(threads, len, x, io.out_f32(0));
            }));
        }
        let (there, back) = exchange(&dims, axis);
        let half = outs[0].len();
        Ok(Kernel::new(move |io| {
            let (threads, x) = (io.threads, io.f32(0));
            let (y, scratch) = io.out_f32_and_scratch(0);
            let (lines, shares) = scratch[..2 * half].split_at_mut(half);
            there.run(threads, x, lines);
            float::softmax(threads, len, lines, shares);
            back.run(threads, shares, y);
        })
        .with_scratch(2 * half))
    }

    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        let (axis, dims) = self.place(&outs[0])?;
        let (len, inner) = (dims[axis], dims[axis + 1..].iter().product::<usize>());
        let (want, gradient) = (of_first(wants)?, gradient_index(ins, outs));
        let kernel = Kernel::new(move |io| {
            let (y, dy) = (io.f32(gradient - 1), io.f32(gradient));
            let (dx, sums) = io.out_f32_and_scratch(0);
            let (sums, block) = (&mut sums[..inner], (len * inner).max(1));
            for ((y, dy), dx) in y.chunks_exact(block).zip(dy.chunks_exact(block)).zip(dx.chunks_exact_mut(block)) {
                sums.fill(0.0);
                for (y, dy) in y.chunks_exact(inner).zip(dy.chunks_exact(inner)) {
                    sums.iter_mut().zip(y).zip(dy).for_each(|((sum, y), dy)| *sum += y * dy);
                }
                let lines = y.chunks_exact(inner).zip(dy.chunks_exact(inner)).zip(dx.chunks_exact_mut(inner));
                for ((y, dy), dx) in lines {
                    for (((y, dy), sum), dx) in y.iter().zip(dy).zip(&*sums).zip(dx) {
                        let d = y * (dy - sum);
                        *dx = if want == Want::Add { *dx + d } else { d };
                    }
                }
            }
        });
        Ok(Some(Pass::new(kernel.with_scratch(inner)).reading_outs(&[0])))
    }

    fn build_integer(&self, ins: Facts, outs: &[Fact], clamp: Activation) -> Result<Option<Kernel>, OpError> {
        let stored = |fact: &Fact| fact.grid.as_ref().and_then(codes::stored);
        let (Some(x), Some(y)) = (stored(required(ins, 0)?), stored(&outs[0])) else { return Ok(None) };
        let (axis, dims) = self.place(&outs[0])?;
        let whole = dims[axis + 1..].iter().all(|&d| d == 1);
        if !whole || clamp != Activation::Identity || (y.qmin, y.qmax) != (0, 255) || dims[axis] == 0 {
            return Ok(None);
        }
        let softmax = QSoftmax::new(dims[axis], x.scale, y.scale, y.zero as u8);
        Ok(Some(Kernel::new(move |io| {
            let x = io.u8(0);
            softmax.run(x, io.out_u8(0));
        })))
    }

    fn quant_rule(&self) -> QuantRule {
        QuantRule::data()
    }
}

impl OpFile for Softmax {
    const NAME: &'static str = "Softmax";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        Ok(Softmax { axis: attrs.int("axis")?.unwrap_or(-1) })
    }

    fn samples() -> Vec<Sample> {
        vec![
            sample(Softmax { axis: -1 }, &[&[3, 37]]),
            sample(Softmax { axis: 1 }, &[&[2, 4, 3, 5]]),
            sample(Softmax { axis: 2 }, &[&[2, 4, 3, 5]]),
        ]
    }
}
