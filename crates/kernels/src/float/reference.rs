//! The float kernels written plainly, one loop per index: what the fast ones are tested against.

use super::conv::Epilogue;
use super::pool::{PoolGeometry, Pooling};
use super::resize::ResizeAxis;
use crate::ConvGeometry;

/// Convolution of `x: [n, h, w, in_channels]` with OIHW weights; NHWC output.
///
/// # Panics
/// If the kernel does not fit or a slice is too short.
pub fn conv2d(g: &ConvGeometry, weights: &[f32], [n, h, w]: [usize; 3], x: &[f32], epilogue: &Epilogue) -> Vec<f32> {
    let [oh, ow] = g.output_size(h, w).expect("the kernel fits into the padded image");
    let mut y = Vec::with_capacity(n * oh * ow * g.out_channels);
    for (image, oy, ox) in positions(n, oh, ow) {
        for o in 0..g.out_channels {
            let group = o / g.group_out();
            let mut sum = epilogue.bias.map_or(0.0, |b| b[o]);
            for r in 0..g.kernel[0] {
                for s in 0..g.kernel[1] {
                    let iy = (oy * g.stride[0] + r * g.dilation[0]).wrapping_sub(g.pads[0]);
                    let ix = (ox * g.stride[1] + s * g.dilation[1]).wrapping_sub(g.pads[1]);
                    if iy >= h || ix >= w {
                        continue;
                    }
                    for c in 0..g.group_in() {
                        let value = x[((image * h + iy) * w + ix) * g.in_channels + group * g.group_in() + c];
                        let weight = weights[((o * g.group_in() + c) * g.kernel[0] + r) * g.kernel[1] + s];
                        sum = value.mul_add(weight, sum);
                    }
                }
            }
            y.push(sum + epilogue.residual.map_or(0.0, |r| r[y.len()]));
        }
    }
    epilogue.activation.apply(crate::simd::Isa::at_most(1), &mut y);
    y
}

/// Calls `visit(output position, input position, tap, group)` for every pair of numbers that a convolution of `n` images of
/// `h` × `w` multiplies, apart from channels; taps go by last first.
fn pairs(g: &ConvGeometry, [n, h, w]: [usize; 3], mut visit: impl FnMut(usize, usize, usize, usize)) {
    let [oh, ow] = g.output_size(h, w).expect("the kernel fits into the padded image");
    for tap in (0..g.kernel[0] * g.kernel[1]).rev() {
        let (r, s) = (tap / g.kernel[1], tap % g.kernel[1]);
        for (position, (image, oy, ox)) in positions(n, oh, ow).enumerate() {
            let iy = (oy * g.stride[0] + r * g.dilation[0]).wrapping_sub(g.pads[0]);
            let ix = (ox * g.stride[1] + s * g.dilation[1]).wrapping_sub(g.pads[1]);
            if iy < h && ix < w {
                (0..g.groups).for_each(|group| visit(position, (image * h + iy) * w + ix, tap, group));
            }
        }
    }
}

/// The gradient of a convolution with respect to its input, from OIHW weights and that of its output.
///
/// # Panics
/// If the kernel does not fit or a slice is too short.
pub fn conv2d_input_gradient(g: &ConvGeometry, weights: &[f32], shape: [usize; 3], dy: &[f32]) -> Vec<f32> {
    let (inputs, outputs, taps) = (g.group_in(), g.group_out(), g.kernel[0] * g.kernel[1]);
    let mut dx = vec![0.0f32; shape.iter().product::<usize>() * g.in_channels];
    pairs(g, shape, |position, pixel, tap, group| {
        for c in 0..inputs {
            let sum = &mut dx[pixel * g.in_channels + group * inputs + c];
            for o in group * outputs..(group + 1) * outputs {
                *sum = dy[position * g.out_channels + o].mul_add(weights[(o * inputs + c) * taps + tap], *sum);
            }
        }
    });
    dx
}

/// The gradient of a convolution with respect to its OIHW weights.
///
/// # Panics
/// If the kernel does not fit or a slice is too short.
pub fn conv2d_weight_gradient(g: &ConvGeometry, shape: [usize; 3], x: &[f32], dy: &[f32]) -> Vec<f64> {
    let (inputs, outputs, taps) = (g.group_in(), g.group_out(), g.kernel[0] * g.kernel[1]);
    let mut sums = vec![0.0; g.weight_len()];
    pairs(g, shape, |position, pixel, tap, group| {
        for o in group * outputs..(group + 1) * outputs {
            for c in 0..inputs {
                let value = f64::from(x[pixel * g.in_channels + group * inputs + c]);
                sums[(o * inputs + c) * taps + tap] += value * f64::from(dy[position * g.out_channels + o]);
            }
        }
    });
    sums
}

/// All `(image, row, column)` in order.
fn positions(n: usize, h: usize, w: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..n * h * w).map(move |i| (i / (h * w), i / w % h, i % w))
}

