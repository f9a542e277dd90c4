//! Transposed convolution: the products of every pixel with every tap, then for each output the sum of those that reach it.
//!
//! What enters: NHWC images and IOHW weights. What leaves: NHWC images. Equal to [`reference()`] up to the order of the sums.

use crate::float::{Activation, Epilogue, PackedConv};
use crate::simd::Isa;
use crate::{ConvGeometry, Threads, chunks::for_each_chunk};

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

/// A transposed convolution with its weights laid out for the kernels that run it.
#[derive(Debug)]
pub struct PackedConvTranspose {
    geometry: TransposedGeometry,
    /// Makes every tap's product with every input pixel: channels `[group, tap, output channel of the group]`.
    products: PackedConv,
}

impl TransposedGeometry {
    /// The input that tap `k` takes to output `p`, along one axis.
    fn source(&self, axis: usize, p: usize, k: usize) -> Option<usize> {
        let reach = (p + self.pads[axis]).checked_sub(k * self.dilation[axis])?;
        let input = reach / self.stride[axis];
        (reach % self.stride[axis] == 0 && input < self.input[axis]).then_some(input)
    }

    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }
}

impl PackedConvTranspose {
    /// Packs IOHW weights for this processor.
    ///
    /// # Panics
    /// If the weights do not have the geometry's length.
    pub fn new(geometry: &TransposedGeometry, weights: &[f32]) -> Self {
        let g = *geometry;
        let (group_in, group_out, taps) = (g.in_channels / g.groups, g.out_channels / g.groups, g.taps());
        assert_eq!(weights.len(), g.in_channels * group_out * taps, "weights have the geometry's length");
        let mut ordered = Vec::with_capacity(weights.len());
        for (group, tap, o) in positions(g.groups, taps, group_out) {
            let channels = group * group_in..(group + 1) * group_in;
            ordered.extend(channels.map(|c| weights[(c * group_out + o) * taps + tap]));
        }
        let pixelwise = ConvGeometry {
            in_channels: g.in_channels,
            out_channels: g.out_channels * taps,
            kernel: [1, 1],
            stride: [1, 1],
            dilation: [1, 1],
            pads: [0; 4],
            groups: g.groups,
        };
        PackedConvTranspose { geometry: g, products: PackedConv::new(&pixelwise, &ordered) }
    }

    /// How many numbers of the products of one image there are.
    fn products_len(&self) -> usize {
        let [h, w] = self.geometry.input;
        h * w * self.geometry.taps() * self.geometry.out_channels
    }

    /// How many numbers of scratch [`PackedConvTranspose::run`] needs on `threads` threads.
    pub fn scratch_len(&self, threads: usize) -> usize {
        let [h, w] = self.geometry.input;
        self.products_len() + self.products.scratch_len(threads, 1, h, w)
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
        let (taps, group_out) = (g.taps(), channels / g.groups);
        assert_eq!(x.len(), n * h * w * g.in_channels, "the input has the geometry's shape");
        assert_eq!(y.len(), n * oh * ow * channels, "the output has the geometry's shape");
        if x.is_empty() || y.is_empty() {
            return y.fill(0.0);
        }
        let isa = Isa::best();
        let (products, rest) = scratch.split_at_mut(self.products_len());
        for (x, y) in x.chunks_exact(h * w * g.in_channels).zip(y.chunks_exact_mut(oh * ow * channels)) {
            let epilogue = Epilogue { bias: None, residual: None, activation: Activation::Identity };
            self.products.run(threads, [1, h, w], x, &epilogue, products, rest);
            let products = &*products;
            for_each_chunk(threads, y, ow * channels, taps, |first, lines| {
                for (pixel, to) in (first / channels..).zip(lines.chunks_exact_mut(channels)) {
                    to.fill(0.0);
                    // Tap by tap, then the bias: the order of ONNX Runtime's sums.
                    for tap in 0..taps {
                        let i = g.source(0, pixel / ow, tap / g.kernel[1]);
                        let j = g.source(1, pixel % ow, tap % g.kernel[1]);
                        let (Some(i), Some(j)) = (i, j) else { continue };
                        let from = &products[(i * w + j) * taps * channels..][..taps * channels];
                        for (group, to) in to.chunks_exact_mut(group_out).enumerate() {
                            let from = &from[(group * taps + tap) * group_out..][..group_out];
                            to.iter_mut().zip(from).for_each(|(y, product)| *y += product);
                        }
                    }
                    if let Some(bias) = bias {
                        to.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
                    }
                    activation.apply(isa, to);
                }
            });
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
    fn gathering_equals_spreading() {
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
            let mut scratch = vec![0.0; packed.scratch_len(2)];
            packed.run(&threads, n, &x, Some(&bias), Activation::Identity, &mut y, &mut scratch);
            // Small integers: every order of summation is exact.
            assert_eq!(y, reference(&g, n, &weights, Some(&bias), &x), "{g:?}");
        }
    }
}
