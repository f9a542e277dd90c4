//! LayerNormalization and InstanceNormalization: `y = (x − μ) / √(σ² + ε) · scale + bias` with the statistics of `x` itself.

use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{Fact, Facts, Kernel, OpDef, OpFile, Pass, Sample, Want, expect_dtype, normal_axis, optional, required},
    ops::{
        backward::{Walk, gradient_index},
        broadcast::{broadcast_dims, steps},
        samples::sample,
    },
    tensor::DType,
};
use fewbits_kernels::{broadcast::Broadcast, chunks::for_each_chunk};

/// Statistics over the axes from `axis` on. Inputs: x, scale and optional bias, which stretch to the shape of x.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNormalization {
    /// May be negative.
    pub axis: i64,
    /// Keeps the root away from 0.
    pub epsilon: f32,
}

/// Statistics over the spatial axes of each channel of each image. Inputs: x `[N, C, …]`, scale `[C]`, bias `[C]`.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceNormalization {
    /// Keeps the root away from 0.
    pub epsilon: f32,
}

impl LayerNormalization {
    /// How many neighbours share their statistics.
    fn row(&self, x: &Fact) -> Result<usize, OpError> {
        Ok(x.dims[normal_axis(self.axis, x.dims.len())?..].iter().product())
    }
}

/// `μ` and `1 / √(σ² + ε)` of `x`, in f64.
fn statistics(x: &[f32], epsilon: f32) -> (f64, f64) {
    let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / x.len() as f64;
    let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / x.len() as f64;
    (mean, 1.0 / (variance + f64::from(epsilon)).sqrt())
}

/// `(x − μ) / √(σ² + ε)` over each `row` neighbouring elements.
fn normalize(x: &[f32], y: &mut [f32], row: usize, epsilon: f32) {
    for (x, y) in x.chunks_exact(row).zip(y.chunks_exact_mut(row)) {
        let (mean, factor) = statistics(x, epsilon);
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = ((f64::from(x) - mean) * factor) as f32);
    }
}

/// Normalizes rows, then scales and shifts by operands that are walked beside them.
fn kernel(row: usize, epsilon: f32, scale_shift: Broadcast) -> Kernel {
    Kernel::new(move |io| {
        let (threads, x, scale, bias) = (io.threads, io.f32(0), io.f32(1), io.f32(2));
        let y = io.out_f32(0);
        for_each_chunk(threads, y, row, 8, |first, y| normalize(&x[first..][..y.len()], y, row, epsilon));
        scale_shift.for_each_row(threads, y, |[s, b], steps, y| {
            for (i, y) in y.iter_mut().enumerate() {
                let shift = bias.get(b + i * steps[1]).copied().unwrap_or(0.0);
                *y = *y * scale[s + i * steps[0]] + shift;
            }
        });
    })
}

/// The gradients: with `x̂` the normalized rows and `g = scale · dy`, `dx = (g − mean(g) − x̂ · mean(x̂ · g)) / √(σ² + ε)`,
/// `d scale = Σ x̂ · dy`, `d bias = Σ dy`. `parameter` has the axes with which scale and bias stretch to `x`.
fn backward(
    row: usize,
    epsilon: f32,
    ins: Facts,
    outs: &[Fact],
    wants: &[Want],
    parameter: impl Fn(&Fact) -> Fact,
) -> Result<Option<Pass>, OpError> {
    let (x, scale, bias) = (&outs[0], parameter(required(ins, 1)?), optional(ins, 2).map(parameter));
    let scaling = Walk::new(x, [&scale, x, x, x]);
    let toward_scale = Walk::new(x, [x, x, x, &scale]);
    let toward_bias = bias.map(|bias| Walk::new(x, [x, x, x, &bias]));
    let (wants, gradient, len) = (wants.to_vec(), gradient_index(ins, outs), x.len());
    let kernel = Kernel::new(move |io| {
        let (x, scale, dy) = (io.f32(0), io.f32(1), io.f32(gradient));
        let (dscale, scratch) = io.out_f32_and_scratch(1);
        let normalized = &mut scratch[..len];
        normalize(x, normalized, row, epsilon);
        toward_scale.run((normalized, dy, dy), dscale, wants[1], |x, _, dy| x * dy);
        if let Some(walk) = &toward_bias {
            walk.run((dy, dy, dy), io.out_f32(2), wants[2], |_, _, dy| dy);
        }
        if wants[0] == Want::No {
            return;
        }
        let (dx, scratch) = io.out_f32_and_scratch(0);
        let (normalized, g) = scratch[..2 * len].split_at_mut(len);
        scaling.run((scale, dy, dy), g, Want::Write, |scale, _, dy| scale * dy);
        let rows = x.chunks_exact(row).zip(normalized.chunks_exact(row)).zip(g.chunks_exact(row));
        for (((x, normalized), g), dx) in rows.zip(dx.chunks_exact_mut(row)) {
            let (_, factor) = statistics(x, epsilon);
            let mean = g.iter().map(|&g| f64::from(g)).sum::<f64>() / row as f64;
            let product =
                normalized.iter().zip(g).map(|(&x, &g)| f64::from(x) * f64::from(g)).sum::<f64>() / row as f64;
            for ((dx, &x), &g) in dx.iter_mut().zip(normalized).zip(g) {
                let d = ((f64::from(g) - mean - f64::from(x) * product) * factor) as f32;
                *dx = if wants[0] == Want::Add { *dx + d } else { d };
            }
        }
    });
    Ok(Some(Pass::new(kernel.with_scratch(2 * len)).reading_ins(&[0, 1])))
}

