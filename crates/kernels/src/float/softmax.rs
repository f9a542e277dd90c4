//! Softmax along the last dimension.
//!
//! What enters: rows of logits. What leaves: rows of probabilities, in the operation order of ONNX Runtime's AVX-512 kernel on
//! every processor.

use super::activation::Activation;
use super::elementwise::parts;
use crate::Threads;
use crate::simd::Isa;

/// Sums that a row is added to in turn.
const LANES: usize = 16;

/// `y = exp(x - max) * (1 / Σ exp(x - max))` for each row of `x: [.., c]`.
///
/// # Panics
/// If `y` is not as long as `x`, or `c` does not divide it.
pub fn softmax(threads: &Threads, c: usize, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "softmax keeps the length");
    if y.is_empty() {
        return;
    }
    assert!(x.len().is_multiple_of(c), "a row has c numbers");
    let isa = Isa::best();
    parts(threads, y, c, |start, y| {
        for (x, y) in x[start..].chunks_exact(c).zip(y.chunks_exact_mut(c)) {
            row(isa, x, y);
        }
    });
}

fn row(isa: Isa, x: &[f32], y: &mut [f32]) {
    let max = x.iter().fold(f32::MIN, |max, &v| if v > max { v } else { max });
    for (y, x) in y.iter_mut().zip(x) {
        *y = x - max;
    }
    Activation::Exp.apply(isa, y);
    let mut sums = [0.0f32; LANES];
    for chunk in y.chunks(LANES) {
        for (sum, v) in sums.iter_mut().zip(chunk) {
            *sum += v;
        }
    }
    // Upper half onto lower, neighbours twice, then the two quarters that are left.
    let half: [f32; 8] = std::array::from_fn(|i| sums[i + 8] + sums[i]);
    let quarter = |i: usize| (half[i] + half[i + 1]) + (half[i + 2] + half[i + 3]);
    let scale = 1.0 / (quarter(0) + quarter(4));
    for y in y {
        *y *= scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_sum_to_one_and_follow_the_definition() {
        let threads = Threads::new(2);
        for c in [1, 3, 16, 1000] {
            let x: Vec<f32> = (0..c * 40).map(|i| (i * 37 % 101) as f32 * 0.3 - 9.0).collect();
            let mut y = vec![0.0; x.len()];
            softmax(&threads, c, &x, &mut y);
            for (x, y) in x.chunks(c).zip(y.chunks(c)) {
                let max = x.iter().copied().fold(f32::MIN, f32::max);
                let exps: Vec<f64> = x.iter().map(|&v| f64::from(v - max).exp()).collect();
                let sum: f64 = exps.iter().sum();
                assert!(exps.iter().zip(y).all(|(e, &y)| (f64::from(y) - e / sum).abs() < 2e-7));
                assert!((y.iter().map(|&v| f64::from(v)).sum::<f64>() - 1.0).abs() < 1e-6);
            }
        }
    }
}
