//! BatchNormalization with fixed statistics.

use super::backward::{Walk, gradient_index, no_gradient, put};
use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{
        Fact, Facts, Io, Kernel, LayoutRule, OpDef, OpFile, OutRule, Pass, QuantRule, Role, Sample, Want, expect_dtype,
        known, required,
    },
    ops::samples::{sample, varied},
    tensor::{DType, Tensor},
};
use fewbits_kernels::broadcast::Broadcast;

/// `y = (x − mean[c]) / √(variance[c] + epsilon) · scale[c] + bias[c]` for channel `c` of axis 1.
/// Inputs: x `[N, C, …]`, scale, bias, mean, variance, each `[C]`.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchNormalization {
    /// Keeps the root away from 0.
    pub epsilon: f32,
    /// Weight of the old statistics in training; not used here.
    pub momentum: f32,
}

impl BatchNormalization {
    /// `y = scale · x + shift` per channel, from scale, bias, mean and variance; in f32 and in this order, as ONNX Runtime
    /// computes them.
    pub fn scale_shift(&self, [scale, bias, mean, variance]: [&[f32]; 4]) -> [Vec<f32>; 2] {
        let factor = |c: usize| 1.0 / (variance[c] + self.epsilon).sqrt() * scale[c];
        let shift = |c: usize| bias[c] - mean[c] * factor(c);
        let channels = 0..scale.len();
        [channels.clone().map(factor).collect(), channels.map(shift).collect()]
    }
}

impl OpDef for BatchNormalization {
    fn attrs(&self) -> Attrs {
        Attrs::default().with("epsilon", Attr::Float(self.epsilon)).with("momentum", Attr::Float(self.momentum))
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let x = required(ins, 0)?;
        expect_dtype(ins, 0, DType::F32)?;
        let channels = x.dims.get(1).copied().unwrap_or(1);
        for index in 1..5 {
            let parameter = required(ins, index)?;
            expect_dtype(ins, index, DType::F32)?;
            if parameter.dims != [channels] {
                return Err(OpError::Shapes {
                    what: "parameter and channels",
                    left: parameter.dims.clone(),
                    right: vec![channels],
                });
            }
        }
        Ok(vec![Fact::new(DType::F32, &x.dims)])
    }

    fn layout(&self) -> LayoutRule {
        LayoutRule::Any
    }

