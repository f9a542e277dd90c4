//! QIL: quantization interval learning.
//!
//! *What it does*: maps magnitudes from a learned interval `c−d…c+d` to 0…1, `b = (|x| − c + d)/(2d)`, `x̃ = sign(x)·bᵞ`, 0 below it (pruned)
//! and ±1 above (clipped), then rounds to `x̂ = round(x̃·q)/q`: `q = 2^(k−1)−1` for weights, `2^k−1` for activations, whose γ is 1.
//!
//! *Gradients*: within the interval the chain rule through the map, with rounding passed over:
//! `∂x̃/∂c = −g`, `∂x̃/∂d = g·(1−2b)` with `g = γ·b^(γ−1)/(2d)`, `∂x̃/∂γ = bᵞ·ln b`; none elsewhere. The paper trains the interval
//! at 0.01 of the weights' learning rate.
//!
//! *When it fails*: deployment of activations: their codes are those of the mapped input.
//!
//! *Source*: Jung, Son, Lee, Son, Han, Kwak, Hwang, Choi, "Learning to quantize deep networks by optimizing quantization intervals
//! with task loss", CVPR 2019, equations 1–4.
//!
//! *Departures*: results are multiplied with `c + d` and so keep their magnitude unless asked otherwise
//! ([`super::Settings::keep_magnitude`]), and the gradients include that; the γ of weights is 1 and learned only if asked
//! ([`super::Settings::learn_gamma`]); `c ≥ 0`; activations of both signs are mapped as weights are.

use super::{Decays, Deployable, NotDeployable, SCALES, finite, full, init, init::Start, narrow, scale_after_step};
use fewbits_graph::{Grid, tape::Quantizer};

/// QIL's weights or activations. Parameters `[c, d]`, or `[c, d, γ]`.
#[derive(Clone, Debug)]
pub struct Qil {
    grid: Grid,
    learn_gamma: bool,
    keep_magnitude: bool,
    weights: bool,
}

/// Exponents that leave a curve, and the least base whose slope is followed if the exponent is below 1.
const GAMMAS: [f32; 2] = [0.1, 10.0];
const LEAST_BASE: f32 = 1e-3;

/// Where an element lies in the interval.
struct Mapped {
    sign: f32,
    /// 0…1, cut.
    base: f32,
    inside: bool,
    /// `baseᵞ`, and its derivative by the base.
    level: f32,
    slope: f32,
}

impl Qil {
    /// Signed weights of `bits` bits.
    pub fn weights(bits: u8, learn_gamma: bool, keep_magnitude: bool) -> Self {
        Qil { grid: narrow(bits), learn_gamma, keep_magnitude, weights: true }
    }

    /// Activations of `bits` bits.
    pub fn activations(bits: u8, signed: bool, keep_magnitude: bool) -> Self {
        let grid = if signed { narrow(bits) } else { full(bits, false) };
        Qil { grid, learn_gamma: false, keep_magnitude, weights: false }
    }

    fn amplitude(&self, parameters: &[f32]) -> f32 {
        if self.keep_magnitude { parameters[0] + parameters[1] } else { 1.0 }
    }

    fn gamma(&self, parameters: &[f32]) -> f32 {
        if self.learn_gamma { parameters[2] } else { 1.0 }
    }

    fn map(&self, parameters: &[f32], x: f32) -> Mapped {
        let (sign, magnitude) = match self.grid.signed {
            true => (if x == 0.0 { 0.0 } else { x.signum() }, x.abs()),
            false => (1.0, x),
        };
        let [center, half_width] = [parameters[0], parameters[1]];
        let base = (magnitude - center + half_width) / (2.0 * half_width);
        let inside = 0.0 < base && base < 1.0;
        let base = base.clamp(0.0, 1.0);
        let gamma = self.gamma(parameters);
        let (level, slope) = match self.learn_gamma {
            true => (base.powf(gamma), gamma * base.max(LEAST_BASE).powf(gamma - 1.0)),
            false => (base, 1.0),
        };
        Mapped { sign, base, inside, level, slope }
    }
}

impl Quantizer for Qil {
    fn learned(&self) -> usize {
        if self.learn_gamma { 3 } else { 2 }
    }

    fn forward(&self, parameters: &[f32], x: &[f32], y: &mut [f32]) {
        let most = self.grid.qmax() as f32;
        let scale = self.amplitude(parameters) / most;
        for (y, x) in y.iter_mut().zip(x) {
            let mapped = self.map(parameters, *x);
            *y = scale * (mapped.sign * (mapped.level * most).round_ties_even());
        }
    }

