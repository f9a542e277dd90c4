//! Vectors of `f32` behind one trait, chosen at run time.
//!
//! A [`Kernel`] is written once over [`Simd`] and compiled once per instruction set; [`Isa::dispatch`] enters the copy that
//! the processor can run. Every lane does the same IEEE operation on every instruction set, fused multiply-add included, so
//! a kernel whose result does not depend on the number of lanes has the same bits everywhere.

#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

/// A vector instruction set. A value of a type that implements this trait proves that the processor has it, which is what
/// makes the arithmetic methods safe.
pub trait Simd: Copy {
    /// A vector of [`Simd::LANES`] numbers.
    type F32: Copy;
    /// Numbers in a vector.
    const LANES: usize;
    /// Vector registers.
    const REGISTERS: usize;

    /// Runs `kernel` with this instruction set, as a function of its own.
    fn call<K: Kernel>(self, kernel: K) -> K::Output;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F32;
    /// `a + b`
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a - b`
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b`
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a / b`
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a < b ? a : b`: the second operand if either is NaN.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a > b ? a : b`: the second operand if either is NaN.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// `a < b ? yes : no`
    fn select_lt(self, a: Self::F32, b: Self::F32, yes: Self::F32, no: Self::F32) -> Self::F32;
    /// The nearest integer, the even one of two.
    fn round(self, x: Self::F32) -> Self::F32;
    /// `x * 2^n`, rounded once, for integral `n` in -252 to 128.
    fn mul_pow2(self, x: Self::F32, n: Self::F32) -> Self::F32;

    /// Asks for a cache line that will be read. Any address is fine.
    #[inline(always)]
    fn prefetch(self, _: *const f32) {}
    /// Asks for a cache line that will be written. Any address is fine.
    #[inline(always)]
    fn prefetch_write(self, _: *mut f32) {}

    /// Reads a vector.
    ///
    /// # Safety
    /// `from` must be readable for `LANES` numbers.
    unsafe fn load(self, from: *const f32) -> Self::F32;
    /// Writes a vector.
    ///
    /// # Safety
    /// `to` must be writable for `LANES` numbers.
    unsafe fn store(self, to: *mut f32, x: Self::F32);
    /// Reads the first `n < LANES` lanes; the others are 0.
    ///
    /// # Safety
    /// `from` must be readable for `n` numbers.
    unsafe fn load_head(self, from: *const f32, n: usize) -> Self::F32;
    /// Writes the first `n < LANES` lanes.
    ///
    /// # Safety
    /// `to` must be writable for `n` numbers.
    unsafe fn store_head(self, to: *mut f32, n: usize, x: Self::F32);

    /// Reads the first `n <= LANES` lanes; the others are 0.
    ///
    /// # Safety
    /// `from` must be readable for `n` numbers.
    #[inline(always)]
    unsafe fn load_up_to(self, from: *const f32, n: usize) -> Self::F32 {
        // SAFETY: the caller's promise.
        unsafe { if n == Self::LANES { self.load(from) } else { self.load_head(from, n) } }
    }
    /// Writes the first `n <= LANES` lanes.
    ///
    /// # Safety
    /// `to` must be writable for `n` numbers.
    #[inline(always)]
    unsafe fn store_up_to(self, to: *mut f32, n: usize, x: Self::F32) {
        // SAFETY: the caller's promise.
        unsafe { if n == Self::LANES { self.store(to, x) } else { self.store_head(to, n, x) } }
    }
}

/// A computation over vectors of any instruction set.
pub trait Kernel {
    /// What it returns.
    type Output;
    /// Does it. Mark implementations and everything they call `#[inline(always)]`: only inlined code gets the instructions.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// The instruction sets that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    #[cfg(target_arch = "x86_64")]
    Avx512(x86::Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(x86::Avx2),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon),
    Scalar(scalar::Scalar),
}

impl Isa {
    /// What this processor can run, fastest first.
    pub fn available() -> impl Iterator<Item = Isa> {
        let kinds = [
            #[cfg(target_arch = "x86_64")]
            x86::Avx512::detect().map(Kind::Avx512),
            #[cfg(target_arch = "x86_64")]
            x86::Avx2::detect().map(Kind::Avx2),
            #[cfg(target_arch = "aarch64")]
            neon::Neon::detect().map(Kind::Neon),
            Some(Kind::Scalar(scalar::Scalar)),
        ];
        kinds.into_iter().flatten().map(Isa)
    }

