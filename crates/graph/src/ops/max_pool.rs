//! MaxPool: the largest number under a sliding window.

use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{
        Activation, Fact, Facts, Io, Kernel, LayoutRule, OpDef, OpFile, Pass, QuantRule, Sample, SliceMut, Want,
        expect_dtype, required,
    },
    ops::{
        backward::{gradient_index, is_float, of_first},
        integer,
        samples::sample,
        window::{AutoPad, Frame, Window},
    },
    tensor::DType,
};
use fewbits_kernels::{
    float::{self, PoolGeometry, Pooling},
    int,
    max_indices::max_pool_with_indices,
    simd::{self, Isa, Simd},
};

/// `y[n, c, p] = max_k x[n, c, p · stride + k · dilation − pad]` over the taps inside the image. The optional second output is
/// the index of that element in the flattened input. A gradient goes to the first of equal maxima, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct MaxPool {
    /// Kernel, strides, dilations, padding.
    pub window: Window,
    /// Rounds the output size up.
    pub ceil_mode: bool,
    /// Whether indices count columns first (`storage_order` 1).
    pub column_major: bool,
}

impl MaxPool {
    fn frame(&self, ins: Facts) -> Result<Frame, OpError> {
        self.window.pool_frame(ins, self.ceil_mode)
    }
}

impl Window {
    /// The window of a pool over input 0.
    pub fn pool_frame(&self, ins: Facts, ceil_mode: bool) -> Result<Frame, OpError> {
        let x = required(ins, 0)?;
        if x.dims.len() < 3 {
            return Err(OpError::Rank { index: 0, expected: 4, found: x.dims.len() });
        }
        self.frame(&x.dims[2..], &self.kernel_shape, ceil_mode)
    }
}

impl Frame {
    /// The pool that looks through this window.
    pub fn pool(&self) -> PoolGeometry {
        let Frame { kernel, stride, dilation, pads, .. } = *self;
        PoolGeometry { kernel, stride, dilation, pads }
    }

    /// Dimensions `[n, h, w, c]` of an image stack with these images.
    pub fn stack(&self, n: usize, channels: usize) -> [usize; 4] {
        [n, self.input[0], self.input[1], channels]
    }

    /// The same for integers.
    pub fn integer_pool(&self, n: usize, channels: usize) -> (int::pool::PoolShape, int::pool::Window) {
        let Frame { input, kernel, stride, dilation, pads, output } = *self;
        (int::pool::PoolShape { n, input, output, channels }, int::pool::Window { kernel, stride, dilation, pads })
    }
}

impl OpDef for MaxPool {
    fn attrs(&self) -> Attrs {
        let attrs = self.window.write(Attrs::default());
        attrs
            .with("ceil_mode", Attr::Int(self.ceil_mode.into()))
            .with("storage_order", Attr::Int(self.column_major.into()))
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let frame = self.frame(ins)?;
        let x = required(ins, 0)?;
        if x.dtype != DType::U8 {
            expect_dtype(ins, 0, DType::F32)?;
        }
        let dims = frame.output_dims(x.dims[0], x.dims[1], x.dims.len() - 2);
        Ok(vec![Fact::new(x.dtype, &dims), Fact::new(DType::I64, &dims)])
    }

    fn layout(&self) -> LayoutRule {
        LayoutRule::ChannelsLast
    }

    fn build(&self, ins: Facts, outs: &[Fact]) -> Result<Kernel, OpError> {
        let (x, frame) = (required(ins, 0)?, self.frame(ins)?);
        let (geometry, stack, column_major) = (frame.pool(), frame.stack(x.dims[0], x.dims[1]), self.column_major);
        if x.dtype == DType::U8 && outs.len() == 1 {
            return Ok(bytes(x, &frame));
        }
        expect_dtype(ins, 0, DType::F32)?;
        if outs.len() > 1 {
            let [_, h, w, c] = stack;
            return Ok(Kernel::new(move |io: &mut Io<'_>| {
                let x = io.f32(0);
                if let [SliceMut::F32(y), SliceMut::I64(indices)] = io.outs {
                    max_pool_with_indices(&geometry, [h, w, c], frame.output, column_major, x, y, indices);
                }
            }));
        }
        Ok(Kernel::new(move |io| {
            let (threads, x) = (io.threads, io.f32(0));
            float::pool(threads, Pooling::Max, &geometry, stack, x, frame.output, io.out_f32(0));
        }))
    }

    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        route(self.frame(ins)?, ins, outs, wants)
    }

    fn build_integer(&self, ins: Facts, outs: &[Fact], clamp: Activation) -> Result<Option<Kernel>, OpError> {
        let (x, frame) = (required(ins, 0)?, self.frame(ins)?);
        if outs.len() > 1 || clamp != Activation::Identity || !integer::same_grid(x, &outs[0]) {
            return Ok(None);
        }
        Ok(Some(bytes(x, &frame)))
    }

    fn quant_rule(&self) -> QuantRule {
        QuantRule::movement()
    }
}

