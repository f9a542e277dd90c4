//! The standard normal distribution, in f64.

use std::f64::consts::PI;

/// `φ`
pub fn density(x: f64) -> f64 {
    (-0.5 * x * x).exp() / (2.0 * PI).sqrt()
}

/// `Φ(x) = ½ + φ(x) Σ x^(2k+1) / (1·3·…·(2k+1))`, within 1e-15: G. Marsaglia, "Evaluating the Normal Distribution" (Journal of Statistical
/// Software, 2004).
pub fn distribution(x: f64) -> f64 {
    if x.abs() > 8.0 {
        return if x > 0.0 { 1.0 } else { 0.0 };
    }
    let (mut sum, mut term, mut odd) = (0.0, x, 1.0);
    while sum + term != sum {
        sum += term;
        odd += 2.0;
        term *= x * x / odd;
    }
    0.5 + sum * density(x)
}
