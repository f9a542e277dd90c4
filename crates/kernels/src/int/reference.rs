//! Plain twins of the integer convolution: slow, obviously right, and general (weights of any 8-bit type and zero point).
//!
//! What enters: NHWC `u8` images and OIHW integer weights. What leaves: sums in i32, or requantized `u8`.

use crate::geometry::ConvGeometry;

/// Convolution sums `acc[n, oh, ow, o] = bias[o] + Σ (x - x_zero) * (w - w_zero[o])`, in wrapping i32 like the hardware.
///
/// `weights` are OIHW and hold i8 or u8 values; `w_zero` has one entry per output channel, or one for all. Positions outside
/// the image read `x_zero`. `acc` is NHWC.
#[expect(clippy::too_many_arguments, reason = "the operands of one formula")]
pub fn conv_sums(
    g: &ConvGeometry,
    [n, h, w]: [usize; 3],
    x: &[u8],
    x_zero: u8,
    weights: &[i32],
    w_zero: &[i32],
    bias: &[i32],
    acc: &mut [i32],
) {
    let Some([oh, ow]) = g.output_size(h, w) else { return };
    let [kh, kw] = g.kernel;
    let (group_in, group_out) = (g.group_in(), g.group_out());
    let mut acc = acc.iter_mut();
    for (image, row, col) in positions(n, oh, ow) {
        for o in 0..g.out_channels {
            let first_channel = o / group_out * group_in;
            let mut sum = bias[o];
            for (c, r, s) in positions(group_in, kh, kw) {
                let y = (row * g.stride[0] + r * g.dilation[0]).wrapping_sub(g.pads[0]);
                let z = (col * g.stride[1] + s * g.dilation[1]).wrapping_sub(g.pads[1]);
                if y < h && z < w {
                    let x = x[((image * h + y) * w + z) * g.in_channels + first_channel + c];
                    let weight = weights[((o * group_in + c) * kh + r) * kw + s] - w_zero[o.min(w_zero.len() - 1)];
                    sum = sum.wrapping_add((i32::from(x) - i32::from(x_zero)) * weight);
                }
            }
            *acc.next().expect("the caller sized `acc` for every output") = sum;
        }
    }
}

fn positions(a: usize, b: usize, c: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a * b * c).map(move |i| (i / (b * c), i / c % b, i % c))
}

/// `y[i] = clamp(round_ties_even(f32(acc[i]) * multiplier[channel]) + zero, qmin, qmax)`; channels are innermost.
pub fn requantize(acc: &[i32], multipliers: &[f32], zero: i32, qmin: i32, qmax: i32, y: &mut [u8]) {
    for (i, (y, &acc)) in y.iter_mut().zip(acc).enumerate() {
        let v = (acc as f32 * multipliers[i % multipliers.len()]).round_ties_even();
        *y = (f64::from(v) + f64::from(zero)).clamp(f64::from(qmin), f64::from(qmax)) as u8;
    }
}