/// The backward pass of a pool that takes maxima.
pub(super) fn route(frame: Frame, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
    let (channels, want) = (required(ins, 0)?.dims[1], of_first(wants)?);
    let (output, gradient) = (ins.len(), gradient_index(ins, outs));
    let kernel = Kernel::new(move |io| {
        let (x, y, dy) = (io.f32(0), io.f32(output), io.f32(gradient));
        let (dx, left) = io.out_f32_and_scratch(0);
        if want == Want::Write {
            dx.fill(0.0);
        }
        Isa::best().dispatch(Route { frame: &frame, x, y, dy, dx, left: &mut left[..channels] });
    });
    Ok(is_float(ins, outs)?.then(|| Pass::new(kernel.with_scratch(channels)).reading_ins(&[0]).reading_outs(&[0])))
}

/// Adds the gradient of every window to its first element that is the maximum.
struct Route<'a> {
    frame: &'a Frame,
    x: &'a [f32],
    y: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
    /// One number per channel: the gradient until its place is found, then 0.
    left: &'a mut [f32],
}

impl simd::Kernel for Route<'_> {
    type Output = ();
    /// Plain loops, compiled for each instruction set.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Route { frame, x, y, dy, dx, left } = self;
        let (c, [h, w]) = (left.len(), frame.input);
        for (position, (y, dy)) in y.chunks_exact(c.max(1)).zip(dy.chunks_exact(c.max(1))).enumerate() {
            let [image, row, column] = frame.place(position);
            left.copy_from_slice(dy);
            for i in frame.taps(0, row) {
                for j in frame.taps(1, column) {
                    let start = ((image * h + i) * w + j) * c;
                    let (x, dx) = (&x[start..][..c], &mut dx[start..][..c]);
                    for (((x, y), dx), left) in x.iter().zip(y).zip(dx).zip(left.iter_mut()) {
                        let found = x == y;
                        *dx += if found { *left } else { 0.0 };
                        *left = if found { 0.0 } else { *left };
                    }
                }
            }
        }
    }
}

/// The kernel for bytes: numbers, or codes of one grid.
fn bytes(x: &Fact, frame: &Frame) -> Kernel {
    let (shape, window) = frame.integer_pool(x.dims[0], x.dims[1]);
    Kernel::new(move |io| {
        let (threads, x) = (io.threads, io.u8(0));
        int::pool::max_pool(threads, &shape, &window, x, io.out_u8(0));
    })
}

impl OpFile for MaxPool {
    const NAME: &'static str = "MaxPool";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        Ok(MaxPool {
            window: Window::from_attrs(attrs)?,
            ceil_mode: attrs.int("ceil_mode")?.unwrap_or(0) != 0,
            column_major: attrs.int("storage_order")?.unwrap_or(0) != 0,
        })
    }

    fn samples() -> Vec<Sample> {
        let pool = |window, ceil_mode| MaxPool { window, ceil_mode, column_major: false };
        let line = Window { kernel_shape: vec![3], strides: vec![2], ..Window::default() };
        let dilated = Window { dilations: vec![2, 1], pads: vec![0, 1, 1, 0], ..Window::square(2, 1, 0) };
        let same = Window { auto_pad: AutoPad::SameUpper, pads: vec![], ..Window::square(3, 2, 0) };
        vec![
            sample(pool(Window::square(3, 2, 1), false), &[&[2, 3, 7, 6]]),
            sample(pool(Window::square(2, 2, 0), true), &[&[1, 4, 5, 5]]),
            sample(pool(dilated, false), &[&[1, 2, 6, 5]]),
            sample(pool(same, false), &[&[1, 2, 8, 7]]),
            sample(pool(line, true), &[&[2, 3, 8]]),
        ]
    }
}
