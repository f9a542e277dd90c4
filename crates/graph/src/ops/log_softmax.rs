//! LogSoftmax along one axis.

use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{Fact, Facts, Kernel, OpDef, OpFile, Pass, Sample, Want, expect_dtype, normal_axis, required},
    ops::{
        backward::{gradient_index, of_first},
        samples::sample,
    },
    tensor::DType,
};
use fewbits_kernels::chunks::for_each_chunk;

/// `y = x − log Σ e^x`, the sum taken along `axis`; `dx = dy − e^y · Σ dy`.
#[derive(Clone, Debug, PartialEq)]
pub struct LogSoftmax {
    /// May be negative.
    pub axis: i64,
}

impl LogSoftmax {
    /// Length of the axis, and how many lines along it lie side by side.
    fn line(&self, dims: &[usize]) -> Result<[usize; 2], OpError> {
        let axis = normal_axis(self.axis, dims.len())?;
        Ok([dims[axis], dims[axis + 1..].iter().product()])
    }
}

/// The elements of line `i` in a block of lines side by side.
fn along(block: &[f32], inner: usize, i: usize) -> impl Iterator<Item = f32> + Clone + '_ {
    block[i..].iter().copied().step_by(inner)
}

impl OpDef for LogSoftmax {
    fn attrs(&self) -> Attrs {
        Attrs::default().with("axis", Attr::Int(self.axis))
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let x = required(ins, 0)?;
        expect_dtype(ins, 0, DType::F32)?;
        normal_axis(self.axis, x.dims.len())?;
        Ok(vec![Fact::new(DType::F32, &x.dims)])
    }

    fn build(&self, _ins: Facts, outs: &[Fact]) -> Result<Kernel, OpError> {
        let [len, inner] = self.line(&outs[0].dims)?;
        let block = (len * inner).max(1);
        Ok(Kernel::new(move |io| {
            let (threads, x) = (io.threads, io.f32(0));
            for_each_chunk(threads, io.out_f32(0), block, 8, |first, y| {
                for (x, y) in x[first..].chunks_exact(block).zip(y.chunks_exact_mut(block)) {
                    for i in 0..inner {
                        let max = along(x, inner, i).fold(f32::NEG_INFINITY, f32::max);
                        let sum: f64 = along(x, inner, i).map(|v| f64::from(v - max).exp()).sum();
                        let shift = f64::from(max) + sum.ln();
                        let line = y[i..].iter_mut().step_by(inner);
                        line.zip(along(x, inner, i)).for_each(|(y, x)| *y = (f64::from(x) - shift) as f32);
                    }
                }
            });
        }))
    }

    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        let [len, inner] = self.line(&outs[0].dims)?;
        let (want, gradient, block) = (of_first(wants)?, gradient_index(ins, outs), (len * inner).max(1));
        let kernel = Kernel::new(move |io| {
            let (y, dy) = (io.f32(gradient - 1), io.f32(gradient));
            let blocks = y.chunks_exact(block).zip(dy.chunks_exact(block));
            for ((y, dy), dx) in blocks.zip(io.out_f32(0).chunks_exact_mut(block)) {
                for i in 0..inner {
                    let sum: f32 = along(dy, inner, i).sum();
                    let lines = along(y, inner, i).zip(along(dy, inner, i));
                    for ((y, dy), dx) in lines.zip(dx[i..].iter_mut().step_by(inner)) {
                        let d = dy - y.exp() * sum;
                        *dx = if want == Want::Add { *dx + d } else { d };
                    }
                }
            }
        });
        Ok(Some(Pass::new(kernel).reading_outs(&[0])))
    }
}

impl OpFile for LogSoftmax {
    const NAME: &'static str = "LogSoftmax";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        Ok(LogSoftmax { axis: attrs.int("axis")?.unwrap_or(-1) })
    }

    fn samples() -> Vec<Sample> {
        vec![sample(LogSoftmax { axis: -1 }, &[&[3, 37]]), sample(LogSoftmax { axis: 1 }, &[&[2, 4, 3, 5]])]
    }
}
