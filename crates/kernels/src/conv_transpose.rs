//! Transposed convolution: as many ordinary convolutions as the stride has phases, each giving every stride-th output.
//!
//! What enters: NHWC images and IOHW weights. What leaves: NHWC images. Equal to [`reference()`] up to the order of the sums.

use crate::float::{Activation, Epilogue, PackedConv};
use crate::simd::Isa;
use crate::{ConvGeometry, Threads};

/// `y[p] = bias + Σ x[i] · w[k]` over all `i`, `k` with `p = i · stride + k · dilation − pad`.
///
/// Weights are `[in_channels, out_channels / groups, kernel height, kernel width]` (IOHW).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransposedGeometry {
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Kernel height and width.
    pub kernel: [usize; 2],
    /// Output positions between neighbouring inputs.
    pub stride: [usize; 2],
    /// Output positions between neighbouring taps.
    pub dilation: [usize; 2],
    /// Rows and columns cut off at the top and left.
    pub pads: [usize; 2],
    /// Number of groups.
    pub groups: usize,
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Height and width of the output.
    pub output: [usize; 2],
}

/// One phase along one axis: which outputs, made by which taps.
#[derive(Clone, Debug)]
struct Line {
    /// First output and how many, `stride` apart.
    first: usize,
    count: usize,
    /// Taps of the kernel, in the order in which they meet rising inputs.
    taps: Vec<usize>,
    dilation: usize,
    /// Padding of the ordinary convolution at start and end.
    pads: [usize; 2],
    /// Leading results of the ordinary convolution that are no outputs.
    skip: usize,
}

/// The ordinary convolution of one pair of phases; `None` where no tap reaches.
#[derive(Debug)]
struct Phase {
    lines: [Line; 2],
    conv: Option<PackedConv>,
}

/// A transposed convolution with its weights laid out for the kernels that run it.
#[derive(Debug)]
pub struct PackedConvTranspose {
    geometry: TransposedGeometry,
    phases: Vec<Phase>,
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl TransposedGeometry {
    /// The outputs `p` with `(p + pad) % stride == phase`.
    fn line(&self, axis: usize, phase: usize) -> Line {
        let (stride, dilation, pad) = (self.stride[axis], self.dilation[axis], self.pads[axis]);
        // p = q · stride + phase − pad for q = start, start + 1, …
        let start = pad.saturating_sub(phase).div_ceil(stride);
        let first = start * stride + phase - pad;
        let count = self.output[axis].saturating_sub(first).div_ceil(stride);
        let mut taps: Vec<usize> = (0..self.kernel[axis]).filter(|k| k * dilation % stride == phase).collect();
        // Tap k meets input i = q − (k · dilation − phase) / stride: falling, so the taps are turned round.
        taps.reverse();
        let step = dilation / gcd(stride, dilation);
        let reach = taps.first().map_or(0, |k| (k * dilation - phase) / stride);
        let skip = start.saturating_sub(reach);
        let lead = (reach + skip) - start;
        let extent = taps.len().saturating_sub(1) * step + 1;
        let tail = (skip + count + extent - 1).saturating_sub(self.input[axis] + lead);
        Line { first, count, taps, dilation: step, pads: [lead, tail], skip }
    }
}

impl PackedConvTranspose {
    /// Packs IOHW weights for this processor.
    ///
    /// # Panics
    /// If the weights do not have the geometry's length.
    pub fn new(geometry: &TransposedGeometry, weights: &[f32]) -> Self {
        let g = *geometry;
        let [kh, kw] = g.kernel;
        let (group_in, group_out) = (g.in_channels / g.groups, g.out_channels / g.groups);
        assert_eq!(weights.len(), g.in_channels * group_out * kh * kw, "weights have the geometry's length");
        let phase = |index: usize| {
            let lines = [g.line(0, index / g.stride[1]), g.line(1, index % g.stride[1])];
            let mut ordered = Vec::new();
            for o in 0..g.out_channels {
                for c in 0..group_in {
                    let filter = ((o / group_out * group_in + c) * group_out + o % group_out) * kh * kw;
                    let taps = lines[0].taps.iter().flat_map(|r| lines[1].taps.iter().map(move |s| r * kw + s));
                    ordered.extend(taps.map(|tap| weights[filter + tap]));
                }
            }
            let conv = ConvGeometry {
                in_channels: g.in_channels,
                out_channels: g.out_channels,
                kernel: [lines[0].taps.len(), lines[1].taps.len()],
                stride: [1, 1],
                dilation: [lines[0].dilation, lines[1].dilation],
                pads: [lines[0].pads[0], lines[1].pads[0], lines[0].pads[1], lines[1].pads[1]],
                groups: g.groups,
            };
            let conv = (!ordered.is_empty()).then(|| PackedConv::new(&conv, &ordered));
            Phase { lines, conv }
        };
        let phases = (0..g.stride[0] * g.stride[1]).map(phase);
        PackedConvTranspose { geometry: g, phases: phases.filter(|p| p.lines.iter().all(|l| l.count > 0)).collect() }
    }

    /// How many numbers of scratch [`PackedConvTranspose::run`] needs for `n` images on `threads` threads.
    pub fn scratch_len(&self, threads: usize, n: usize) -> usize {
        let [h, w] = self.geometry.input;
        let phase = |p: &Phase| {
            let [oh, ow] = p.conv.as_ref()?.geometry().output_size(h, w)?;
            Some(n * oh * ow * self.geometry.out_channels + p.conv.as_ref()?.scratch_len(threads, n, h, w))
        };
        self.phases.iter().filter_map(phase).max().unwrap_or(0)
    }

