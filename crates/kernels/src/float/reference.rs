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
