//! DoReFa-Net.
//!
//! *What it does*: with `quant_k(r) = round((2^k−1)·r) / (2^k−1)`, weights become `2·quant_k(tanh w / (2·max|tanh w|) + ½) − 1`, and
//! activations `quant_k(clip(x, 0, 1))`. Nothing is learned.
//!
//! *Gradients*: `∂quant_k/∂r = 1`, so `∂ŵ/∂w = (1 − tanh² w) / max|tanh w|` with the maximum held constant, and `∂x̂/∂x = 1` within
//! the clip.
//!
//! *When it fails*: networks without a normalisation behind each layer: activations above 1 are lost.
//!
//! *Source*: Zhou, Wu, Ni, Zhou, Wen, Zou, "DoReFa-Net", arXiv 1606.06160, equations 5, 9 and 11.
//!
//! *Departures*: weights keep their magnitude unless asked otherwise ([`super::Settings::keep_magnitude`]; a factor `max|w|`, constant in
//! the backward pass); 255 levels at 8 bits; activations of both signs are cut to 1 and to one step below −1.

use super::{Deployable, NotDeployable, even_levels::EvenLevels, fake_quant::FakeQuant, full, init};
use fewbits_graph::{Grid, tape::Quantizer};

/// DoReFa's weights. Parameters `[max|tanh w|, amplitude]`, both derived.
#[derive(Clone, Debug)]
pub struct DoReFaWeights {
    levels: EvenLevels,
    keep_magnitude: bool,
}

impl DoReFaWeights {
    /// Weights of `bits` bits, between −1 and 1 or, if they keep their magnitude, between `−max|w|` and `max|w|`.
    pub fn new(bits: u8, keep_magnitude: bool) -> Self {
        DoReFaWeights { levels: EvenLevels::new(bits), keep_magnitude }
    }
}

impl Quantizer for DoReFaWeights {
    fn learned(&self) -> usize {
        0
    }

    fn derived(&self) -> usize {
        2
    }

    fn derive(&self, x: &[f32], derived: &mut [f32]) {
        let (least, greatest) = init::extremes(x);
        let largest = init::usable(greatest.max(-least));
        derived[0] = largest.tanh();
        derived[1] = if self.keep_magnitude { largest } else { 1.0 };
    }

    fn forward(&self, parameters: &[f32], x: &[f32], y: &mut [f32]) {
        let scale = self.levels.scale(parameters[1]);
        for (y, x) in y.iter_mut().zip(x) {
            *y = scale * self.levels.code(x.tanh() / parameters[0]);
        }
    }

    fn backward(&self, parameters: &[f32], x: &[f32], dy: &[f32], dx: &mut [f32], _sums: &mut [f64]) {
        let factor = parameters[1] / parameters[0];
        for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
            *dx = dy * factor * (1.0 - x.tanh().powi(2));
        }
    }
}

impl Deployable for DoReFaWeights {
    fn initial(&self, x: &[f32]) -> Vec<f32> {
        let mut derived = vec![0.0; 2];
        self.derive(x, &mut derived);
        derived
    }

    fn grid(&self, parameters: &[f32]) -> Result<(Grid, f32, i32), NotDeployable> {
        Ok((self.levels.grid(), self.levels.scale(parameters[1]), 0))
    }
}

/// DoReFa's activations. No parameters.
#[derive(Clone, Debug)]
pub struct DoReFaActivations {
    grid: Grid,
}

impl DoReFaActivations {
    /// Activations of `bits` bits, cut to 0…1, or, if `signed`, to 1 and to one step below −1.
    pub fn new(bits: u8, signed: bool) -> Self {
        DoReFaActivations { grid: full(bits, signed) }
    }

    fn kernel(&self) -> FakeQuant {
        FakeQuant::symmetric(1.0 / self.grid.qmax() as f32, self.grid.qmin(), self.grid.qmax())
    }
}

impl Quantizer for DoReFaActivations {
    fn learned(&self) -> usize {
        0
    }

    fn forward(&self, _parameters: &[f32], x: &[f32], y: &mut [f32]) {
        self.kernel().forward(x, y);
    }

    fn backward(&self, _parameters: &[f32], x: &[f32], dy: &[f32], dx: &mut [f32], _sums: &mut [f64]) {
        self.kernel().backward(x, dy, dx);
    }
}

impl Deployable for DoReFaActivations {
    fn initial(&self, _x: &[f32]) -> Vec<f32> {
        Vec::new()
    }

    fn grid(&self, _parameters: &[f32]) -> Result<(Grid, f32, i32), NotDeployable> {
        Ok((self.grid, self.kernel().scale, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{
        derivative, normal, run, snapped_values_are_deployed_values, written_values_are_deployed_values,
    };
    use super::*;

    #[test]
    fn weights_are_those_of_equation_9() {
        let w = [0.1f32, -0.3, 0.5, -1.0];
        let q = DoReFaWeights::new(2, false);
        let parameters = q.initial(&w);
        let (y, dx, _) = run(&q, &parameters, &w, &[1.0; 4]);
        let most = 1f64.tanh();
        for ((y, dx), w) in y.iter().zip(dx).zip(w.map(f64::from)) {
            let quant = |r: f64| (3.0 * r).round_ties_even() / 3.0;
            let expected = 2.0 * quant(w.tanh() / (2.0 * most) + 0.5) - 1.0;
            assert!((f64::from(*y) - expected).abs() < 1e-6, "{y} for {expected}");
            // The quantizer without rounding is smooth.
            let slope = derivative(|w| 2.0 * (w.tanh() / (2.0 * most) + 0.5) - 1.0, w, 1e-5);
            assert!((f64::from(dx) - slope).abs() < 1e-5, "{dx} for {slope}");
        }
        let kept = DoReFaWeights::new(2, true);
        let halves = w.map(|w| 0.5 * w);
        assert_eq!(run(&kept, &kept.initial(&halves), &halves, &[1.0; 4]).0[3], -0.5);
    }

    #[test]
    fn activations_are_those_of_equation_11() {
        let x = [-1.0, 0.0, 0.16, 0.17, 0.5, 0.99, 1.0, 7.0];
        let (y, dx, _) = run(&DoReFaActivations::new(2, false), &[], &x, &[1.0; 8]);
        let third = 1f32 / 3.0;
        assert_eq!(y, [0.0, 0.0, 0.0, third, 2.0 * third, 1.0, 1.0, 1.0]);
        assert_eq!(dx, [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn training_and_deployment_give_the_same_floats() {
        let x = normal(2000, 0.4);
        for bits in 2..=8 {
            for keep in [false, true] {
                let q = DoReFaWeights::new(bits, keep);
                written_values_are_deployed_values(&q, &q.initial(&x), &x);
            }
            for signed in [false, true] {
                snapped_values_are_deployed_values(&DoReFaActivations::new(bits, signed), &[], &x);
            }
        }
    }
}
