//! Elementwise functions of one number, alone or at the end of a convolution.
//!
//! What enters: numbers. What leaves: as many numbers. The rational approximations are those of ONNX Runtime's CPU kernels,
//! operation by operation.

#![expect(clippy::excessive_precision, reason = "coefficients are written as in their source")]

use crate::simd::{Isa, Kernel, Simd};

/// An elementwise function.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `x`
    Identity,
    /// `min(max(x, min), max)`: Relu is `min: 0, max: inf`. NaN stays NaN.
    Clamp {
        /// Smallest result.
        min: f32,
        /// Largest result.
        max: f32,
    },
    /// `x < 0 ? alpha * x : x`
    LeakyRelu {
        /// Slope of the negative part.
        alpha: f32,
    },
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// `x * sigmoid(x)`
    Silu,
    /// `x * min(max(x / 6 + 1 / 2, 0), 1)`
    HardSwish,
    /// `min(max(alpha * x + beta, 0), 1)`
    HardSigmoid {
        /// Slope.
        alpha: f32,
        /// Value at 0.
        beta: f32,
    },
    /// Hyperbolic tangent.
    Tanh,
    /// `e^x`
    Exp,
}

impl Activation {
    /// The function is `min(max(x, low), high)` with these bounds.
    pub(super) fn bounds(self) -> Option<[f32; 2]> {
        match self {
            Activation::Identity => Some([f32::NEG_INFINITY, f32::INFINITY]),
            Activation::Clamp { min, max } => Some([min, max]),
            _ => None,
        }
    }

    /// Replaces every number by the function's value.
    pub fn apply(self, isa: Isa, x: &mut [f32]) {
        let len = x.len();
        let x = x.as_mut_ptr();
        // SAFETY: one valid slice is both source and target.
        unsafe { self.map_raw(isa, len, x, x) }
    }

    /// Writes the function's values of `x` to `y`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn map(self, isa: Isa, x: &[f32], y: &mut [f32]) {
        assert_eq!(x.len(), y.len(), "a map keeps the length");
        // SAFETY: both slices are valid for `x.len()` numbers.
        unsafe { self.map_raw(isa, x.len(), x.as_ptr(), y.as_mut_ptr()) }
    }

    /// # Safety
    /// `x` is readable and `y` writable for `len` numbers; they are the same place or do not overlap.
    unsafe fn map_raw(self, isa: Isa, len: usize, x: *const f32, y: *mut f32) {
        match self {
            Activation::Identity if x == y.cast_const() => {}
            // SAFETY: different places do not overlap, by the caller's promise.
            Activation::Identity => unsafe { std::ptr::copy_nonoverlapping(x, y, len) },
            _ => isa.dispatch(Map { function: self, len, x, y }),
        }
    }
}

struct Map {
    function: Activation,
    len: usize,
    x: *const f32,
    y: *mut f32,
}

impl Kernel for Map {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.function {
            Activation::Identity => {}
            Activation::Clamp { min, max } => self.each(s, Clamp { min, max }),
            Activation::LeakyRelu { alpha } => self.each(s, LeakyRelu { alpha }),
            Activation::Sigmoid => self.each(s, Sigmoid),
            Activation::Silu => self.each(s, Silu),
            Activation::HardSwish => self.each(s, HardSwish),
            Activation::HardSigmoid { alpha, beta } => self.each(s, HardSigmoid { alpha, beta }),
            Activation::Tanh => self.each(s, Tanh),
            Activation::Exp => self.each(s, Exp),
        }
    }
}

impl Map {
    #[inline(always)]
    fn each<S: Simd, F: Function>(&self, s: S, f: F) {
        let whole = self.len - self.len % S::LANES;
        let rest = self.len - whole;
        // SAFETY: all reads and writes are within `len` numbers, which `map_raw` was promised.
        unsafe {
            for i in (0..whole).step_by(S::LANES) {
                s.store(self.y.add(i), f.at(s, s.load(self.x.add(i))));
            }
            if rest > 0 {
                s.store_head(self.y.add(whole), rest, f.at(s, s.load_head(self.x.add(whole), rest)));
            }
        }
    }
}

