//! Plain vector arithmetic. The order of sums does not depend on the processor: the same bits everywhere.

use crate::int::isa::multiversion;

/// Sums side by side.
const LANES: usize = 16;

multiversion! {
    /// `y += a x`
    pub fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += a * x;
        }
    }
}

multiversion! {
    /// `Σ a b`, element `i` in sum `i mod 16`.
    pub fn dot(a: &[f32], b: &[f32]) -> f32 {
        let (a_rows, a_rest) = a.as_chunks::<LANES>();
        let (b_rows, b_rest) = b.as_chunks::<LANES>();
        let mut sums = [0f32; LANES];
        for (a, b) in a_rows.iter().zip(b_rows) {
            for i in 0..LANES {
                sums[i] += a[i] * b[i];
            }
        }
        let mut total = 0.0;
        for sum in sums {
            total += sum;
        }
        for (a, b) in a_rest.iter().zip(b_rest) {
            total += a * b;
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_products_of_any_length() {
        for len in [0, 1, 15, 16, 17, 100] {
            let a: Vec<f32> = (0..len).map(|i| (i as f32 * 0.7).sin()).collect();
            let b: Vec<f32> = (0..len).map(|i| (i as f32 * 0.3).cos()).collect();
            let exact: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            assert!((f64::from(dot(&a, &b)) - exact).abs() < 1e-4);
            let mut y = b.clone();
            axpy(0.5, &a, &mut y);
            assert!((0..len).all(|i| y[i] == b[i] + 0.5 * a[i]));
        }
    }
}
