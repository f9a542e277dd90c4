//! Sums and products of two quantized tensors.
//!
//! What enters: two `u8` slices of equal length (or one and a single number) with their grids. What leaves: `u8` on the output
//! grid, all 256 integers of it. The order of the f32 operations is ONNX Runtime's (x64, AVX2), so that every element is equal.
//!
//! ONNX Runtime always puts the operand that is broadcast last: where its first operand is a single number per run, call with
//! the operands (and their grids) exchanged.

use super::isa::multiversion;
use super::quantize::round_clamped;

/// Where a tensor's integers lie: `real = (q - zero) * scale`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// Distance between neighbouring integers.
    pub scale: f32,
    /// The integer that stands for 0.0.
    pub zero: u8,
}

/// Rounds half to even and cuts to `0..=255`. What conversion to i32 cannot hold becomes 0, as in x86 arithmetic.
#[inline(always)]
fn to_u8(v: f32) -> u8 {
    round_clamped(if v < 2_147_483_648.0 { v } else { 0.0 }, [0.0, 255.0]) as u8
}

/// Constants of QLinearAdd: `y = a * ratio_a + b * ratio_b + fixed`.
#[derive(Clone, Copy, Debug)]
pub struct QAdd {
    ratio_a: f32,
    ratio_b: f32,
    fixed: f32,
}

impl QAdd {
    /// For operands on grids `a` and `b` and a sum on grid `y`.
    pub fn new(a: Affine, b: Affine, y: Affine) -> Self {
        let (ratio_a, ratio_b) = (a.scale / y.scale, b.scale / y.scale);
        let fixed = f32::from(y.zero) - ratio_a.mul_add(f32::from(a.zero), ratio_b * f32::from(b.zero));
        QAdd { ratio_a, ratio_b, fixed }
    }

    /// The sum of one pair: two fused multiply-adds, `b` first.
    #[inline(always)]
    fn value(&self, a: u8, b: u8) -> u8 {
        to_u8(f32::from(a).mul_add(self.ratio_a, f32::from(b).mul_add(self.ratio_b, self.fixed)))
    }

    /// `y[i] = a[i] + b[i]`.
    pub fn run(&self, a: &[u8], b: &[u8], y: &mut [u8]) {
        add(self, a, b, y);
    }

    /// `y[i] = a[i] + b`.
    pub fn run_scalar(&self, a: &[u8], b: u8, y: &mut [u8]) {
        add_scalar(self, a, b, y);
    }
}

multiversion! {
    fn add(op: &QAdd, a: &[u8], b: &[u8], y: &mut [u8]) {
        let op = *op;
        for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
            *y = op.value(a, b);
        }
    }
}

multiversion! {
    fn add_scalar(op: &QAdd, a: &[u8], b: u8, y: &mut [u8]) {
        let op = *op;
        for (y, &a) in y.iter_mut().zip(a) {
            *y = op.value(a, b);
        }
    }
}

/// Constants of QLinearMul: `y = (a - zero_a) * (b - zero_b) * ratio + zero`.
#[derive(Clone, Copy, Debug)]
pub struct QMul {
    zero_a: u8,
    zero_b: u8,
    ratio: f32,
    zero: f32,
}

impl QMul {
    /// For operands on grids `a` and `b` and a product on grid `y`.
    pub fn new(a: Affine, b: Affine, y: Affine) -> Self {
        QMul { zero_a: a.zero, zero_b: b.zero, ratio: a.scale * b.scale / y.scale, zero: f32::from(y.zero) }
    }

    /// The product of one pair: exact in integers, then a multiplication and an addition, not fused.
    #[inline(always)]
    fn value(&self, a: u8, b: u8) -> u8 {
        let product = (i32::from(a) - i32::from(self.zero_a)) * (i32::from(b) - i32::from(self.zero_b));
        to_u8(product as f32 * self.ratio + self.zero)
    }

    /// `y[i] = a[i] * b[i]`.
    pub fn run(&self, a: &[u8], b: &[u8], y: &mut [u8]) {
        mul(self, a, b, y);
    }

    /// `y[i] = a[i] * b`.
    pub fn run_scalar(&self, a: &[u8], b: u8, y: &mut [u8]) {
        mul_scalar(self, a, b, y);
    }
}

multiversion! {
    fn mul(op: &QMul, a: &[u8], b: &[u8], y: &mut [u8]) {
        let op = *op;
        for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
            *y = op.value(a, b);
        }
    }
}

multiversion! {
    fn mul_scalar(op: &QMul, a: &[u8], b: u8, y: &mut [u8]) {
        let op = *op;
        for (y, &a) in y.iter_mut().zip(a) {
            *y = op.value(a, b);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_gives_what_single_elements_give() {
        let affine = |scale, zero| Affine { scale, zero };
        let add = QAdd::new(affine(0.1, 128), affine(0.05, 3), affine(0.1, 100));
        let mul = QMul::new(affine(0.1, 128), affine(0.05, 3), affine(0.2, 100));
        for len in 0..140 {
            let a: Vec<u8> = (0..len).map(|i| (i * 73 % 256) as u8).collect();
            let b: Vec<u8> = (0..len).map(|i| (i * 151 % 256) as u8).collect();
            let mut y = vec![0; len];
            let pairs = || a.iter().zip(&b);
            add.run(&a, &b, &mut y);
            assert!(pairs().zip(&y).all(|((&a, &b), &y)| y == add.value(a, b)));
            mul.run(&a, &b, &mut y);
            assert!(pairs().zip(&y).all(|((&a, &b), &y)| y == mul.value(a, b)));
            add.run_scalar(&a, 77, &mut y);
            assert!(a.iter().zip(&y).all(|(&a, &y)| y == add.value(a, 77)));
            mul.run_scalar(&a, 77, &mut y);
            assert!(a.iter().zip(&y).all(|(&a, &y)| y == mul.value(a, 77)));
        }
    }

    #[test]
    fn results_are_within_half_a_step_of_the_exact_ones() {
        let [a, b, y] = [(0.1, 128), (0.05, 3), (0.1, 100)].map(|(scale, zero)| Affine { scale, zero });
        let real = |q: u8, g: Affine| f64::from(g.scale) * (f64::from(q) - f64::from(g.zero));
        let (add, mul) = (QAdd::new(a, b, y), QMul::new(a, b, y));
        for (p, q) in (0..=255).flat_map(|p| (0..=255).map(move |q| (p, q))) {
            let (low, high) = (real(0, y), real(255, y));
            let sum = (real(p, a) + real(q, b)).clamp(low, high);
            let product = (real(p, a) * real(q, b)).clamp(low, high);
            assert!((real(add.value(p, q), y) - sum).abs() < 0.0501, "{p} + {q}");
            assert!((real(mul.value(p, q), y) - product).abs() < 0.0501, "{p} * {q}");
        }
    }
}