impl OpDef for LayerNormalization {
    fn attrs(&self) -> Attrs {
        Attrs::default().with("axis", Attr::Int(self.axis)).with("epsilon", Attr::Float(self.epsilon))
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let x = required(ins, 0)?;
        normal_axis(self.axis, x.dims.len())?;
        for index in (0..3).filter(|&i| i < 2 || optional(ins, i).is_some()) {
            expect_dtype(ins, index, DType::F32)?;
            let operand = required(ins, index)?;
            if broadcast_dims(&x.dims, &operand.dims)? != x.dims {
                let (left, right) = (operand.dims.clone(), x.dims.clone());
                return Err(OpError::Shapes { what: "operand and input", left, right });
            }
        }
        Ok(vec![Fact::new(DType::F32, &x.dims)])
    }

    fn build(&self, ins: Facts, outs: &[Fact]) -> Result<Kernel, OpError> {
        let out = &outs[0];
        let row = self.row(out)?;
        let of = |i| optional(ins, i).map_or(vec![0; out.dims.len()], |fact| steps(fact, out));
        Ok(kernel(row, self.epsilon, Broadcast::new(&out.dims, [&of(1), &of(2)])))
    }

    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        backward(self.row(&outs[0])?, self.epsilon, ins, outs, wants, Fact::clone)
    }
}

impl OpDef for InstanceNormalization {
    fn attrs(&self) -> Attrs {
        Attrs::default().with("epsilon", Attr::Float(self.epsilon))
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let x = required(ins, 0)?;
        expect_dtype(ins, 0, DType::F32)?;
        for index in 1..3 {
            expect_dtype(ins, index, DType::F32)?;
            let parameter = &required(ins, index)?.dims;
            if x.dims.len() < 2 || parameter[..] != x.dims[1..2] {
                let (left, right) = (parameter.clone(), x.dims.clone());
                return Err(OpError::Shapes { what: "parameter and channels of the input", left, right });
            }
        }
        Ok(vec![Fact::new(DType::F32, &x.dims)])
    }

    fn build(&self, _ins: Facts, outs: &[Fact]) -> Result<Kernel, OpError> {
        let dims = &outs[0].dims;
        let mut channel = vec![0; dims.len()];
        channel[1] = 1;
        Ok(kernel(dims[2..].iter().product(), self.epsilon, Broadcast::new(dims, [&channel, &channel])))
    }

    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        let spatial = &outs[0].dims[2..];
        let channels = |fact: &Fact| Fact::new(DType::F32, &[&fact.dims[..], &vec![1; spatial.len()]].concat());
        backward(spatial.iter().product(), self.epsilon, ins, outs, wants, channels)
    }
}

impl OpFile for LayerNormalization {
    const NAME: &'static str = "LayerNormalization";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        Ok(LayerNormalization {
            axis: attrs.int("axis")?.unwrap_or(-1),
            epsilon: attrs.float("epsilon")?.unwrap_or(1e-5),
        })
    }

    fn samples() -> Vec<Sample> {
        let norm = |axis| LayerNormalization { axis, epsilon: 0.125 };
        vec![
            sample(norm(-1), &[&[2, 3, 7], &[7], &[7]]),
            sample(norm(-1), &[&[2, 3, 7], &[7]]),
            sample(norm(1), &[&[2, 3, 4, 5], &[3, 4, 5], &[3, 4, 5]]),
        ]
    }
}

impl OpFile for InstanceNormalization {
    const NAME: &'static str = "InstanceNormalization";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        Ok(InstanceNormalization { epsilon: attrs.float("epsilon")?.unwrap_or(1e-5) })
    }

    fn samples() -> Vec<Sample> {
        vec![sample(InstanceNormalization { epsilon: 0.125 }, &[&[2, 3, 4, 5], &[3], &[3]])]
    }
}
