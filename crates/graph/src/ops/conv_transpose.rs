//! ConvTranspose: the transpose of a convolution, over one or two spatial axes.

use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{
        Activation, Fact, Facts, Fused, Io, Kernel, LayoutRule, OpDef, OpFile, OutRule, Packing, Pass, QuantRule, Role,
        Sample, Unpacking, Want, expect_dtype, optional, required,
    },
    ops::{
        backward::{gradient_index, put},
        product,
        samples::sample,
        window::{AutoPad, Window},
    },
    tensor::DType,
};
use fewbits_kernels::{
    conv_transpose::{PackedConvTranspose, TransposedGeometry},
    movement::Transpose,
    simd::{self, Isa, Simd},
};

/// `y[n, o, p] = b[o] + Σ x[n, c, i] · w[c, o, k]` over all `i`, `k` with `p = i · stride + k · dilation − pad`.
/// Inputs: x `[N, C, spatial…]`, w `[C, O / group, kernel…]`, b `[O]`, optional.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvTranspose {
    /// Strides, dilations, padding (here: what is cut off).
    pub window: Window,
    /// Number of blocks that the channels are cut into; at least 1.
    pub group: usize,
    /// Positions added at the ends; empty stands for 0.
    pub output_padding: Vec<usize>,
    /// Spatial output size, from which the padding follows; empty if the padding is given.
    pub output_shape: Vec<usize>,
}

impl ConvTranspose {
    fn geometry(&self, ins: Facts) -> Result<TransposedGeometry, OpError> {
        let (x, w) = (required(ins, 0)?, required(ins, 1)?);
        if x.dims.len() < 3 {
            return Err(OpError::Rank { index: 0, expected: 4, found: x.dims.len() });
        }
        if w.dims.len() != x.dims.len() {
            return Err(OpError::Rank { index: 1, expected: x.dims.len(), found: w.dims.len() });
        }
        let spatial = x.dims.len() - 2;
        let mut frame = self.window.unpadded(&x.dims[2..], &w.dims[2..])?;
        let two = |name, list: &[usize], first: usize| match *list {
            [] => Ok(None),
            [b] if spatial == 1 => Ok(Some([first, b])),
            [a, b] if spatial == 2 => Ok(Some([a, b])),
            _ => Err(OpError::Attribute { name, reason: format!("{list:?} should be {spatial} numbers") }),
        };
        let extra = two("output_padding", &self.output_padding, 0)?.unwrap_or_default();
        let shape = two("output_shape", &self.output_shape, 1)?;
        for axis in 0..2 {
            let (stride, extent) = (frame.stride[axis], frame.dilation[axis] * (frame.kernel[axis] - 1) + 1);
            let whole = stride * frame.input[axis].saturating_sub(1) + extra[axis] + extent;
            let same = matches!(self.window.auto_pad, AutoPad::SameUpper | AutoPad::SameLower);
            let wanted = shape.map(|s| s[axis]).or(same.then_some(frame.input[axis] * stride));
            if let Some(wanted) = wanted {
                // With a given shape, everything but SAME_UPPER puts the odd one first.
                let mode =
                    if self.window.auto_pad == AutoPad::SameUpper { AutoPad::SameUpper } else { AutoPad::SameLower };
                frame.pad_same(axis, mode, whole.saturating_sub(wanted));
            }
            let cut = frame.pads[axis] + frame.pads[axis + 2];
            let size = wanted.or(whole.checked_sub(cut)).ok_or_else(|| OpError::Shapes {
                what: "output and padding",
                left: vec![whole],
                right: vec![cut],
            })?;
            frame.output[axis] = size;
        }
        let geometry = TransposedGeometry {
            in_channels: x.dims[1],
            out_channels: w.dims[1] * self.group,
            kernel: frame.kernel,
            stride: frame.stride,
            dilation: frame.dilation,
            pads: [frame.pads[0], frame.pads[1]],
            groups: self.group,
            input: frame.input,
            output: frame.output,
        };
        if w.dims[0] != x.dims[1] || x.dims[1] % self.group != 0 || geometry.out_channels * x.dims[1] == 0 {
            return Err(OpError::Shapes { what: "image and weight", left: x.dims.clone(), right: w.dims.clone() });
        }
        product::check_bias(ins, geometry.out_channels)?;
        Ok(geometry)
    }

    fn float(&self, ins: Facts, activation: Activation) -> Result<Kernel, OpError> {
        let (geometry, n) = (self.geometry(ins)?, required(ins, 0)?.dims[0]);
        let has_bias = optional(ins, 2).is_some();
        let run = move |packed: &PackedConvTranspose, io: &mut Io<'_>| {
            let (threads, x, bias) = (io.threads, io.f32(0), has_bias.then(|| io.f32(2)));
            let needed = packed.scratch_len(threads.count());
            let (y, scratch) = io.out_f32_and_scratch(0);
            product::with_scratch(scratch, needed, |scratch| packed.run(threads, n, x, bias, activation, y, scratch));
        };
        Ok(match required(ins, 1)?.value.as_ref().and_then(|w| w.as_f32()) {
            Some(weight) => {
                let packed = PackedConvTranspose::new(&geometry, weight);
                let scratch = packed.scratch_len(product::usual_threads());
                Kernel::new(move |io| run(&packed, io)).with_scratch(scratch)
            }
            None => Kernel::new(move |io| run(&PackedConvTranspose::new(&geometry, io.f32(1)), io)),
        })
    }
}

