//! Fake quantization with a learned scale and offset (LSQ+), values and gradients.
//!
//! What enters: numbers, and the quantizer of all of them. What leaves: the numbers that their codes stand for; or the gradient
//! with respect to the numbers, and the sums that make up those of the scale and the offset. It does not know what the
//! quantizer belongs to: callers run it once per channel where each has its own, and scale the gradients.
//!
//! Source: Esser et al., *Learned Step Size Quantization* (ICLR 2020), equations 1-5; Bhalgat et al., *LSQ+* (CVPRW 2020), section 3.1.

use crate::simd::{Isa, Kernel, Simd};

/// `x` becomes `scale * code + offset` with `u = (x - offset) / scale` and `code = round(min(max(u, low), high))`, ties to even.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FakeQuant {
    /// Distance between neighbouring values, positive.
    pub scale: f32,
    /// The value of code 0.
    pub offset: f32,
    /// Smallest code, an integer.
    pub low: f32,
    /// Largest code, an integer.
    pub high: f32,
}

/// Gradients of one quantizer's own numbers, summed over what it quantized.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Gradients {
    /// `Σ dy * (round(u) - u)` where `low < u < high`, `Σ dy * min(max(u, low), high)` elsewhere.
    pub scale: f64,
    /// `Σ dy` where not `low < u < high`.
    pub offset: f64,
}

impl FakeQuant {
    /// Writes the quantized numbers. NaN stays NaN.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn forward(self, isa: Isa, x: &[f32], y: &mut [f32]) {
        assert_eq!(x.len(), y.len(), "as many results as numbers");
        isa.dispatch(Forward { quantizer: self, x, y });
    }

    /// Writes `dx = dy` where `low < u < high` and 0 elsewhere, or adds it if `add`, and returns the sums of `scale` and
    /// `offset`. These are in f32 over some hundred numbers and in f64 across; their last bits depend on the instruction set.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn backward(self, isa: Isa, x: &[f32], dy: &[f32], add: bool, dx: &mut [f32]) -> Gradients {
        assert_eq!(x.len(), dy.len(), "as many gradients as numbers");
        assert_eq!(x.len(), dx.len(), "as many results as numbers");
        isa.dispatch(Backward { quantizer: self, x, dy, add, dx })
    }

    /// `u`, and `u` within the codes' range.
    #[inline(always)]
    fn code<S: Simd>(self, s: S, x: S::F32) -> [S::F32; 2] {
        let u = s.div(s.sub(x, s.splat(self.offset)), s.splat(self.scale));
        [u, s.min(s.splat(self.high), s.max(s.splat(self.low), u))]
    }
}

struct Forward<'a> {
    quantizer: FakeQuant,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Forward<'_> {
    /// # Safety
    /// `n <= LANES` numbers follow `i`.
    #[inline(always)]
    unsafe fn vector<S: Simd>(&mut self, s: S, i: usize, n: usize) {
        let FakeQuant { scale, offset, .. } = self.quantizer;
        // SAFETY: the caller's promise; the slices have one length.
        unsafe {
            let [_, code] = self.quantizer.code(s, s.load_up_to(self.x.as_ptr().add(i), n));
            let y = s.add(s.mul(s.splat(scale), s.round(code)), s.splat(offset));
            s.store_up_to(self.y.as_mut_ptr().add(i), n, y);
        }
    }
}

impl Kernel for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let len = self.x.len();
        let whole = len - len % S::LANES;
        // SAFETY: the vectors lie within `len` numbers.
        unsafe {
            for i in (0..whole).step_by(S::LANES) {
                self.vector(s, i, S::LANES);
            }
            if whole < len {
                self.vector(s, whole, len - whole);
            }
        }
    }
}

/// Vectors side by side, each with its own sums, so that an addition need not wait for the one before.
const SUMS: usize = 4;
/// Numbers whose gradients are summed in f32.
const RUN: usize = 4096;
/// Most lanes of an instruction set.
const MOST_LANES: usize = 16;

