//! How far two signals are apart.

/// Signal-to-quantization-noise ratio, `10·log10(Σ x² / Σ (x − y)²)`, and what else two signals are compared by; sums in f64.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sqnr {
    signal: f64,
    other: f64,
    product: f64,
    noise: f64,
    largest: f64,
}

/// What two identical signals get, and the most that is ever reported.
const CEILING_DB: f64 = 200.0;

impl Sqnr {
    /// Adds elements of the signal `x` and of its approximation `y`.
    pub fn add(&mut self, x: &[f32], y: &[f32]) {
        for (&x, &y) in x.iter().zip(y) {
            let (x, y) = (f64::from(x), f64::from(y));
            self.signal += x * x;
            self.other += y * y;
            self.product += x * y;
            self.noise += (x - y) * (x - y);
            self.largest = self.largest.max((x - y).abs());
        }
    }

    /// SQNR in dB, at most 200; −200 if the approximation is not finite.
    pub fn db(&self) -> f64 {
        let db = 10.0 * (self.signal.max(1e-30) / self.noise.max(1e-30)).log10();
        if db.is_nan() { -CEILING_DB } else { db.clamp(-CEILING_DB, CEILING_DB) }
    }

    /// Cosine of the angle between the signals; 1 if both are zero.
    pub fn cosine(&self) -> f64 {
        let norm = (self.signal * self.other).sqrt();
        if norm > 0.0 { self.product / norm } else { f64::from(self.signal == self.other) }
    }

    /// Largest difference of two elements.
    pub fn max_abs_diff(&self) -> f64 {
        self.largest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_amplitude_is_twenty_decibels() {
        let mut sqnr = Sqnr::default();
        sqnr.add(&[1.0, -2.0, 4.0], &[1.1, -2.2, 4.4]);
        assert!((sqnr.db() - 20.0).abs() < 1e-4);
        assert!((sqnr.cosine() - 1.0).abs() < 1e-12);
        assert!((sqnr.max_abs_diff() - 0.4).abs() < 1e-6);
    }

    #[test]
    fn equal_signals_reach_the_ceiling_and_nan_the_floor() {
        let mut equal = Sqnr::default();
        equal.add(&[1.0, 2.0], &[1.0, 2.0]);
        assert_eq!((equal.db(), equal.max_abs_diff()), (200.0, 0.0));
        let mut broken = Sqnr::default();
        broken.add(&[1.0], &[f32::NAN]);
        assert_eq!(broken.db(), -200.0);
    }
}
