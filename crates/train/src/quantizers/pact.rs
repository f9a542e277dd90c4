//! PACT: a learned clip of activations.
//!
//! *What it does*: `y = clip(x, 0, α)`, `ŷ = round(y·(2^k−1)/α)·α/(2^k−1)`. *Gradients*: `∂ŷ/∂x = 1` on `(0, α)`; `∂ŷ/∂α = 1` where
//! `x ≥ α`, 0 elsewhere (unlike LSQ, rounding does not count). α needs the weight decay of the network: see [`Deployable::decays`].
//!
//! *Source*: Choi, Wang, Venkataramani, Chuang, Srinivasan, Gopalakrishnan, "PACT: parameterized clipping activation for quantized
//! neural networks", arXiv 1805.06085, equations 1–3.
//!
//! *Departures*: α starts at the clip of least squared error, as networks come trained; activations of both signs are clipped to
//! `c·α…α` with `∂ŷ/∂α = c` where `x ≤ c·α`, `c = −2^(k−1)/(2^(k−1)−1)`: integer kernels have no codes without the lowest one.

use super::{Decays, Deployable, NotDeployable, fake_quant::FakeQuant, full, init, init::Start, scale_after_step};
use fewbits_graph::{Grid, tape::Quantizer};

/// PACT's activations. Parameters `[α]`.
#[derive(Clone, Debug)]
pub struct Pact {
    grid: Grid,
    alpha: Option<f32>,
    start: Start,
}

impl Pact {
    /// Activations of `bits` bits; `alpha` is where the clip starts, chosen by `start` if absent.
    pub fn new(bits: u8, signed: bool, alpha: Option<f32>, start: Start) -> Self {
        Pact { grid: full(bits, signed), alpha, start }
    }

    fn kernel(&self, parameters: &[f32]) -> FakeQuant {
        let high = self.grid.qmax();
        FakeQuant::symmetric(parameters[0] / high as f32, self.grid.qmin(), high)
    }
}

impl Quantizer for Pact {
    fn learned(&self) -> usize {
        1
    }

    fn forward(&self, parameters: &[f32], x: &[f32], y: &mut [f32]) {
        self.kernel(parameters).forward(x, y);
    }

    fn backward(&self, parameters: &[f32], x: &[f32], dy: &[f32], dx: &mut [f32], sums: &mut [f64]) {
        let high = parameters[0];
        // Signed codes reach one step further down.
        let least = f64::from(self.grid.qmin()) / f64::from(self.grid.qmax());
        let low = least as f32 * high;
        let mut sum = 0.0;
        for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
            *dx = if low < *x && *x < high { *dy } else { 0.0 };
            if *x >= high {
                sum += f64::from(*dy);
            } else if self.grid.signed && *x <= low {
                sum += least * f64::from(*dy);
            }
        }
        sums[0] += sum;
    }

    fn project(&self, parameters: &mut [f32]) {
        parameters[0] = scale_after_step(parameters[0]);
    }
}

impl Deployable for Pact {
    fn initial(&self, x: &[f32]) -> Vec<f32> {
        let high = self.grid.qmax();
        vec![self.alpha.unwrap_or_else(|| init::scale(self.start, x, self.grid.qmin(), high) * high as f32)]
    }

    fn grid(&self, parameters: &[f32]) -> Result<(Grid, f32, i32), NotDeployable> {
        Ok((self.grid, self.kernel(parameters).scale, 0))
    }

    fn decays(&self) -> Decays {
        Decays::AsWeights
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{derivative, normal, run, snapped_values_are_deployed_values};
    use super::*;

    #[test]
    fn values_and_gradients_are_those_of_the_equations() {
        let x = [-1.0, 0.0, 0.9, 1.0, 2.9, 3.0, 5.9, 6.0, 8.0];
        let (y, dx, sums) = run(&Pact::new(2, false, None, Start::Mse), &[6.0], &x, &[1.0; 9]);
        // Steps of 2; 1.0 and 3.0 are ties.
        assert_eq!(y, [0.0, 0.0, 0.0, 0.0, 2.0, 4.0, 6.0, 6.0, 6.0]);
        assert_eq!(dx, [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
        assert_eq!(sums, [2.0]);
    }

    #[test]
    fn gradients_are_the_slopes_of_the_clip() {
        for signed in [false, true] {
            // Codes from −4 to 3.
            let clip = |x: f64, alpha: f64| x.clamp(if signed { -alpha * 4.0 / 3.0 } else { 0.0 }, alpha);
            let q = Pact::new(3, signed, None, Start::Mse);
            for x in [-9.0f32, -2.1, -0.3, 0.3, 2.1, 9.0] {
                let (_, dx, sums) = run(&q, &[4.0], &[x], &[1.0]);
                assert!((f64::from(dx[0]) - derivative(|x| clip(x, 4.0), x.into(), 1e-3)).abs() < 1e-9);
                assert!((sums[0] - derivative(|a| clip(x.into(), a), 4.0, 1e-3)).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn training_and_deployment_give_the_same_floats() {
        let x = normal(2000, 2.0);
        for bits in 2..=8 {
            for signed in [false, true] {
                snapped_values_are_deployed_values(&Pact::new(bits, signed, None, Start::Mse), &[3.3], &x);
            }
        }
    }
}
