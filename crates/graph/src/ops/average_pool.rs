//! AveragePool: the mean under a sliding window.

use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{
        Activation, Fact, Facts, Kernel, LayoutRule, OpDef, OpFile, OutRule, Pass, QuantRule, Sample, Want, expect_dtype,
        required,
    },
    ops::{
        backward::{gradient_index, of_first},
        integer,
        samples::sample,
        window::{AutoPad, Frame, Window},
    },
    tensor::DType,
};
use fewbits_kernels::{
    float::{self, Pooling},
    int,
    simd::{self, Isa, Simd},
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

impl AveragePool {
    /// Whether the integer kernel of ONNX Runtime computes what the float one does. It knows no dilations, and where counted padding
    /// and a rounded-up size meet, it counts taps behind the padding, too.
    pub(crate) fn fits_integers(&self) -> bool {
        let overhangs = self.ceil_mode && self.count_include_pad && self.window.auto_pad == AutoPad::NotSet;
        self.window.dilations.is_empty() && !overhangs
    }
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

    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        let (x, frame) = (required(ins, 0)?, self.window.pool_frame(ins, self.ceil_mode)?);
        let (want, gradient) = (of_first(wants)?, gradient_index(ins, outs));
        let (channels, with_pads) = (x.dims[1], self.count_include_pad);
        Ok(Some(Pass::new(Kernel::new(move |io| {
            let (dy, dx) = (io.f32(gradient), io.out_f32(0));
            if want == Want::Write {
                dx.fill(0.0);
            }
            Isa::best().dispatch(Spread { frame: &frame, channels, with_pads, dy, dx });
        }))))
    }

    fn build_integer(&self, ins: Facts, outs: &[Fact], clamp: Activation) -> Result<Option<Kernel>, OpError> {
        let x = required(ins, 0)?;
        let frame = self.window.pool_frame(ins, self.ceil_mode)?;
        let (Some(from), Some(to)) = (integer::grid(x), integer::clamped(&outs[0], clamp)) else { return Ok(None) };
        if !self.window.dilations.is_empty() {
            return Ok(None);
        }
        let (shape, window) = frame.integer_pool(x.dims[0], x.dims[1]);
        let include = self.count_include_pad;
        Ok(Some(Kernel::new(move |io| {
            let (threads, x) = (io.threads, io.u8(0));
            int::pool::average_pool(threads, &shape, &window, include, x, &from, io.out_u8(0), &to);
        })))
    }

    fn quant_rule(&self) -> QuantRule {
        if self.fits_integers() { QuantRule::data() } else { QuantRule { output: OutRule::Float, ..QuantRule::data() } }
    }
}

/// Adds to every place under a window its share of the window's gradient.
struct Spread<'a> {
    frame: &'a Frame,
    channels: usize,
    with_pads: bool,
    dy: &'a [f32],
    dx: &'a mut [f32],
}

impl simd::Kernel for Spread<'_> {
    type Output = ();
    /// Plain loops, compiled for each instruction set.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Spread { frame, channels: c, with_pads, dy, dx } = self;
        let [h, w] = frame.input;
        for (position, dy) in dy.chunks_exact(c.max(1)).enumerate() {
            let [image, row, column] = frame.place(position);
            let (rows, columns) = (frame.taps(0, row), frame.taps(1, column));
            let taps = match with_pads {
                true => frame.padded_taps(0, row) * frame.padded_taps(1, column),
                false => rows.clone().count() * columns.clone().count(),
            };
            let share = 1.0 / taps.max(1) as f32;
            for i in rows {
                for j in columns.clone() {
                    let dx = &mut dx[((image * h + i) * w + j) * c..][..c];
                    for (dx, dy) in dx.iter_mut().zip(dy) {
                        *dx += dy * share;
                    }
                }
            }
        }
    }
}

impl OpFile for AveragePool {
    const NAME: &'static str = "AveragePool";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        let mut window = Window::from_attrs(attrs)?;
        // ONNX Runtime copies the attribute to an integer operator that does not have it, so ones are not kept.
        if window.dilations.iter().all(|&d| d == 1) {
            window.dilations.clear();
        }
        Ok(AveragePool {
            window,
            ceil_mode: attrs.int("ceil_mode")?.unwrap_or(0) != 0,
            count_include_pad: attrs.int("count_include_pad")?.unwrap_or(0) != 0,
        })
    }

    fn samples() -> Vec<Sample> {
        let pool = |window, ceil_mode, count_include_pad| AveragePool { window, ceil_mode, count_include_pad };
        let line = Window { kernel_shape: vec![4], strides: vec![3], pads: vec![1, 1], ..Window::default() };
        let same = Window { auto_pad: AutoPad::SameLower, pads: vec![], ..Window::square(3, 2, 0) };
        let dilated = Window { dilations: vec![2, 1], ..Window::square(2, 1, 1) };
        vec![
            sample(pool(Window::square(3, 2, 1), false, false), &[&[2, 3, 7, 6]]),
            sample(pool(Window::square(3, 2, 1), true, true), &[&[1, 3, 8, 6]]),
            sample(pool(same, false, true), &[&[1, 2, 8, 7]]),
            sample(pool(line, true, true), &[&[2, 3, 8]]),
            sample(pool(dilated, false, true), &[&[1, 2, 6, 5]]),
        ]
    }
}
