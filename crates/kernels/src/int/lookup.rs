//! Functions of one quantized number as a table of its 256 values.
//!
//! What enters: the grids of input and output and a float function. What leaves: a table, and its application to a slice.
//! ONNX Runtime computes QLinearSigmoid, QLinearLeakyRelu and QLinearConcat this way: `table[q] = Q(f(DQ(q)))`.

use super::quantize::{GridParams, quantize_value};

/// The output byte of each input byte.
#[derive(Clone, Debug, PartialEq)]
pub struct Table(Box<[u8; 256]>);

impl Table {
    /// `table[q] = quantize(f(dequantize(q)))`.
    pub fn new(x: &GridParams, y: &GridParams, f: impl Fn(f32) -> f32) -> Self {
        let entry = |q: i32| quantize_value(f(x.scale * (q - x.zero) as f32), y) as u8;
        Table(Box::new(std::array::from_fn(|q| entry(q as i32))))
    }

    /// From one grid to another: `Q(DQ(x))`. The identity if both are the same, as in QLinearConcat.
    pub fn requantize(x: &GridParams, y: &GridParams) -> Self {
        if x == y { Table(Box::new(std::array::from_fn(|q| q as u8))) } else { Table::new(x, y, |v| v) }
    }

    /// LeakyRelu.
    pub fn leaky_relu(x: &GridParams, y: &GridParams, alpha: f32) -> Self {
        Table::new(x, y, |v| if v >= 0.0 { v } else { alpha * v })
    }

    /// Logistic sigmoid.
    pub fn sigmoid(x: &GridParams, y: &GridParams) -> Self {
        Table::new(x, y, sigmoid)
    }

    /// The table itself.
    pub fn values(&self) -> &[u8; 256] {
        &self.0
    }

    /// `y[i] = table[x[i]]`.
    pub fn run(&self, x: &[u8], y: &mut [u8]) {
        match super::Isa::best() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the feature was just detected.
            super::Isa::Avx512Vnni if std::is_x86_feature_detected!("avx512vbmi") => unsafe { self.run_vbmi(x, y) },
            _ => self.run_scalar(x, y),
        }
    }

    fn run_scalar(&self, x: &[u8], y: &mut [u8]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = self.0[usize::from(x)];
        }
    }

    /// Two permutations of 128 bytes each, chosen by the top bit: 64 bytes at a time.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    unsafe fn run_vbmi(&self, x: &[u8], y: &mut [u8]) {
        use std::arch::x86_64::*;
        let blocks = x.len().min(y.len()) / 64;
        // SAFETY: the table has 256 bytes; every block lies within both slices.
        unsafe {
            let part = |i: usize| _mm512_loadu_si512(self.0.as_ptr().add(64 * i).cast());
            let (t0, t1, t2, t3) = (part(0), part(1), part(2), part(3));
            for i in 0..blocks {
                let bytes = _mm512_loadu_si512(x.as_ptr().add(64 * i).cast());
                let low = _mm512_permutex2var_epi8(t0, bytes, t1);
                let high = _mm512_permutex2var_epi8(t2, bytes, t3);
                let result = _mm512_mask_blend_epi8(_mm512_movepi8_mask(bytes), low, high);
                _mm512_storeu_si512(y.as_mut_ptr().add(64 * i).cast(), result);
            }
        }
        self.run_scalar(&x[blocks * 64..], &mut y[blocks * 64..]);
    }
}

/// `1 / (1 + exp(-x))` by the rational approximation that ONNX Runtime uses, in its order of fused operations; within 1e-7 of the
/// exact value. Coefficients: the minimax quotient of `tanh(x / 2) / 2` on [-18, 18] (MLAS `logistic.cpp`).
pub fn sigmoid(x: f32) -> f32 {
    // As `minps` and `maxps`: NaN stays NaN.
    let x = if x < -18.0 { -18.0 } else { x };
    let x = if x > 18.0 { 18.0 } else { x };
    let square = x * x;
    let odd = [4.370_31e-11, 1.156_273_2e-7, 6.085_749e-5, 8.513_771e-3, 2.482_879_5e-1];
    let even = [6.102_473_7e-13, 5.761_021_4e-9, 6.291_068e-6, 1.701_988_2e-3, 1.168_176_5e-1, 9.931_519e-1];
    let horner = |coefficients: &[f32]| coefficients.iter().copied().reduce(|sum, c| sum.mul_add(square, c));
    let p = x * horner(&odd).expect("five coefficients");
    let q = horner(&even).expect("six coefficients");
    (p / q + 0.5).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_applied_to_every_byte_of_every_length() {
        let table = Table::leaky_relu(&GridParams::u8(0.1, 128), &GridParams::u8(0.07, 30), 0.1);
        for len in [0, 1, 63, 64, 65, 256, 1000] {
            let x: Vec<u8> = (0..len).map(|i| (i * 73 % 256) as u8).collect();
            let mut y = vec![0; len];
            table.run(&x, &mut y);
            assert!(x.iter().zip(&y).all(|(&x, &y)| y == table.values()[usize::from(x)]));
        }
    }

    #[test]
    fn equal_grids_need_no_change() {
        let grid = GridParams::u8(0.1, 7);
        assert!(Table::requantize(&grid, &grid).values().iter().enumerate().all(|(q, &y)| q == usize::from(y)));
        let finer = Table::requantize(&grid, &GridParams::u8(0.05, 0));
        assert_eq!(finer.values()[..12], [0, 0, 0, 0, 0, 0, 0, 0, 2, 4, 6, 8]);
    }

    #[test]
    fn sigmoid_is_close_to_the_exact_one() {
        for i in -4000..4000 {
            let x = i as f32 * 0.01;
            let exact = 1.0 / (1.0 + (-f64::from(x)).exp());
            assert!((f64::from(sigmoid(x)) - exact).abs() < 2e-7, "{x}");
        }
    }
}