impl OpDef for ConvTranspose {
    fn attrs(&self) -> Attrs {
        let mut attrs = self.window.write(Attrs::default().with("group", Attr::Int(self.group as i64)));
        for (name, list) in [("output_padding", &self.output_padding), ("output_shape", &self.output_shape)] {
            if !list.is_empty() {
                attrs = attrs.with(name, Attr::Ints(list.iter().map(|&v| v as i64).collect()));
            }
        }
        attrs
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let geometry = self.geometry(ins)?;
        expect_dtype(ins, 0, DType::F32)?;
        expect_dtype(ins, 1, DType::F32)?;
        let x = required(ins, 0)?;
        let spatial = &geometry.output[4 - x.dims.len()..];
        Ok(vec![Fact::new(DType::F32, &[&[x.dims[0], geometry.out_channels], spatial].concat())])
    }

    fn layout(&self) -> LayoutRule {
        LayoutRule::ChannelsLast
    }

    fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
        self.float(ins, Activation::Identity)
    }

    fn build_fused(&self, ins: Facts, _outs: &[Fact], fused: Fused) -> Result<Option<Kernel>, OpError> {
        if fused.residual { Ok(None) } else { self.float(ins, fused.activation).map(Some) }
    }

    /// `dx[i] = Σ w[k] · dy[p]`, `dw[k] = Σ x[i] · dy[p]` with the `i`, `k` and `p` of the forward sum; `db = Σ dy`.
    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        let geometry = self.geometry(ins)?;
        let g = geometry;
        let [group_in, group_out] = [g.in_channels / g.groups, g.out_channels / g.groups];
        let taps = g.kernel[0] * g.kernel[1];
        let len = g.in_channels * group_out * taps;
        // Weights and their gradient are kept as `[group, tap, output channel, input channel]`.
        let there = Transpose::new(&[g.groups, group_in, group_out, taps], &[0, 3, 2, 1]);
        let back = Transpose::new(&[g.groups, taps, group_out, group_in], &[0, 3, 2, 1]);
        let want = |input: usize| wants.get(input).copied().unwrap_or(Want::No);
        let wants = [0, 1, 2].map(want);
        let gradient = gradient_index(ins, outs);
        let packed = gradient + outs.len();
        let kernel = Kernel::new(move |io| {
            let (x, dy, weight) = (io.f32(0), io.f32(gradient), io.f32(packed));
            for (input, want) in wants.into_iter().enumerate() {
                let to = io.out_f32(input);
                if want == Want::Write {
                    to.fill(0.0);
                }
                let spread = Spread { g: &geometry, x, dy, weight, to };
                match (input, want) {
                    (_, Want::No) => {}
                    (2, _) => {
                        let pixels = dy.chunks_exact(g.out_channels);
                        pixels.for_each(|dy| put(Want::Add, dy, spread.to));
                    }
                    (0, _) => Isa::best().dispatch(TowardImage(spread)),
                    _ => Isa::best().dispatch(TowardWeight(spread)),
                }
            }
        });
        let weight_into = |transpose: Transpose, from: usize| {
            Kernel::new(move |io| transpose.run(io.threads, io.f32(from), io.out_f32(0)))
        };
        let read: &[usize] = if wants[1] == Want::No { &[] } else { &[0] };
        Ok(Some(Pass {
            packing: (wants[0] != Want::No).then(|| Packing { kernel: weight_into(there, 1), len }),
            gradient: (wants[1] != Want::No).then(|| Unpacking { input: 1, len, kernel: weight_into(back, 0) }),
            ..Pass::new(kernel).reading_ins(read)
        }))
    }

    fn quant_rule(&self) -> QuantRule {
        QuantRule { inputs: vec![Role::Data, Role::Weight { channel_axis: 1 }, Role::Bias], output: OutRule::Own }
    }

    fn macs(&self, ins: Facts, _outs: &[Fact]) -> u64 {
        let Ok(g) = self.geometry(ins) else { return 0 };
        let n = ins[0].map_or(0, |x| x.dims[0]);
        let weights = g.in_channels * g.out_channels / g.groups * g.kernel[0] * g.kernel[1];
        (n * g.input[0] * g.input[1]) as u64 * weights as u64
    }
}