    fn build(&self, ins: Facts, outs: &[Fact]) -> Result<Kernel, OpError> {
        let out = &outs[0];
        let dims = out.physical_dims();
        let rank = dims.len();
        let mut repeat = vec![0; rank];
        if rank > 1 {
            repeat[out.layout.physical_axis(1, rank)] = 1;
        }
        let whole: Vec<usize> = (0..rank).map(|axis| dims[axis + 1..].iter().product()).collect();
        let walk = Broadcast::new(&dims, [&whole, &repeat]);
        let run = move |io: &mut Io<'_>, [scale, shift]: [&[f32]; 2]| {
            let (threads, x) = (io.threads, io.f32(0));
            walk.for_each_row(threads, io.out_f32(0), |[i, c], [_, step], y| {
                let x = &x[i..][..y.len()];
                if step == 0 {
                    let (scale, shift) = (scale[c], shift[c]);
                    y.iter_mut().zip(x).for_each(|(y, x)| *y = x * scale + shift);
                } else {
                    let rows = y.iter_mut().zip(x).zip(&scale[c..]).zip(&shift[c..]);
                    rows.for_each(|(((y, x), scale), shift)| *y = x * scale + shift);
                }
            });
        };
        let op = self.clone();
        let parameters: Option<Vec<&[f32]>> = (1..5).map(|i| known(ins, i).ok()?.as_f32()).collect();
        Ok(match parameters.as_deref() {
            Some(&[a, b, c, d]) => {
                let [scale, shift] = op.scale_shift([a, b, c, d]);
                Kernel::new(move |io| run(io, [&scale, &shift]))
            }
            _ => Kernel::new(move |io| {
                let [scale, shift] = op.scale_shift([1, 2, 3, 4].map(|i| io.f32(i)));
                run(io, [&scale, &shift]);
            }),
        })
    }

    /// With fixed statistics and `r = 1 / √(variance + epsilon)`: `dx = scale · r · dy`, `d scale = Σ (x − mean) · r · dy`,
    /// `d bias = Σ dy`.
    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        if let Some(input) = (3..wants.len()).find(|&i| wants[i] != Want::No) {
            return Err(no_gradient(input));
        }
        let (y, wants) = (&outs[0], [wants[0], wants[1], wants[2]]);
        let channels = required(ins, 1)?.dims[0];
        // A number for each channel, with axes behind it as the output has.
        let mut dims = vec![1; y.dims.len().max(2) - 1];
        dims[0] = channels;
        let channel = Fact::new(DType::F32, &dims);
        let toward_x = Walk::new(y, [&channel, y, y, y]);
        let toward_scale = Walk::new(y, [&channel, y, y, &channel]);
        let toward_bias = Walk::new(y, [y, y, y, &channel]);
        let (epsilon, gradient) = (self.epsilon, gradient_index(ins, outs));
        let kernel = Kernel::new(move |io| {
            let (x, scale, mean, variance, dy) = (io.f32(0), io.f32(1), io.f32(3), io.f32(4), io.f32(gradient));
            let inv_deviation = |variance: &f32| 1.0 / (variance + epsilon).sqrt();
            if wants[0] != Want::No {
                let (dx, factors) = io.out_f32_and_scratch(0);
                let lines = factors.iter_mut().zip(scale).zip(variance);
                lines.for_each(|((factor, scale), variance)| *factor = inv_deviation(variance) * scale);
                toward_x.run((&factors[..channels], dy, dy), dx, wants[0], |factor, _, dy| factor * dy);
            }
            if wants[1] != Want::No {
                let (dscale, sums) = io.out_f32_and_scratch(1);
                let sums = &mut sums[..channels];
                toward_scale.run((mean, x, dy), sums, Want::Write, |mean, x, dy| (x - mean) * dy);
                sums.iter_mut().zip(variance).for_each(|(sum, variance)| *sum *= inv_deviation(variance));
                put(wants[1], sums, dscale);
            }
            toward_bias.run((dy, dy, dy), io.out_f32(2), wants[2], |_, _, dy| dy);
        });
        let reads: [&[usize]; 2] = [&[1, 4], &[0, 3, 4]];
        let read: Vec<usize> =
            (0..2).filter(|&i| wants[i] != Want::No).flat_map(|i| reads[i].iter().copied()).collect();
        Ok(Some(Pass::new(kernel.with_scratch(channels)).reading_ins(&read)))
    }

    fn quant_rule(&self) -> QuantRule {
        QuantRule { inputs: vec![Role::Data, Role::Other], output: OutRule::Own }
    }
}

impl OpFile for BatchNormalization {
    const NAME: &'static str = "BatchNormalization";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        if attrs.int("training_mode")?.unwrap_or(0) != 0 {
            return Err(OpError::Unsupported(
                "BatchNormalization with training_mode 1: export the model in evaluation mode".into(),
            ));
        }
        Ok(BatchNormalization {
            epsilon: attrs.float("epsilon")?.unwrap_or(1e-5),
            momentum: attrs.float("momentum")?.unwrap_or(0.9),
        })
    }

    fn samples() -> Vec<Sample> {
        let with = |dims: &[usize]| {
            let mut sample = sample(BatchNormalization { epsilon: 0.25, momentum: 0.9 }, &[dims, &[3], &[3], &[3]]);
            let squares = varied(&[3], 9).as_f32().map(|v| v.iter().map(|v| v * v).collect());
            sample.inputs.push(squares.map(|v| Tensor::f32(&[3], v)));
            sample
        };
        vec![with(&[2, 3, 4, 5]), with(&[4, 3]), with(&[2, 3, 7])]
    }
}