/// A function on vectors. Implementations are `#[inline(always)]`.
pub(super) trait Function: Copy {
    fn at<S: Simd>(self, s: S, x: S::F32) -> S::F32;
}

#[derive(Clone, Copy)]
pub(super) struct Clamp {
    pub min: f32,
    pub max: f32,
}

impl Clamp {
    /// Changes nothing.
    pub const NONE: Clamp = Clamp { min: f32::NEG_INFINITY, max: f32::INFINITY };
}

impl Function for Clamp {
    #[inline(always)]
    fn at<S: Simd>(self, s: S, x: S::F32) -> S::F32 {
        s.min(s.splat(self.max), s.max(s.splat(self.min), x))
    }
}

#[derive(Clone, Copy)]
struct LeakyRelu {
    alpha: f32,
}

impl Function for LeakyRelu {
    #[inline(always)]
    fn at<S: Simd>(self, s: S, x: S::F32) -> S::F32 {
        s.select_lt(x, s.splat(0.0), s.mul(x, s.splat(self.alpha)), x)
    }
}

/// Coefficients of `x * p(x²) / q(x²)`, highest power first: the approximation of `sigmoid(x) - 1/2` on -18 to 18 from Eigen
/// that ONNX Runtime uses (`core/mlas/lib/logistic.cpp`).
const SIGMOID_P: [f32; 5] =
    [4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05, 8.51377133304701e-03, 2.48287947061529e-01];
const SIGMOID_Q: [f32; 6] = [
    6.10247389755681e-13,
    5.76102136993427e-09,
    6.29106785017040e-06,
    1.70198817374094e-03,
    1.16817656904453e-01,
    9.93151921023180e-01,
];

/// `p[0] * x^(n-1) + ... + p[n-1]` by fused Horner steps.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, p: [f32; N], x: S::F32) -> S::F32 {
    let mut sum = s.splat(p[0]);
    for &c in &p[1..] {
        sum = s.fma(sum, x, s.splat(c));
    }
    sum
}

#[derive(Clone, Copy)]
struct Sigmoid;

impl Function for Sigmoid {
    #[inline(always)]
    fn at<S: Simd>(self, s: S, x: S::F32) -> S::F32 {
        let x = s.min(s.splat(18.0), s.max(s.splat(-18.0), x));
        let square = s.mul(x, x);
        let p = s.mul(x, polynomial(s, SIGMOID_P, square));
        let q = polynomial(s, SIGMOID_Q, square);
        s.max(s.splat(0.0), s.add(s.div(p, q), s.splat(0.5)))
    }
}

#[derive(Clone, Copy)]
struct Silu;

impl Function for Silu {
    #[inline(always)]
    fn at<S: Simd>(self, s: S, x: S::F32) -> S::F32 {
        s.mul(x, Sigmoid.at(s, x))
    }
}

#[derive(Clone, Copy)]
struct HardSigmoid {
    alpha: f32,
    beta: f32,
}

impl Function for HardSigmoid {
    #[inline(always)]
    fn at<S: Simd>(self, s: S, x: S::F32) -> S::F32 {
        let line = s.add(s.mul(s.splat(self.alpha), x), s.splat(self.beta));
        s.max(s.splat(0.0), s.min(s.splat(1.0), line))
    }
}

#[derive(Clone, Copy)]
struct HardSwish;

impl Function for HardSwish {
    #[inline(always)]
    fn at<S: Simd>(self, s: S, x: S::F32) -> S::F32 {
        s.mul(x, HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 }.at(s, x))
    }
}

/// Coefficients of `x * p(x²) / q(x²)` for the tangent on -9 to 9, highest power first (`core/mlas/lib/tanh.cpp`).
const TANH_P: [f32; 7] = [
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
];
const TANH_Q: [f32; 4] = [1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03];

#[derive(Clone, Copy)]
struct Tanh;

impl Function for Tanh {
    #[inline(always)]
    fn at<S: Simd>(self, s: S, x: S::F32) -> S::F32 {
        let x = s.min(s.splat(9.0), s.max(s.splat(-9.0), x));
        let square = s.mul(x, x);
        let p = s.mul(x, polynomial(s, TANH_P, square));
        s.div(p, polynomial(s, TANH_Q, square))
    }
}

