//! Softmax of quantized numbers by a table of exponentials.
//!
//! What enters: rows of `u8` and the input's scale. What leaves: rows of `u8`. Equal on every element to ONNX Runtime's
//! QLinearSoftmax, whose result is *not* `Q(softmax(DQ(x)))`: its output scale is rounded to `1 / floor(1 / scale)`.

/// Exponentials of the 256 inputs, shifted so that their sum over a row stays finite.
pub struct QSoftmax {
    exponentials: Box<[f32; 256]>,
    inverse_scale: f32,
    zero: u32,
    len: usize,
}

impl QSoftmax {
    /// For rows of `len` numbers `x_scale` apart, and an output on `(q - y_zero) * y_scale`.
    pub fn new(len: usize, x_scale: f32, y_scale: f32, y_zero: u8) -> Self {
        let x_scale = f64::from(x_scale);
        // Keeps Σ exp below f32::MAX with five units of reserve in the exponent.
        let shift = (f64::from((f32::MAX / len as f32).ln()) - 5.0).max(0.0) / x_scale;
        let entry = |q: usize| ((q as f64 - 255.0 + shift) * x_scale).exp() as f32;
        QSoftmax {
            exponentials: Box::new(std::array::from_fn(entry)),
            inverse_scale: (1.0 / y_scale).floor(),
            zero: u32::from(y_zero),
            len,
        }
    }

    /// Softmax of each row of `x`.
    pub fn run(&self, x: &[u8], y: &mut [u8]) {
        for (x, y) in x.chunks_exact(self.len).zip(y.chunks_exact_mut(self.len)) {
            // The largest number of a row takes the last entry.
            let lift = 255 - x.iter().copied().max().unwrap_or(255);
            let exponential = |x: u8| self.exponentials[usize::from(x + lift)];
            let sum: f32 = x.iter().fold(0.0, |sum, &x| sum + exponential(x));
            for (y, &x) in y.iter_mut().zip(x) {
                let q = (exponential(x) * self.inverse_scale / sum).round_ties_even() as u32 + self.zero;
                *y = q.min(255) as u8;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_close_to_the_exact_softmax() {
        let x: Vec<u8> = (0..60).map(|i| (i * 91 % 200) as u8).collect();
        let mut y = vec![0; x.len()];
        QSoftmax::new(20, 0.05, 1.0 / 256.0, 0).run(&x, &mut y);
        for (x, y) in x.chunks(20).zip(y.chunks(20)) {
            let exponentials: Vec<f64> = x.iter().map(|&x| (f64::from(x) * 0.05).exp()).collect();
            let sum: f64 = exponentials.iter().sum();
            for (e, &y) in exponentials.iter().zip(y) {
                assert!((e / sum * 256.0 - f64::from(y)).abs() <= 0.5001);
            }
        }
    }
}