    fn backward(&self, parameters: &[f32], x: &[f32], dy: &[f32], dx: &mut [f32], sums: &mut [f64]) {
        let most = self.grid.qmax() as f32;
        let (amplitude, width) = (self.amplitude(parameters), 2.0 * parameters[1]);
        for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
            let mapped = self.map(parameters, *x);
            let signed = dy * mapped.sign;
            *dx = 0.0;
            if mapped.inside {
                let slope = amplitude * mapped.slope / width;
                *dx = dy * slope;
                sums[0] -= f64::from(signed * slope);
                sums[1] += f64::from(signed * slope * (1.0 - 2.0 * mapped.base));
                if self.learn_gamma {
                    sums[2] += f64::from(signed * amplitude * mapped.level * mapped.base.ln());
                }
            }
            if self.keep_magnitude {
                let by_amplitude = f64::from(signed * (mapped.level * most).round_ties_even() / most);
                sums[0] += by_amplitude;
                sums[1] += by_amplitude;
            }
        }
    }

    fn project(&self, parameters: &mut [f32]) {
        parameters[1] = scale_after_step(parameters[1]);
        parameters[0] = finite(parameters[0], parameters[1]).clamp(0.0, SCALES[1]);
        if self.learn_gamma {
            parameters[2] = finite(parameters[2], 1.0).clamp(GAMMAS[0], GAMMAS[1]);
        }
    }
}

impl Deployable for Qil {
    fn initial(&self, x: &[f32]) -> Vec<f32> {
        let (least, greatest) = init::extremes(x);
        let end = if self.weights {
            init::usable(init::three_sigma(x, init::Stat::Signed).min(greatest.max(-least)))
        } else {
            init::scale(Start::Mse, x, self.grid.qmin(), self.grid.qmax()) * self.grid.qmax() as f32
        };
        let mut parameters = vec![0.5 * end, 0.5 * end];
        if self.learn_gamma {
            parameters.push(1.0);
        }
        self.project(&mut parameters);
        parameters
    }

    fn grid(&self, parameters: &[f32]) -> Result<(Grid, f32, i32), NotDeployable> {
        if !self.weights {
            return Err(NotDeployable::Transformed);
        }
        Ok((self.grid, self.amplitude(parameters) / self.grid.qmax() as f32, 0))
    }

    fn scale(&self, parameters: &[f32]) -> Option<f32> {
        Some(self.amplitude(parameters) / self.grid.qmax() as f32)
    }

    fn decays(&self) -> Decays {
        Decays::AsScales
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{derivative, normal, run, written_values_are_deployed_values};
    use super::*;

    /// The map of the paper in `f64`, without rounding.
    fn map(x: f64, c: f64, d: f64, gamma: f64) -> f64 {
        let (alpha, beta) = (0.5 / d, -0.5 * c / d + 0.5);
        match x.abs() {
            m if m < c - d => 0.0,
            m if m > c + d => x.signum(),
            m => x.signum() * (alpha * m + beta).powf(gamma),
        }
    }

    #[test]
    fn values_are_those_of_the_equations() {
        let q = Qil::weights(3, false, false);
        let (y, dx, _) = run(&q, &[2.0, 1.0], &[-9.0, -2.1, -0.9, 0.0, 1.2, 1.6, 2.9, 3.5], &[1.0; 8]);
        let third = 1f32 / 3.0;
        assert_eq!(y, [-1.0, -2.0 * third, 0.0, 0.0, 0.0, third, 1.0, 1.0]);
        assert_eq!(dx, [0.0, 0.5, 0.0, 0.0, 0.5, 0.5, 0.5, 0.0]);
        let q = Qil::activations(2, false, true);
        assert_eq!(run(&q, &[2.0, 1.0], &[-9.0, 0.5, 2.1, 5.0], &[1.0; 4]).0, [0.0, 0.0, 2.0, 3.0]);
    }

    #[test]
    fn gradients_are_the_slopes_of_the_map() {
        let (c, d) = (1.5, 1.0);
        for (keep, gamma) in [(false, 1.0f32), (false, 0.7), (true, 1.0), (true, 1.8)] {
            let q = Qil::weights(4, true, keep);
            let amplitude = |c: f64, d: f64| if keep { c + d } else { 1.0 };
            for x in [-3.0f32, -1.4, -0.3, 0.7, 1.1, 2.2, 2.8] {
                let (at, g) = (f64::from(x), f64::from(gamma));
                let parameters = [c as f32, d as f32, gamma];
                let (y, dx, sums) = run(&q, &parameters, &[x], &[1.0]);
                // Rounding adds a constant to the map.
                let rounding = f64::from(y[0]) / amplitude(c, d) - map(at, c, d, g);
                let surrogate = |x: f64, c: f64, d: f64, g: f64| amplitude(c, d) * (map(x, c, d, g) + rounding);
                let close = |found: f64, f: &dyn Fn(f64) -> f64, v: f64, name: &str| {
                    let slope = derivative(f, v, 1e-6);
                    assert!((found - slope).abs() < 1e-4, "{name} at {x}, γ {gamma}, {keep}: {found}, not {slope}");
                };
                close(dx[0].into(), &|x| surrogate(x, c, d, g), at, "x");
                close(sums[0], &|c| surrogate(at, c, d, g), c, "c");
                close(sums[1], &|d| surrogate(at, c, d, g), d, "d");
                close(sums[2], &|g| surrogate(at, c, d, g), g, "γ");
            }
        }
    }

    #[test]
    fn weights_deploy_and_activations_do_not() {
        let w = normal(2000, 0.2);
        for bits in 2..=8 {
            for gamma in [false, true] {
                let q = Qil::weights(bits, gamma, true);
                written_values_are_deployed_values(&q, &q.initial(&w), &w);
            }
        }
        assert_eq!(Qil::activations(4, false, true).grid(&[1.0, 1.0]), Err(NotDeployable::Transformed));
    }
}
