//! TQT: trained thresholds, scales that are powers of two.
//!
//! *What it does*: `s = 2^⌈log2 t⌉ / 2^(b−1)` (signed, `2^b` unsigned), `x̂ = s·clamp(round(x/s), n, p)`, with `log2 t` learned.
//!
//! *Gradients*: where `n ≤ round(x/s) ≤ p`, `∂x̂/∂x = 1` and `∂x̂/∂log2 t = s·ln 2·(round(x/s) − x/s)`; elsewhere 0 and `s·ln 2·n` or
//! `s·ln 2·p`. The ceiling passes gradients.
//!
//! *When it helps*: hardware that can only shift. *When it fails*: a factor of two between scales is coarse below 5 bits.
//!
//! *Source*: Jain, Gural, Wu, Dick, "Trained quantization thresholds for accurate and efficient fixed-point inference", MLSys 2020,
//! equations 4–8. *Departures*: with normalizations that are not folded before rounding (`--fold none`, the default), the scale of a weight that ships is its
//! power of two times the normalization's; `--fold running` ships powers of two. One threshold for each channel unless a tensor is asked
//! for. Activations start at the power of two with the least squared error, in the middle of its range.

use super::{Deployable, NotDeployable, fake_quant::FakeQuant, finite, full, init, init::Start};
use fewbits_graph::{Grid, tape::Quantizer};

/// TQT's weights or activations. Parameters `[log2 t]`.
#[derive(Clone, Debug)]
pub struct Tqt {
    grid: Grid,
    weights: bool,
}

/// Scales stay normal numbers within these exponents.
const EXPONENTS: [f32; 2] = [-64.0, 64.0];

impl Tqt {
    /// Signed weights, which start at `max|μ ± 3σ|`.
    pub fn weights(bits: u8) -> Self {
        Tqt { grid: full(bits, true), weights: true }
    }

    /// Activations.
    pub fn activations(bits: u8, signed: bool) -> Self {
        Tqt { grid: full(bits, signed), weights: false }
    }

    /// Values between zero and the threshold, `2^(b−1)` or `2^b`.
    fn codes(&self) -> f32 {
        (self.grid.qmax() + 1) as f32
    }

    fn kernel(&self, parameters: &[f32]) -> FakeQuant {
        let exponent = parameters[0].ceil().clamp(EXPONENTS[0], EXPONENTS[1]);
        let power = f32::from_bits(((exponent as i32 + 127) as u32) << 23);
        FakeQuant::symmetric(power / self.codes(), self.grid.qmin(), self.grid.qmax())
    }
}

impl Quantizer for Tqt {
    fn learned(&self) -> usize {
        1
    }

    fn forward(&self, parameters: &[f32], x: &[f32], y: &mut [f32]) {
        self.kernel(parameters).forward(x, y);
    }

    fn backward(&self, parameters: &[f32], x: &[f32], dy: &[f32], dx: &mut [f32], sums: &mut [f64]) {
        let FakeQuant { scale, low, high, .. } = self.kernel(parameters);
        let mut sum = 0.0;
        for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
            let u = x / scale;
            let code = u.round_ties_even();
            let inside = low <= code && code <= high;
            *dx = if inside { *dy } else { 0.0 };
            sum += f64::from(dy * if inside { code - u } else { code.clamp(low, high) });
        }
        sums[0] += std::f64::consts::LN_2 * f64::from(scale) * sum;
    }

    fn project(&self, parameters: &mut [f32]) {
        parameters[0] = finite(parameters[0], 0.0).clamp(EXPONENTS[0], EXPONENTS[1]);
    }
}

impl Deployable for Tqt {
    fn initial(&self, x: &[f32]) -> Vec<f32> {
        let threshold = if self.weights {
            init::usable(init::three_sigma(x, init::Stat::Signed)).log2()
        } else {
            let scale = init::scale(Start::Mse, x, self.grid.qmin(), self.grid.qmax());
            // Of the powers of two around the best scale, the nearer one in the logarithm; log2 t − ½ lies in the middle of those
            // with this ceiling.
            (scale * self.codes()).log2().round_ties_even() - 0.5
        };
        vec![threshold.clamp(EXPONENTS[0], EXPONENTS[1])]
    }

    fn grid(&self, parameters: &[f32]) -> Result<(Grid, f32, i32), NotDeployable> {
        Ok((self.grid, self.kernel(parameters).scale, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{normal, run, snapped_values_are_deployed_values};
    use super::*;

    #[test]
    fn scales_are_powers_of_two_above_the_threshold() {
        for (log2_t, weights, activations) in [(0.0, 0.125, 0.0625), (0.01, 0.25, 0.125), (-3.2, 0.015625, 0.0078125)] {
            assert_eq!(Tqt::weights(4).grid(&[log2_t]), Ok((full(4, true), weights, 0)));
            assert_eq!(Tqt::activations(4, false).grid(&[log2_t]), Ok((full(4, false), activations, 0)));
        }
    }

    #[test]
    fn gradients_are_those_of_equations_7_and_8() {
        let q = Tqt::weights(3);
        // s = 2: codes −4…3; −8.9/2 rounds to −4 and is inside, 7/2 rounds to 4 and is not.
        let x = [-99.0, -8.9, -3.0, 0.4, 5.2, 6.9, 7.0, 99.0];
        let (y, dx, sums) = run(&q, &[2.7], &x, &[1.0; 8]);
        assert_eq!(y, [-8.0, -8.0, -4.0, 0.0, 6.0, 6.0, 6.0, 6.0]);
        assert_eq!(dx, [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
        let slopes = -4.0 + (-4.0 + 4.45) + (-2.0 + 1.5) - 0.2 + (3.0 - 2.6) + (3.0 - 3.45) + 3.0 + 3.0;
        assert!((sums[0] - 2.0 * std::f64::consts::LN_2 * slopes).abs() < 1e-5, "{sums:?}");
    }

    #[test]
    fn any_step_leaves_a_usable_scale() {
        for number in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e9, -1e9, 3.5] {
            let q = Tqt::weights(8);
            let mut parameters = [number];
            q.project(&mut parameters);
            assert!(parameters[0].is_finite() && q.grid(&parameters).unwrap().1.is_normal());
        }
    }

    #[test]
    fn training_and_deployment_give_the_same_floats() {
        let x = normal(2000, 2.0);
        for q in [Tqt::weights(4), Tqt::activations(3, false), Tqt::activations(8, true)] {
            snapped_values_are_deployed_values(&q, &q.initial(&x), &x);
        }
    }
}
