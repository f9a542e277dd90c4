//! AveragePool: the mean under a sliding window.

use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{Activation, Fact, Facts, Kernel, LayoutRule, OpDef, OpFile, QuantRule, Sample, expect_dtype, required},
    ops::{
        integer,
        samples::sample,
        window::{AutoPad, Window},
    },
    tensor::DType,
};
use fewbits_kernels::{
    float::{self, Pooling},
    int,
};

/// `y[n, c, p] = mean_k x[n, c, p · stride + k · dilation − pad]` over the taps inside the image, or inside the padded image.
#[derive(Clone, Debug, PartialEq)]
pub struct AveragePool {
    /// Kernel, strides, dilations, padding.
    pub window: Window,
    /// Rounds the output size up.
    pub ceil_mode: bool,
    /// Whether padding counts as zeros.
    pub count_include_pad: bool,
}

impl OpDef for AveragePool {
    fn attrs(&self) -> Attrs {
        let attrs = self.window.write(Attrs::default());
        attrs
            .with("ceil_mode", Attr::Int(self.ceil_mode.into()))
            .with("count_include_pad", Attr::Int(self.count_include_pad.into()))
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let frame = self.window.pool_frame(ins, self.ceil_mode)?;
        expect_dtype(ins, 0, DType::F32)?;
        let x = required(ins, 0)?;
        Ok(vec![Fact::new(DType::F32, &frame.output_dims(x.dims[0], x.dims[1], x.dims.len() - 2))])
    }

    fn layout(&self) -> LayoutRule {
        LayoutRule::ChannelsLast
    }

    fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
        let (x, frame) = (required(ins, 0)?, self.window.pool_frame(ins, self.ceil_mode)?);
        let (geometry, stack) = (frame.pool(), frame.stack(x.dims[0], x.dims[1]));
        let pooling = if self.count_include_pad { Pooling::AverageWithPads } else { Pooling::Average };
        Ok(Kernel::new(move |io| {
            let (threads, x) = (io.threads, io.f32(0));
            float::pool(threads, pooling, &geometry, stack, x, frame.output, io.out_f32(0));
        }))
    }

    fn build_integer(&self, ins: Facts, outs: &[Fact], clamp: Activation) -> Result<Option<Kernel>, OpError> {
        let x = required(ins, 0)?;
        let frame = self.window.pool_frame(ins, self.ceil_mode)?;
        let (Some(from), Some(to)) = (integer::grid(x), integer::clamped(&outs[0], clamp)) else { return Ok(None) };
        let (shape, window) = frame.integer_pool(x.dims[0], x.dims[1]);
        let include = self.count_include_pad;
        Ok(Some(Kernel::new(move |io| {
            let (threads, x) = (io.threads, io.u8(0));
            int::pool::average_pool(threads, &shape, &window, include, x, &from, io.out_u8(0), &to);
        })))
    }

    fn quant_rule(&self) -> QuantRule {
        QuantRule::data()
    }
}

impl OpFile for AveragePool {
    const NAME: &'static str = "AveragePool";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        Ok(AveragePool {
            window: Window::from_attrs(attrs)?,
            ceil_mode: attrs.int("ceil_mode")?.unwrap_or(0) != 0,
            count_include_pad: attrs.int("count_include_pad")?.unwrap_or(0) != 0,
        })
    }

    fn samples() -> Vec<Sample> {
        let pool = |window, ceil_mode, count_include_pad| AveragePool { window, ceil_mode, count_include_pad };
        let line = Window { kernel_shape: vec![4], strides: vec![3], pads: vec![1, 1], ..Window::default() };
        let same = Window { auto_pad: AutoPad::SameLower, pads: vec![], ..Window::square(3, 2, 0) };
        vec![
            sample(pool(Window::square(3, 2, 1), false, false), &[&[2, 3, 7, 6]]),
            sample(pool(Window::square(3, 2, 1), true, true), &[&[1, 3, 8, 6]]),
            sample(pool(same, false, true), &[&[1, 2, 8, 7]]),
            sample(pool(line, true, true), &[&[2, 3, 8]]),
        ]
    }
}