/// Pooling of `x: [n, h, w, c]` to `[n, out[0], out[1], c]`.
pub fn pool(pooling: Pooling, g: &PoolGeometry, [n, h, w, c]: [usize; 4], x: &[f32], out: [usize; 2]) -> Vec<f32> {
    let mut y = Vec::with_capacity(n * out[0] * out[1] * c);
    for (image, oy, ox) in positions(n, out[0], out[1]) {
        for channel in 0..c {
            let (mut max, mut sum, mut inside, mut padded) = (f32::NEG_INFINITY, 0.0, 0, 0);
            for r in 0..g.kernel[0] {
                for s in 0..g.kernel[1] {
                    let (py, px) = (oy * g.stride[0] + r * g.dilation[0], ox * g.stride[1] + s * g.dilation[1]);
                    if py < g.pads[0] + h + g.pads[2] && px < g.pads[1] + w + g.pads[3] {
                        padded += 1;
                    }
                    let (iy, ix) = (py.wrapping_sub(g.pads[0]), px.wrapping_sub(g.pads[1]));
                    if iy < h && ix < w {
                        let value = x[((image * h + iy) * w + ix) * c + channel];
                        inside += 1;
                        sum += value;
                        max = max.max(value);
                    }
                }
            }
            y.push(match pooling {
                Pooling::Max => max,
                Pooling::Average => sum / inside.max(1) as f32,
                Pooling::AverageWithPads => sum / padded.max(1) as f32,
            });
        }
    }
    y
}

/// Resizing of `x: [n, h, w, c]` by tables.
pub fn resize([n, h, w, c]: [usize; 4], x: &[f32], rows: &ResizeAxis, columns: &ResizeAxis) -> Vec<f32> {
    let mut y = Vec::with_capacity(n * rows.lo.len() * columns.lo.len() * c);
    for (image, oy, ox) in positions(n, rows.lo.len(), columns.lo.len()) {
        let (u, v) = (rows.weight[oy], columns.weight[ox]);
        for channel in 0..c {
            let at = |iy: usize, ix: usize| x[((image * h + iy) * w + ix) * c + channel];
            let corners = [(rows.lo[oy], 1.0 - u), (rows.hi[oy], u)]
                .map(|(iy, u)| [(columns.lo[ox], 1.0 - v), (columns.hi[ox], v)].map(|(ix, v)| v * u * at(iy, ix)));
            y.push(corners[0][0] + corners[0][1] + corners[1][0] + corners[1][1]);
        }
    }
    y
}

/// Shapes and numbers for the tests of several kernels.
#[cfg(test)]
pub(super) mod cases {
    use crate::ConvGeometry;

    /// Numbers between -1 and 1 that repeat after a long while.
    pub fn numbers(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        std::iter::repeat_with(next).take(len).collect()
    }

    pub fn square(k: usize, stride: usize, pad: usize, channels: [usize; 2]) -> ConvGeometry {
        ConvGeometry {
            kernel: [k, k],
            stride: [stride; 2],
            pads: [pad; 4],
            ..ConvGeometry::pointwise(channels[0], channels[1])
        }
    }

    /// Convolutions of every kind with shapes of images.
    pub fn convolutions() -> Vec<(ConvGeometry, [usize; 3])> {
        let mut cases = Vec::new();
        for channels in [[1, 1], [3, 16], [5, 33], [16, 17], [17, 5], [33, 64], [64, 3], [16, 48], [48, 32]] {
            cases.push((square(1, 1, 0, channels), [2, 5, 21]));
            cases.push((square(3, 1, 1, channels), [2, 5, 7]));
            cases.push((square(3, 2, 1, channels), [1, 6, 9]));
        }
        let channels = [6, 18];
        for k in [1, 3, 5, 7] {
            for stride in [1, 2, 3] {
                cases.push((square(k, stride, k / 2, channels), [2, 9, 12]));
                cases.push((ConvGeometry { pads: [0, 2, 1, 3], ..square(k, stride, 0, channels) }, [1, 8, 7]));
            }
        }
        let odd = ConvGeometry {
            kernel: [3, 2],
            stride: [2, 1],
            dilation: [1, 3],
            pads: [0, 2, 3, 1],
            ..ConvGeometry::pointwise(6, 9)
        };
        cases.push((odd, [2, 9, 10]));
        cases.push((ConvGeometry { groups: 3, ..odd }, [2, 9, 10]));
        cases.push((ConvGeometry { stride: [2, 3], dilation: [2, 2], pads: [4; 4], ..odd }, [1, 11, 10]));
        cases.push((ConvGeometry { stride: [3, 2], dilation: [2, 4], pads: [1; 4], ..odd }, [1, 11, 10]));
        cases.push((ConvGeometry { groups: 2, ..square(3, 1, 1, [40, 80]) }, [1, 7, 7]));
        cases.push((ConvGeometry { groups: 4, ..square(3, 2, 1, [4, 8]) }, [1, 7, 7]));
        cases.push((ConvGeometry { groups: 2, ..square(1, 1, 0, [8, 6]) }, [1, 7, 7]));
        for stride in [1, 2] {
            cases.push((ConvGeometry { groups: 20, ..square(3, stride, 1, [20, 20]) }, [2, 9, 8]));
        }
        cases.push((square(1, 1, 0, [24, 40]), [1, 40, 41]));
        cases.push((square(3, 1, 1, [20, 24]), [1, 40, 33]));
        cases
    }
}
