//! The float kernels written plainly, one loop per index: what the fast ones are tested against.

use super::conv::Epilogue;
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