/// Coefficients of `e^r` for `|r| <= ln(2) / 2`, highest power first (`core/mlas/lib/compute.cpp`).
const EXP: [f32; 7] = [
    f32::from_bits(0x3AB4_A000),
    f32::from_bits(0x3C09_2F6E),
    f32::from_bits(0x3D2A_ADAD),
    f32::from_bits(0x3E2A_AA28),
    f32::from_bits(0x3EFF_FFFB),
    1.0,
    1.0,
];
/// Adding and subtracting 1.5 · 2^23 rounds to an integer.
const ROUNDING_BIAS: f32 = 12_582_912.0;

#[derive(Clone, Copy)]
pub(super) struct Exp;

impl Function for Exp {
    #[inline(always)]
    fn at<S: Simd>(self, s: S, x: S::F32) -> S::F32 {
        let x = s.max(s.splat(-103.972_084), x);
        let bias = s.splat(ROUNDING_BIAS);
        // The upper clamp keeps the exponent in range and still overflows to infinity.
        let n = s.sub(s.fma(s.splat(std::f32::consts::LOG2_E), s.min(s.splat(88.8), x), bias), bias);
        let r = s.fma(n, s.splat(-6.931_457_5e-1), x);
        let r = s.fma(n, s.splat(-1.428_606_8e-6), r);
        s.mul_pow2(polynomial(s, EXP, r), n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FUNCTIONS: [Activation; 7] = [
        Activation::Sigmoid,
        Activation::Tanh,
        Activation::Exp,
        Activation::HardSigmoid { alpha: 0.2, beta: 0.5 },
        Activation::HardSwish,
        Activation::LeakyRelu { alpha: 0.1 },
        Activation::Silu,
    ];

    /// Inputs and the outputs of ONNX Runtime for each function, made by `golden/activations.py`.
    fn golden() -> Vec<Vec<f32>> {
        let number = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let all: Vec<f32> = include_bytes!("golden/activations.bin").chunks_exact(4).map(number).collect();
        all.chunks_exact(all.len() / (FUNCTIONS.len() + 1)).map(<[f32]>::to_vec).collect()
    }

    #[test]
    fn functions_have_the_bits_of_onnx_runtime() {
        let golden = golden();
        assert_eq!(golden[0].len(), 256);
        for (function, expected) in FUNCTIONS.into_iter().zip(&golden[1..]) {
            for isa in Isa::available() {
                let mut y = vec![0.0; golden[0].len()];
                function.map(isa, &golden[0], &mut y);
                for (x, (y, expected)) in golden[0].iter().zip(y.iter().zip(expected)) {
                    let same = y.to_bits() == expected.to_bits() || y.is_nan() && expected.is_nan();
                    assert!(same, "{function:?} of {x:e} on {isa:?}: {y:e} instead of {expected:e}");
                }
            }
        }
    }

    #[test]
    fn functions_are_close_to_their_definitions() {
        let definitions: [fn(f64) -> f64; 3] = [|x| 1.0 / (1.0 + (-x).exp()), f64::tanh, |x| x.exp()];
        let x: Vec<f32> = (-800..=800).map(|i| i as f32 * 0.01).collect();
        for (function, definition) in FUNCTIONS.into_iter().zip(definitions) {
            let mut y = vec![0.0; x.len()];
            function.map(Isa::best(), &x, &mut y);
            for (&x, &y) in x.iter().zip(&y) {
                let exact = definition(f64::from(x));
                assert!((f64::from(y) - exact).abs() < 3e-7 * exact.abs().max(1.0), "{function:?} of {x}");
            }
        }
    }

    #[test]
    fn clamps_keep_nan() {
        for isa in Isa::available() {
            let mut x = [f32::NAN; 17];
            Activation::Clamp { min: 0.0, max: 6.0 }.apply(isa, &mut x);
            assert!(x.iter().all(|v| v.is_nan()));
        }
    }
}