struct Backward<'a> {
    quantizer: FakeQuant,
    x: &'a [f32],
    dy: &'a [f32],
    add: bool,
    dx: &'a mut [f32],
}

impl Backward<'_> {
    /// # Safety
    /// `n <= LANES` numbers follow `i`.
    #[inline(always)]
    unsafe fn vector<S: Simd>(&mut self, s: S, i: usize, n: usize, sums: &mut [S::F32; 2]) {
        let [low, high, zero] = [s.splat(self.quantizer.low), s.splat(self.quantizer.high), s.splat(0.0)];
        // SAFETY: the caller's promise; the slices have one length.
        unsafe {
            let dy = s.load_up_to(self.dy.as_ptr().add(i), n);
            let [u, code] = self.quantizer.code(s, s.load_up_to(self.x.as_ptr().add(i), n));
            let slope = s.select_lt(low, u, s.select_lt(u, high, s.sub(s.round(u), u), code), code);
            let inside = s.select_lt(low, u, s.select_lt(u, high, dy, zero), zero);
            *sums = [s.fma(dy, slope, sums[0]), s.add(sums[1], s.sub(dy, inside))];
            let to = self.dx.as_mut_ptr().add(i);
            let dx = if self.add { s.add(s.load_up_to(to, n), inside) } else { inside };
            s.store_up_to(to, n, dx);
        }
    }
}