    /// Computes `n` images; the activation is applied last.
    ///
    /// # Panics
    /// If a slice does not have the length of its shape, or `scratch` is too short.
    #[expect(clippy::too_many_arguments, reason = "the operands of one formula")]
    pub fn run(
        &self,
        threads: &Threads,
        n: usize,
        x: &[f32],
        bias: Option<&[f32]>,
        activation: Activation,
        y: &mut [f32],
        scratch: &mut [f32],
    ) {
        let g = &self.geometry;
        let ([h, w], [oh, ow], channels) = (g.input, g.output, g.out_channels);
        assert_eq!(y.len(), n * oh * ow * channels, "the output has the geometry's shape");
        for Phase { lines: [rows, columns], conv } in &self.phases {
            // The bias comes last, as in ONNX Runtime: an initial value would be rounded into every partial sum.
            let epilogue = Epilogue { bias: None, residual: None, activation: Activation::Identity };
            let (mut source, mut size) = (&[][..], [0, 0]);
            if let Some(conv) = conv {
                size = conv.geometry().output_size(h, w).expect("the padding makes the kernel fit");
                let (out, rest) = scratch.split_at_mut(n * size[0] * size[1] * channels);
                conv.run(threads, [n, h, w], x, &epilogue, out, rest);
                source = out;
            }
            for (image, r, c) in positions(n, rows.count, columns.count) {
                let (row, column) = (rows.first + r * g.stride[0], columns.first + c * g.stride[1]);
                let to = &mut y[((image * oh + row) * ow + column) * channels..][..channels];
                if conv.is_some() {
                    let from = ((image * size[0] + r + rows.skip) * size[1] + c + columns.skip) * channels;
                    to.copy_from_slice(&source[from..from + channels]);
                } else {
                    to.fill(0.0);
                }
                if let Some(bias) = bias {
                    to.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
                }
            }
        }
        if activation != Activation::Identity {
            activation.apply(Isa::best(), y);
        }
    }
}

fn positions(a: usize, b: usize, c: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a * b * c).map(move |i| (i / (b * c), i / c % b, i % c))
}

/// The plain twin: every input is spread over the outputs that it reaches.
pub fn reference(g: &TransposedGeometry, n: usize, weights: &[f32], bias: Option<&[f32]>, x: &[f32]) -> Vec<f32> {
    let ([h, w], [oh, ow], [kh, kw]) = (g.input, g.output, g.kernel);
    let (group_in, group_out) = (g.in_channels / g.groups, g.out_channels / g.groups);
    let mut y: Vec<f32> =
        (0..n * oh * ow * g.out_channels).map(|i| bias.map_or(0.0, |b| b[i % g.out_channels])).collect();
    for (image, row, column) in positions(n, h, w) {
        for (c, r, s) in positions(g.in_channels, kh, kw) {
            let p = (row * g.stride[0] + r * g.dilation[0]).wrapping_sub(g.pads[0]);
            let q = (column * g.stride[1] + s * g.dilation[1]).wrapping_sub(g.pads[1]);
            if p < oh && q < ow {
                for o in 0..group_out {
                    let weight = weights[((c * group_out + o) * kh + r) * kw + s];
                    let channel = c / group_in * group_out + o;
                    let x = x[((image * h + row) * w + column) * g.in_channels + c];
                    y[((image * oh + p) * ow + q) * g.out_channels + channel] += x * weight;
                }
            }
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_equal_spreading() {
        let g = TransposedGeometry {
            in_channels: 4,
            out_channels: 6,
            kernel: [3, 3],
            stride: [2, 2],
            dilation: [1, 1],
            pads: [1, 1],
            groups: 1,
            input: [4, 5],
            output: [8, 10],
        };
        let cases = [
            g,
            TransposedGeometry { kernel: [2, 2], pads: [0, 0], ..g },
            TransposedGeometry { kernel: [4, 1], groups: 2, output: [9, 11], ..g },
            TransposedGeometry { stride: [3, 1], dilation: [2, 2], output: [12, 9], ..g },
            TransposedGeometry { stride: [2, 4], dilation: [2, 3], output: [11, 20], pads: [0, 3], ..g },
            TransposedGeometry { kernel: [1, 2], stride: [3, 3], pads: [0, 0], output: [12, 15], ..g },
            TransposedGeometry { kernel: [5, 5], stride: [1, 1], pads: [4, 4], output: [1, 2], ..g },
            TransposedGeometry { kernel: [2, 2], stride: [1, 1], pads: [3, 3], output: [1, 2], ..g },
        ];
        let threads = Threads::new(2);
        for g in cases {
            let n = 2;
            let values = |len: usize, k: usize| -> Vec<f32> { (0..len).map(|i| ((i * k) % 17) as f32 - 8.0).collect() };
            let weights = values(g.in_channels * g.out_channels / g.groups * g.kernel[0] * g.kernel[1], 5);
            let (x, bias) = (values(n * g.input[0] * g.input[1] * 4, 7), values(6, 3));
            let packed = PackedConvTranspose::new(&g, &weights);
            let mut y = vec![f32::NAN; n * g.output[0] * g.output[1] * 6];
            let mut scratch = vec![0.0; packed.scratch_len(2, n)];
            packed.run(&threads, n, &x, Some(&bias), Activation::Identity, &mut y, &mut scratch);
            // Small integers: every order of summation is exact.
            assert_eq!(y, reference(&g, n, &weights, Some(&bias), &x), "{g:?}");
        }
    }
}
