//! LRN: local response normalization across channels.

use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{Fact, Facts, Kernel, OpDef, OpFile, Sample, expect_dtype, required},
    ops::samples::sample,
    tensor::DType,
};
use fewbits_kernels::chunks::for_each_chunk;

/// `y[c] = x[c] / (bias + alpha / size · Σ x[k]²)^beta` over the `size` channels `k` around `c`. Not differentiable here.
#[derive(Clone, Debug, PartialEq)]
pub struct Lrn {
    /// Scales the sum.
    pub alpha: f32,
    /// Exponent.
    pub beta: f32,
    /// Keeps the power away from 0.
    pub bias: f32,
    /// Channels that are summed: of an even number, the odd one stands behind.
    pub size: usize,
}

impl OpDef for Lrn {
    fn attrs(&self) -> Attrs {
        Attrs::default()
            .with("alpha", Attr::Float(self.alpha))
            .with("beta", Attr::Float(self.beta))
            .with("bias", Attr::Float(self.bias))
            .with("size", Attr::Int(self.size as i64))
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        expect_dtype(ins, 0, DType::F32)?;
        let dims = &required(ins, 0)?.dims;
        if dims.len() < 2 {
            return Err(OpError::Unsupported(format!("an input of rank {}", dims.len())));
        }
        Ok(vec![Fact::new(DType::F32, dims)])
    }

    fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
        let Lrn { alpha, beta, bias, size } = *self;
        let dims = &required(ins, 0)?.dims;
        let (channels, pixels) = (dims[1], dims[2..].iter().product::<usize>());
        let (before, behind, factor) = ((size - 1) / 2, size / 2, alpha / size as f32);
        Ok(Kernel::new(move |io| {
            let (threads, x) = (io.threads, io.f32(0));
            for_each_chunk(threads, io.out_f32(0), pixels.max(1), 8 * size.min(channels), |first, y| {
                for (plane, y) in y.chunks_exact_mut(pixels.max(1)).enumerate() {
                    let plane = first / pixels + plane;
                    let (image, channel) = (plane / channels * channels, plane % channels);
                    let around = channel.saturating_sub(before)..=channel.saturating_add(behind).min(channels - 1);
                    y.fill(0.0);
                    for neighbour in around {
                        let x = &x[(image + neighbour) * pixels..][..pixels];
                        y.iter_mut().zip(x).for_each(|(y, x)| *y += x * x);
                    }
                    let x = &x[plane * pixels..][..pixels];
                    y.iter_mut().zip(x).for_each(|(y, x)| *y = x / (bias + factor * *y).powf(beta));
                }
            });
        }))
    }
}

impl OpFile for Lrn {
    const NAME: &'static str = "LRN";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        let size = attrs.int("size")?.and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
        Ok(Lrn {
            alpha: attrs.float("alpha")?.unwrap_or(1e-4),
            beta: attrs.float("beta")?.unwrap_or(0.75),
            bias: attrs.float("bias")?.unwrap_or(1.0),
            size: size.ok_or_else(|| OpError::Attribute { name: "size", reason: "should be a positive number".into() })?,
        })
    }

    fn samples() -> Vec<Sample> {
        vec![
            sample(Lrn { alpha: 0.5, beta: 0.75, bias: 1.5, size: 3 }, &[&[2, 7, 3, 4]]),
            sample(Lrn { alpha: 2.0, beta: 0.5, bias: 1.0, size: 5 }, &[&[1, 3, 2, 2]]),
        ]
    }
}
