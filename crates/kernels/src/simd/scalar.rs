//! The instruction set that every processor has: one number at a time.

use super::{Kernel, Simd};

/// One lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scalar;

impl Simd for Scalar {
    type F32 = f32;
    const LANES: usize = 1;
    const REGISTERS: usize = 8;

    #[inline(never)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn add(self, a: f32, b: f32) -> f32 {
        a + b
    }
    #[inline(always)]
    fn sub(self, a: f32, b: f32) -> f32 {
        a - b
    }
    #[inline(always)]
    fn mul(self, a: f32, b: f32) -> f32 {
        a * b
    }
    #[inline(always)]
    fn div(self, a: f32, b: f32) -> f32 {
        a / b
    }
    #[inline(always)]
    fn min(self, a: f32, b: f32) -> f32 {
        if a < b { a } else { b }
    }
    #[inline(always)]
    fn max(self, a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }
    #[inline(always)]
    fn fma(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
    #[inline(always)]
    fn select_lt(self, a: f32, b: f32, yes: f32, no: f32) -> f32 {
        if a < b { yes } else { no }
    }
    #[inline(always)]
    fn round(self, x: f32) -> f32 {
        x.round_ties_even()
    }
    #[inline(always)]
    fn mul_pow2(self, x: f32, n: f32) -> f32 {
        // Two factors, because 2^n alone may not be a normal number; the first product is exact.
        let n = n as i32;
        let normal = n.clamp(-126, 127);
        let power = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
        x * power(n - normal) * power(normal)
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> f32 {
        // SAFETY: readable by the caller's promise.
        unsafe { *from }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: f32) {
        // SAFETY: writable by the caller's promise.
        unsafe { *to = x }
    }
    #[inline(always)]
    unsafe fn load_head(self, _: *const f32, _: usize) -> f32 {
        0.0
    }
    #[inline(always)]
    unsafe fn store_head(self, _: *mut f32, _: usize, _: f32) {}
}
