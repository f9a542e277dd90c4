//! Conv: convolution over one or two spatial axes. One axis is computed as an image of height 1.

use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{
        Activation, Fact, Facts, Fused, Kernel, LayoutRule, OpDef, OpFile, OutRule, Pass, QuantRule, Role, Sample,
        Want, expect_dtype, optional, required,
    },
    ops::{
        integer::{self, WeightCodes},
        product::{self, Bias, FloatProduct, Trained},
        samples::sample,
        window::{AutoPad, Frame, Window},
    },
    tensor::DType,
};
use fewbits_kernels::{
    ConvGeometry,
    float::{PackedConv, add_columns},
    int,
};

/// `y[n, o, p] = b[o] + Σ_{c, k} x[n, c, p · stride + k · dilation − pad] · w[o, c, k]`, channels in `group` blocks.
/// Inputs: x `[N, C, spatial…]`, w `[O, C / group, kernel…]`, b `[O]`, optional.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv {
    /// Strides, dilations, padding.
    pub window: Window,
    /// Number of blocks that the channels are cut into; at least 1.
    pub group: usize,
}

impl Conv {
    fn frame(&self, ins: Facts) -> Result<(ConvGeometry, Frame), OpError> {
        let (x, w) = (required(ins, 0)?, required(ins, 1)?);
        if x.dims.len() < 3 {
            return Err(OpError::Rank { index: 0, expected: 4, found: x.dims.len() });
        }
        if w.dims.len() != x.dims.len() {
            return Err(OpError::Rank { index: 1, expected: x.dims.len(), found: w.dims.len() });
        }
        if !self.window.kernel_shape.is_empty() && self.window.kernel_shape != w.dims[2..] {
            return Err(OpError::Shapes {
                what: "kernel_shape and weight",
                left: self.window.kernel_shape.clone(),
                right: w.dims.clone(),
            });
        }
        let frame = self.window.frame(&x.dims[2..], &w.dims[2..], false)?;
        let geometry = frame.geometry(x.dims[1], w.dims[0], self.group);
        if !geometry.is_valid() || w.dims[1] * self.group != x.dims[1] {
            return Err(OpError::Shapes { what: "image and weight", left: x.dims.clone(), right: w.dims.clone() });
        }
        product::check_bias(ins, w.dims[0])?;
        Ok((geometry, frame))
    }

    fn float(&self, ins: Facts, fused: Fused) -> Result<Kernel, OpError> {
        let ins = product::own_inputs(ins, fused);
        let (geometry, frame) = self.frame(ins)?;
        let shape = [required(ins, 0)?.dims[0], frame.input[0], frame.input[1]];
        let has_bias = optional(ins, 2).is_some();
        let product = move |weight: &[f32]| FloatProduct {
            packed: PackedConv::new(&geometry, weight),
            shape,
            bias: if has_bias { Bias::Input } else { Bias::Absent },
            fused,
        };
        match required(ins, 1)?.value.as_ref().and_then(|w| w.as_f32()) {
            Some(weight) => Ok(product(weight).kernel()),
            None => Ok(Kernel::new(move |io| product(io.f32(1)).run(io))),
        }
    }

    fn trained(&self, ins: Facts) -> Result<Trained, OpError> {
        let (geometry, frame) = self.frame(ins)?;
        let shape = [required(ins, 0)?.dims[0], frame.input[0], frame.input[1]];
        Ok(Trained { geometry, shape, by_rows: false, alpha: 1.0 })
    }
}

impl Frame {
    /// The convolution that looks through this window.
    pub fn geometry(&self, in_channels: usize, out_channels: usize, groups: usize) -> ConvGeometry {
        let Frame { kernel, stride, dilation, pads, .. } = *self;
        ConvGeometry { in_channels, out_channels, kernel, stride, dilation, pads, groups }
    }
}

impl OpDef for Conv {
    fn attrs(&self) -> Attrs {
        self.window.write(Attrs::default().with("group", Attr::Int(self.group as i64)))
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let (_, frame) = self.frame(ins)?;
        expect_dtype(ins, 0, DType::F32)?;
        expect_dtype(ins, 1, DType::F32)?;
        let (x, w) = (required(ins, 0)?, required(ins, 1)?);
        Ok(vec![Fact::new(DType::F32, &frame.output_dims(x.dims[0], w.dims[0], x.dims.len() - 2))])
    }

    fn layout(&self) -> LayoutRule {
        LayoutRule::ChannelsLast
    }

    fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
        self.float(ins, product::ALONE)
    }

    fn build_fused(&self, ins: Facts, _outs: &[Fact], fused: Fused) -> Result<Option<Kernel>, OpError> {
        self.float(ins, fused).map(Some)
    }

    fn build_training(&self, ins: Facts, outs: &[Fact]) -> Result<Pass, OpError> {
        if required(ins, 1)?.value.is_some() {
            return Ok(Pass::new(self.build(ins, outs)?));
        }
        Ok(self.trained(ins)?.forward(optional(ins, 2).is_some()))
    }

    fn build_backward(&self, ins: Facts, _outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        Ok(Some(self.trained(ins)?.backward(ins, wants, add_columns)))
    }

    fn build_integer(&self, ins: Facts, outs: &[Fact], clamp: Activation) -> Result<Option<Kernel>, OpError> {
        let (geometry, frame) = self.frame(ins)?;
        let (x, w) = (required(ins, 0)?, required(ins, 1)?);
        let shape = [x.dims[0], frame.input[0], frame.input[1]];
        let (Some(x), Some(y)) = (integer::grid(x), integer::clamped(&outs[0], clamp)) else { return Ok(None) };
        let Some(weight) = WeightCodes::new(w, 0) else { return Ok(None) };
        let Some(bias) = product::integer_bias(ins, &weight, x.scale) else { return Ok(None) };
        let multipliers: Vec<f32> = weight.sum_scales(x.scale).iter().map(|s| s / y.scale).collect();
        let Some(codes) = weight.to_i8() else {
            // Steps that do not fit 8 bits: weights far from their zero point. Rare, so the plain sums will do.
            let len = outs[0].len();
            return Ok(Some(Kernel::new(move |io| {
                let mut sums = vec![0; len];
                let (codes, zero) = (io.u8(0), x.zero as u8);
                int::reference::conv_sums(&geometry, shape, codes, zero, &weight.steps, &[0], &bias, &mut sums);
                int::reference::requantize(&sums, &multipliers, y.zero, y.qmin, y.qmax, io.out_u8(0));
            })));
        };
        let packed = int::PackedQConv::new(&geometry, &codes);
        let constants = packed.requantize(x.zero as u8, &bias, &multipliers, y.zero, [y.qmin, y.qmax]);
        Ok(Some(product::quantized(packed, shape, constants)))
    }

    fn quant_rule(&self) -> QuantRule {
        QuantRule { inputs: vec![Role::Data, Role::Weight { channel_axis: 0 }, Role::Bias], output: OutRule::Own }
    }

    fn macs(&self, ins: Facts, _outs: &[Fact]) -> u64 {
        let Ok((geometry, frame)) = self.frame(ins) else { return 0 };
        let n = ins[0].map_or(0, |x| x.dims[0]);
        geometry.macs(n, frame.input[0], frame.input[1])
    }
}

impl OpFile for Conv {
    const NAME: &'static str = "Conv";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        Ok(Conv { window: Window::from_attrs(attrs)?, group: product::group(attrs)? })
    }

    fn samples() -> Vec<Sample> {
        let conv = |window, group| Conv { window, group };
        let asymmetric =
            Window { strides: vec![2, 1], dilations: vec![1, 2], pads: vec![0, 2, 1, 1], ..Window::default() };
        let same = Window { strides: vec![2, 2], auto_pad: AutoPad::SameUpper, ..Window::default() };
        let same_lower = Window { auto_pad: AutoPad::SameLower, ..same.clone() };
        let line = Window { strides: vec![2], pads: vec![1, 0], ..Window::default() };
        vec![
            sample(conv(Window::square(3, 1, 1), 1), &[&[2, 3, 6, 5], &[4, 3, 3, 3], &[4]]),
            sample(conv(Window::square(1, 1, 0), 1), &[&[1, 5, 4, 4], &[17, 5, 1, 1]]),
            sample(conv(Window::square(3, 2, 1), 6), &[&[2, 6, 7, 7], &[6, 1, 3, 3], &[6]]),
            sample(conv(asymmetric, 2), &[&[1, 4, 8, 9], &[6, 2, 3, 2], &[6]]),
            sample(conv(same, 1), &[&[1, 3, 8, 7], &[2, 3, 3, 3], &[2]]),
            sample(conv(same_lower, 1), &[&[1, 3, 8, 7], &[2, 3, 3, 3], &[2]]),
            sample(conv(line, 1), &[&[2, 3, 9], &[4, 3, 4], &[4]]),
        ]
    }
}