/// The operands of a gradient; `to` is the gradient. Weights are `[group, tap, output channel, input channel]`.
struct Spread<'a> {
    g: &'a TransposedGeometry,
    x: &'a [f32],
    dy: &'a [f32],
    weight: &'a [f32],
    to: &'a mut [f32],
}

/// For every pixel of the input, tap and group: where the channels of input and output and the tap's weights start.
#[inline(always)]
fn for_each_tap(g: &TransposedGeometry, pixels: usize, mut step: impl FnMut(usize, usize, usize)) {
    let ([h, w], [oh, ow], [kh, kw]) = (g.input, g.output, g.kernel);
    let [group_in, group_out] = [g.in_channels / g.groups, g.out_channels / g.groups];
    let place =
        |axis: usize, i: usize, k: usize| (i * g.stride[axis] + k * g.dilation[axis]).wrapping_sub(g.pads[axis]);
    for pixel in 0..pixels {
        let (image, i, j) = (pixel / (h * w), pixel / w % h, pixel % w);
        for tap in 0..kh * kw {
            let (p, q) = (place(0, i, tap / kw), place(1, j, tap % kw));
            if p < oh && q < ow {
                for group in 0..g.groups {
                    let input = pixel * g.in_channels + group * group_in;
                    let output = ((image * oh + p) * ow + q) * g.out_channels + group * group_out;
                    step(input, output, (group * kh * kw + tap) * group_out * group_in);
                }
            }
        }
    }
}

/// `to += factor · from`
#[inline(always)]
fn add_scaled(factor: f32, from: &[f32], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += factor * from;
    }
}

struct TowardImage<'a>(Spread<'a>);

impl simd::Kernel for TowardImage<'_> {
    type Output = ();
    /// Plain loops, compiled for each instruction set.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Spread { g, dy, weight, to, .. } = self.0;
        let [group_in, group_out] = [g.in_channels / g.groups, g.out_channels / g.groups];
        for_each_tap(g, to.len() / g.in_channels, |input, output, tap| {
            let dx = &mut to[input..][..group_in];
            let rows = weight[tap..][..group_out * group_in].chunks_exact(group_in);
            for (weight, &dy) in rows.zip(&dy[output..]) {
                add_scaled(dy, weight, dx);
            }
        });
    }
}

struct TowardWeight<'a>(Spread<'a>);

impl simd::Kernel for TowardWeight<'_> {
    type Output = ();
    /// Plain loops, compiled for each instruction set.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Spread { g, x, dy, to, .. } = self.0;
        let [group_in, group_out] = [g.in_channels / g.groups, g.out_channels / g.groups];
        for_each_tap(g, x.len() / g.in_channels, |input, output, tap| {
            let x = &x[input..][..group_in];
            let rows = to[tap..][..group_out * group_in].chunks_exact_mut(group_in);
            for (weight, &dy) in rows.zip(&dy[output..]) {
                add_scaled(dy, x, weight);
            }
        });
    }
}

impl OpFile for ConvTranspose {
    const NAME: &'static str = "ConvTranspose";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        Ok(ConvTranspose {
            window: Window::from_attrs(attrs)?,
            group: product::group(attrs)?,
            output_padding: attrs.sizes("output_padding")?.unwrap_or_default(),
            output_shape: attrs.sizes("output_shape")?.unwrap_or_default(),
        })
    }

    fn samples() -> Vec<Sample> {
        let transposed = |window, group, output_padding: &[usize], output_shape: &[usize]| ConvTranspose {
            window,
            group,
            output_padding: output_padding.to_vec(),
            output_shape: output_shape.to_vec(),
        };
        let free = Window { pads: vec![], ..Window::square(3, 2, 0) };
        let same = Window { auto_pad: AutoPad::SameUpper, ..free.clone() };
        let same_lower = Window { auto_pad: AutoPad::SameLower, ..free.clone() };
        let dilated = Window { dilations: vec![2, 1], pads: vec![1, 0, 0, 2], ..free.clone() };
        let line = Window { kernel_shape: vec![4], strides: vec![2], pads: vec![1, 1], ..Window::default() };
        let shapes: [&[usize]; 3] = [&[2, 4, 3, 5], &[4, 3, 3, 3], &[3]];
        vec![
            sample(transposed(Window::square(2, 2, 0), 1, &[], &[]), &[&[1, 3, 4, 5], &[3, 5, 2, 2], &[5]]),
            sample(transposed(Window::square(3, 2, 1), 1, &[1, 1], &[]), &shapes),
            sample(transposed(dilated, 2, &[], &[]), &[&[1, 4, 3, 5], &[4, 3, 3, 3]]),
            sample(transposed(same, 1, &[], &[]), &shapes),
            sample(transposed(same_lower, 1, &[], &[]), &shapes),
            sample(transposed(free, 1, &[], &[6, 10]), &shapes),
            sample(transposed(line, 1, &[], &[]), &[&[2, 3, 6], &[3, 2, 4], &[2]]),
        ]
    }
}
