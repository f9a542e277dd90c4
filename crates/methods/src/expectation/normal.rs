//! A normal distribution and what functions make of it.
//!
//! Mean and deviation enter and leave, in f64.

use fewbits_quant::normal::{density, distribution};

/// Mean `μ` and deviation `σ` of a channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normal {
    /// `μ`
    pub mean: f64,
    /// `σ`, at least 0
    pub deviation: f64,
}

impl Normal {
    /// Of `min(max(x, a), b)`, with `α = (a − μ)/σ`, `β = (b − μ)/σ`, density `φ` and distribution `Φ`:
    /// `E = σ(φ(α) − φ(β)) + μ(Φ(β) − Φ(α)) + a Φ(α) + b (1 − Φ(β))`, and with `x²` for `x`
    /// `(μ² + σ²)(Φ(β) − Φ(α)) + 2μσ(φ(α) − φ(β)) + σ²(α φ(α) − β φ(β)) + a² Φ(α) + b² (1 − Φ(β))`. Bounds may be infinite.
    pub fn clipped(&self, a: f64, b: f64) -> Normal {
        let Normal { mean, deviation } = *self;
        if deviation <= 0.0 {
            return Normal { mean: mean.max(a).min(b), deviation: 0.0 };
        }
        let (alpha, beta) = ((a - mean) / deviation, (b - mean) / deviation);
        let (below, above) = (distribution(alpha), distribution(-beta));
        let inside = 1.0 - below - above;
        // What lies on an infinite bound has no weight.
        let times = |x: f64, weight: f64| if weight == 0.0 { 0.0 } else { x * weight };
        let slope = deviation * (density(alpha) - density(beta));
        let first = slope + mean * inside + times(a, below) + times(b, above);
        let ends = deviation * deviation * (times(alpha, density(alpha)) - times(beta, density(beta)));
        let second = (mean * mean + deviation * deviation) * inside + 2.0 * mean * slope + ends;
        let second = second + times(a * a, below) + times(b * b, above);
        Normal { mean: first, deviation: (second - first * first).max(0.0).sqrt() }
    }

    /// Of `x` where it is positive and `slope · x` elsewhere: `max(x, 0) + slope · min(x, 0)`.
    pub fn leaky(&self, slope: f64) -> Normal {
        let (up, down) = (self.clipped(0.0, f64::INFINITY), self.clipped(f64::NEG_INFINITY, 0.0));
        // One of both is zero, so that their covariance is less the product of their means.
        let covariance = -up.mean * down.mean;
        let variance = up.deviation.powi(2) + (slope * down.deviation).powi(2) + 2.0 * slope * covariance;
        Normal { mean: up.mean + slope * down.mean, deviation: variance.max(0.0).sqrt() }
    }

    /// Of `factor · x`.
    pub fn times(&self, factor: f64) -> Normal {
        Normal { mean: factor * self.mean, deviation: factor.abs() * self.deviation }
    }

    /// Of the sum with an independent number.
    pub fn plus(&self, other: &Normal) -> Normal {
        Normal { mean: self.mean + other.mean, deviation: self.deviation.hypot(other.deviation) }
    }
}
