//! The gradient of the weights: blocks of taps whose sums stay in registers.

use super::mask;
use crate::{
    ConvGeometry,
    simd::{Kernel, Simd},
};

/// The gradient of the weights from one image.
pub(super) struct WeightGradient<'a> {
    pub geometry: &'a ConvGeometry,
    pub size: [usize; 2],
    pub output: [usize; 2],
    pub x: &'a [f32],
    pub dy: &'a [f32],
    pub dw: &'a mut [f32],
}

impl Kernel for WeightGradient<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match (self.geometry.kernel[1], S::REGISTERS >= 32) {
            (5, true) => s.call(Blocks::<5, 5>(self)),
            (5, false) => s.call(Blocks::<2, 5>(self)),
            (7, true) => s.call(Blocks::<4, 7>(self)),
            (7, false) => s.call(Blocks::<2, 7>(self)),
            _ => s.call(Blocks::<3, 3>(self)),
        }
    }
}

/// Covers the kernel with blocks of `R` × `K` taps, whose sums stay in registers for a whole image.
struct Blocks<'a, const R: usize, const K: usize>(WeightGradient<'a>);

impl<const R: usize, const K: usize> Kernel for Blocks<'_, R, K> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let ConvGeometry { out_channels: channels, kernel, .. } = *self.0.geometry;
        let whole = channels - channels % S::LANES;
        for row in (0..kernel[0]).step_by(R) {
            for column in (0..kernel[1]).step_by(K) {
                // SAFETY: the taps lie within the kernel, the channels within the image.
                unsafe {
                    for c in (0..whole).step_by(S::LANES) {
                        self.block(s, [row, column], c, S::LANES);
                    }
                    if whole < channels {
                        self.block(s, [row, column], whole, channels - whole);
                    }
                }
            }
        }
    }
}

impl<const R: usize, const K: usize> Blocks<'_, R, K> {
    /// The block of taps from `tap`, for `lanes` channels.
    ///
    /// # Safety
    /// `tap` lies within the kernel; there are `lanes <= LANES` channels from `c`.
    #[inline(always)]
    unsafe fn block<S: Simd>(&mut self, s: S, tap: [usize; 2], c: usize, lanes: usize) {
        let WeightGradient { geometry: g, size: [h, w], output: [oh, ow], x, dy, .. } = self.0;
        let pitch = g.out_channels;
        let height = R.min(g.kernel[0] - tap[0]);
        let width = K.min(g.kernel[1] - tap[1]);
        let [down, right] = [g.dilation[0] * w * pitch, g.dilation[1] * pitch];
        // Outputs at which all `K` columns of taps lie within the image.
        let left = (tap[1] * g.dilation[1]) as isize - g.pads[1] as isize;
        let reach = left + ((K - 1) * g.dilation[1]) as isize;
        let stride = g.stride[1] as isize;
        let up = |n: isize| (n + stride - 1).div_euclid(stride).clamp(0, ow as isize);
        let inside = if width == K { up(-left)..up(w as isize - reach) } else { 0..0 };
        let mut sums = [[s.splat(0.0); K]; R];
        for oy in 0..oh {
            let top = (oy * g.stride[0] + tap[0] * g.dilation[0]) as isize - g.pads[0] as isize;
            let rows = mask(height, top, g.dilation[0], h);
            for ox in 0..ow as isize {
                let ix = ox * stride + left;
                let x = x.as_ptr().wrapping_offset((top * w as isize + ix) * pitch as isize + c as isize);
                // SAFETY: the outputs lie within the image, as do the taps in the masks; the channels by the caller's promise.
                unsafe {
                    let dy = s.load_up_to(dy.as_ptr().add((oy * ow + ox as usize) * pitch + c), lanes);
                    if inside.contains(&ox) {
                        for (r, sums) in sums.iter_mut().enumerate() {
                            if rows & 1 << r != 0 {
                                for (k, sum) in sums.iter_mut().enumerate() {
                                    let x = x.wrapping_add(r * down + k * right);
                                    *sum = s.fma(dy, s.load_up_to(x, lanes), *sum);
                                }
                            }
                        }
                    } else {
                        let columns = mask(width, ix, g.dilation[1], w);
                        for (r, sums) in sums.iter_mut().enumerate() {
                            for (k, sum) in sums.iter_mut().enumerate() {
                                if rows & 1 << r != 0 && columns & 1 << k != 0 {
                                    let x = x.wrapping_add(r * down + k * right);
                                    *sum = s.fma(dy, s.load_up_to(x, lanes), *sum);
                                }
                            }
                        }
                    }
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (k, &sum) in sums.iter().enumerate() {
                if r < height && k < width {
                    let at = ((tap[0] + r) * g.kernel[1] + tap[1] + k) * pitch + c;
                    // SAFETY: the tap lies within the kernel, the channels by the caller's promise.
                    unsafe {
                        let to = self.0.dw.as_mut_ptr().add(at);
                        s.store_up_to(to, lanes, s.add(s.load_up_to(to, lanes), sum));
                    }
                }
            }
        }
    }
}