    /// The fastest that this processor can run.
    pub fn best() -> Isa {
        Isa::available().next().unwrap_or(Isa(Kind::Scalar(scalar::Scalar)))
    }

    /// The fastest whose vectors hold no more than `n` numbers.
    pub fn at_most(n: usize) -> Isa {
        Isa::available().find(|isa| isa.lanes() <= n).unwrap_or(Isa(Kind::Scalar(scalar::Scalar)))
    }

    /// Numbers in a vector.
    pub fn lanes(self) -> usize {
        struct Lanes;
        impl Kernel for Lanes {
            type Output = usize;
            fn run<S: Simd>(self, _: S) -> usize {
                S::LANES
            }
        }
        self.dispatch(Lanes)
    }

    /// Vector registers.
    pub fn registers(self) -> usize {
        struct Registers;
        impl Kernel for Registers {
            type Output = usize;
            fn run<S: Simd>(self, _: S) -> usize {
                S::REGISTERS
            }
        }
        self.dispatch(Registers)
    }

    /// Runs `kernel` with this instruction set.
    #[inline]
    pub fn dispatch<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(simd) => simd.call(kernel),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(simd) => simd.call(kernel),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon(simd) => simd.call(kernel),
            Kind::Scalar(simd) => simd.call(kernel),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct EveryOperation<'a>(&'a [f32], &'a [f32], &'a mut Vec<u32>);

    impl Kernel for EveryOperation<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let EveryOperation(a, b, out) = self;
            for i in (0..a.len()).step_by(S::LANES) {
                let n = S::LANES.min(a.len() - i);
                let mut lanes = [0.0; 16];
                // SAFETY: `n` numbers are left in `a` and `b` from `i`; `lanes` holds 16, the most lanes of any set.
                unsafe {
                    let load = |x: &[f32]| if n == S::LANES { s.load(&x[i]) } else { s.load_head(&x[i], n) };
                    let (x, y) = (load(a), load(b));
                    let half = s.splat(0.5);
                    let results = [
                        s.add(x, y),
                        s.sub(x, y),
                        s.mul(x, y),
                        s.div(x, y),
                        s.min(x, y),
                        s.max(x, y),
                        s.fma(x, y, half),
                        s.select_lt(x, y, half, x),
                        s.round(s.mul(x, half)),
                        s.mul_pow2(s.splat(1.75), s.max(s.splat(-252.0), s.min(s.splat(128.0), y))),
                    ];
                    for (k, r) in results.into_iter().enumerate() {
                        if n == S::LANES {
                            s.store(&mut lanes[0], r)
                        } else {
                            s.store_head(&mut lanes[0], n, r)
                        }
                        for (j, &v) in lanes[..n].iter().enumerate() {
                            out[(i + j) * 10 + k] = v.to_bits();
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_bits_of_plain_arithmetic() {
        let mut a: Vec<f32> = (0..37).map(|i| (i as f32 - 18.0) * 1.7).collect();
        // Halves are ties.
        a[..4].copy_from_slice(&[1.0, 3.0, -5.0, f32::INFINITY]);
        let mut b: Vec<f32> = (0..37).map(|i| ((i * 7) % 37) as f32 * 11.0 - 250.0).collect();
        b[5] = f32::INFINITY;
        let plain: Vec<u32> = (0..37)
            .flat_map(|i| {
                let (x, y) = (a[i], b[i]);
                let pow2 = (1.75 * 2f64.powf(f64::from(y.clamp(-252.0, 128.0)))) as f32;
                let min = if x < y { x } else { y };
                let max = if x > y { x } else { y };
                let lt = if x < y { 0.5 } else { x };
                let round = (x * 0.5).round_ties_even();
                [x + y, x - y, x * y, x / y, min, max, x.mul_add(y, 0.5), lt, round, pow2].map(f32::to_bits)
            })
            .collect();
        for isa in Isa::available() {
            let mut out = vec![0; 37 * 10];
            isa.dispatch(EveryOperation(&a, &b, &mut out));
            assert_eq!(out, plain, "{isa:?}");
        }
    }
}