impl Kernel for Backward<'_> {
    type Output = Gradients;
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> Gradients {
        let mut total = [0.0; 2];
        let len = self.x.len();
        let step = SUMS * S::LANES;
        for start in (0..len).step_by(RUN) {
            let end = len.min(start + RUN);
            let whole = end - (end - start) % step;
            let mut sums = [[s.splat(0.0); 2]; SUMS];
            // SAFETY: the vectors lie within `len` numbers; `lanes` holds a vector of any instruction set.
            unsafe {
                for first in (start..whole).step_by(step) {
                    for (k, sums) in sums.iter_mut().enumerate() {
                        self.vector(s, first + k * S::LANES, S::LANES, sums);
                    }
                }
                for i in (whole..end).step_by(S::LANES) {
                    self.vector(s, i, S::LANES.min(end - i), &mut sums[0]);
                }
                for sums in sums {
                    for (total, sum) in total.iter_mut().zip(sums) {
                        let mut lanes = [0.0; MOST_LANES];
                        s.store(lanes.as_mut_ptr(), sum);
                        *total += lanes.into_iter().map(f64::from).sum::<f64>();
                    }
                }
            }
        }
        Gradients { scale: total[0], offset: total[1] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUANTIZERS: [FakeQuant; 4] = [
        FakeQuant { scale: 0.25, offset: 0.0, low: 0.0, high: 15.0 },
        FakeQuant { scale: 0.3, offset: -0.17, low: 0.0, high: 3.0 },
        FakeQuant { scale: 0.0123, offset: 0.0, low: -128.0, high: 127.0 },
        FakeQuant { scale: 1.7, offset: 0.5, low: -1.0, high: 1.0 },
    ];

    /// Numbers around the range of a quantizer: ties, borders, far outside, random.
    fn numbers(q: FakeQuant, len: usize) -> Vec<f32> {
        let span = q.high - q.low;
        let at = |i: usize| match i % 4 {
            0 => q.low + (i / 4 % 64) as f32 * 0.5 - 2.0,
            1 => q.high + 2.0 - (i / 4 % 64) as f32 * 0.5,
            _ => q.low + span * ((i * 7919 % 1009) as f32 / 700.0 - 0.2),
        };
        (0..len).map(|i| if i % 97 == 96 { 1e30 } else { at(i) * q.scale + q.offset }).collect()
    }

    fn plain(q: FakeQuant, x: f32) -> f32 {
        q.scale * ((x - q.offset) / q.scale).clamp(q.low, q.high).round_ties_even() + q.offset
    }

    #[test]
    fn values_have_the_bits_of_the_formula() {
        for q in QUANTIZERS {
            for len in [0, 1, 15, 16, 17, 63, 65, 5000] {
                let x = numbers(q, len);
                for isa in Isa::available() {
                    let mut y = vec![f32::NAN; len];
                    q.forward(isa, &x, &mut y);
                    let wrong = (0..len).find(|&i| y[i] != plain(q, x[i]));
                    assert_eq!(wrong, None, "{q:?} {len} {isa:?}");
                }
            }
        }
    }

    #[test]
    fn gradients_equal_their_formulas() {
        for q in QUANTIZERS {
            for len in [0, 1, 15, 16, 17, 63, 65, 4095, 4097, 9001] {
                let x = numbers(q, len);
                let dy: Vec<f32> = (0..len).map(|i| ((i * 31 + 7) % 53) as f32 * 0.04 - 1.0).collect();
                let mut expected = Gradients::default();
                let mut dx = vec![0.0; len];
                for i in 0..len {
                    let (u, g) = ((x[i] - q.offset) / q.scale, f64::from(dy[i]));
                    if q.low < u && u < q.high {
                        dx[i] = dy[i];
                        expected.scale += g * f64::from(u.round_ties_even() - u);
                    } else {
                        expected.scale += g * f64::from(u.clamp(q.low, q.high));
                        expected.offset += g;
                    }
                }
                for isa in Isa::available() {
                    for add in [false, true] {
                        let before = if add { 0.5 } else { f32::NAN };
                        let mut found = vec![before; len];
                        let gradients = q.backward(isa, &x, &dy, add, &mut found);
                        let wrong = (0..len).find(|&i| found[i] != dx[i] + if add { 0.5 } else { 0.0 });
                        assert_eq!(wrong, None, "{q:?} {len} {isa:?}");
                        let close = |found: f64, expected: f64| {
                            (found - expected).abs() <= 1e-6 * len as f64 * f64::from(q.high)
                        };
                        assert!(close(gradients.scale, expected.scale), "{gradients:?} {expected:?}");
                        assert!(close(gradients.offset, expected.offset), "{gradients:?} {expected:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_borders_count_as_clipped() {
        let q = FakeQuant { scale: 0.5, offset: 0.0, low: -2.0, high: 1.0 };
        for isa in Isa::available() {
            let mut dx = [f32::NAN; 4];
            let gradients = q.backward(isa, &[-1.0, -0.95, 0.45, 0.5], &[1.0, 2.0, 4.0, 8.0], false, &mut dx);
            assert_eq!(dx, [0.0, 2.0, 4.0, 0.0]);
            assert_eq!(gradients.offset, 9.0);
            // -2 at the lower border, 1 at the upper one, and within them codes -2 and 1 from -1.9 and 0.9.
            assert!((gradients.scale - (-2.0 - 0.1 * 2.0 + 0.1 * 4.0 + 8.0)).abs() < 1e-6);
        }
    }

    #[test]
    fn infinity_is_clipped_and_nan_stays_nan() {
        let q = QUANTIZERS[1];
        let x = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN];
        for isa in Isa::available() {
            let mut y = [0.0; 5];
            q.forward(isa, &x, &mut y);
            assert!(y[0].is_nan());
            let [low, high] = [q.low, q.high].map(|code| q.scale * code + q.offset);
            assert_eq!(y[1..], [high, low, high, low]);
            let mut dx = [1.0; 5];
            let gradients = q.backward(isa, &x[1..], &[1.0; 4], false, &mut dx[1..]);
            assert_eq!((gradients, &dx[1..]), (Gradients { scale: 6.0, offset: 4.0 }, &[0.0; 4][..]));
            assert!(q.backward(isa, &x, &[1.0; 5], false, &mut dx).scale.is_nan());
        }
    }
}
