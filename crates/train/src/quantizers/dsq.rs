//! DSQ: differentiable soft quantization.
//!
//! *What it does*: rounds to `M+1` even levels from `l` to `u`. Backward, rounding is replaced with a staircase of tanh: with
//! `Δ = (u−l)/M`, `v = (x−l)/Δ`, `i = ⌊v⌋`, `κ = ln(2/α − 1)`,
//! `h(v) = i + ½·(tanh(κ·(v−i−½))/(1−α) + 1)` and `Q(x) = l + Δ·h(v)`. Smaller α is nearer to hard rounding. `l`, `u` and α are learned.
//!
//! *Gradients* are those of `Q`: within the range `∂Q/∂x = h'`, `∂Q/∂u = (h − v·h')/M`, `∂Q/∂l = 1 − h' − (h − v·h')/M`,
//! `∂Q/∂α = Δ·∂h/∂α`; beyond it `∂Q/∂u = 1` or `∂Q/∂l = 1`.
//!
//! *When it fails*: α near 0, where gradients vanish but at the steps.
//!
//! *Source*: Gong, Liu, Jiang, Li, Hu, Lin, Yu, Yan, "Differentiable soft quantization", ICCV 2019, equations 3–11.
//!
//! *Departures*: weights have `l = −u`, so that integer kernels need no zero point for them, and 255 levels at 8 bits. The
//! lower end of activations can be snapped to a whole number of steps from zero, as LSQ+'s offset.

use super::{
    Deployable, NotDeployable, SCALES, even_levels::EvenLevels, fake_quant::FakeQuant, finite, full, init, init::Start,
    scale_after_step,
};
use fewbits_graph::{Grid, tape::Quantizer};

/// Most and least softness.
const ALPHAS: [f32; 2] = [1e-3, 0.5];

/// The staircase between `low` and `high`.
#[derive(Clone, Copy, Debug)]
struct Staircase {
    low: f32,
    step: f32,
    steps: f32,
    kappa: f32,
    alpha: f32,
}

/// Slopes of the staircase at one point.
#[derive(Clone, Copy, Debug, Default)]
struct Slopes {
    x: f32,
    low: f32,
    high: f32,
    alpha: f32,
}

impl Staircase {
    fn new(low: f32, step: f32, steps: i32, alpha: f32) -> Self {
        Staircase { low, step, steps: steps as f32, kappa: (2.0 / alpha - 1.0).ln(), alpha }
    }

    fn slopes(&self, x: f32) -> Slopes {
        let v = (x - self.low) / self.step;
        if v <= 0.0 {
            return Slopes { low: 1.0, ..Slopes::default() };
        } else if v >= self.steps {
            return Slopes { high: 1.0, ..Slopes::default() };
        }
        let i = v.floor();
        let (middle, soft) = (v - i - 0.5, 1.0 / (1.0 - self.alpha));
        let t = (self.kappa * middle).tanh();
        let h = i + 0.5 * (soft * t + 1.0);
        let bend = 1.0 - t * t;
        let slope = 0.5 * soft * self.kappa * bend;
        let high = (h - v * slope) / self.steps;
        let kappa_by_alpha = -2.0 / (self.alpha * (2.0 - self.alpha));
        let h_by_alpha = 0.5 * soft * (soft * t + bend * kappa_by_alpha * middle);
        Slopes { x: slope, low: 1.0 - slope - high, high, alpha: self.step * h_by_alpha }
    }

    /// Writes `dx`, and returns the sums for `l`, `u` and α.
    fn backward(&self, x: &[f32], dy: &[f32], dx: &mut [f32]) -> [f64; 3] {
        let mut sums = [0.0; 3];
        for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
            let slopes = self.slopes(*x);
            *dx = dy * slopes.x;
            for (sum, slope) in sums.iter_mut().zip([slopes.low, slopes.high, slopes.alpha]) {
                *sum += f64::from(dy * slope);
            }
        }
        sums
    }
}

fn alpha_after_step(alpha: f32) -> f32 {
    finite(alpha, ALPHAS[1]).clamp(ALPHAS[0], ALPHAS[1])
}

/// DSQ's activations. Parameters `[l, u, α]`.
#[derive(Clone, Debug)]
pub struct DsqActivations {
    grid: Grid,
    alpha: f32,
    learn_alpha: bool,
    snapped: bool,
    start: Start,
}

impl DsqActivations {
    /// Activations of `bits` bits; `alpha` is where α starts, or stays unless `learn_alpha`.
    pub fn new(bits: u8, alpha: f32, learn_alpha: bool, snapped: bool, start: Start) -> Self {
        DsqActivations { grid: full(bits, false), alpha: alpha_after_step(alpha), learn_alpha, snapped, start }
    }

    fn step(&self, parameters: &[f32]) -> f32 {
        (parameters[1] - parameters[0]) / self.grid.steps() as f32
    }

    fn zero_point(&self, parameters: &[f32]) -> i32 {
        ((-parameters[0] / self.step(parameters)).round_ties_even() as i32).clamp(0, self.grid.qmax())
    }
}

impl Quantizer for DsqActivations {
    fn learned(&self) -> usize {
        3
    }

    fn forward(&self, parameters: &[f32], x: &[f32], y: &mut [f32]) {
        let step = self.step(parameters);
        if self.snapped {
            let z = self.zero_point(parameters);
            FakeQuant::symmetric(step, -z, self.grid.qmax() - z).forward(x, y);
        } else {
            FakeQuant { offset: parameters[0], ..FakeQuant::symmetric(step, 0, self.grid.qmax()) }.forward(x, y);
        }
    }

    fn backward(&self, parameters: &[f32], x: &[f32], dy: &[f32], dx: &mut [f32], sums: &mut [f64]) {
        let step = self.step(parameters);
        let low = if self.snapped { -step * self.zero_point(parameters) as f32 } else { parameters[0] };
        let [by_low, by_high, by_alpha] =
            Staircase::new(low, step, self.grid.steps(), parameters[2]).backward(x, dy, dx);
        sums[0] += by_low;
        sums[1] += by_high;
        sums[2] += if self.learn_alpha { by_alpha } else { 0.0 };
    }

    fn project(&self, parameters: &mut [f32]) {
        let low = finite(parameters[0], 0.0).clamp(-SCALES[1], SCALES[1]);
        let high = finite(parameters[1], low).clamp(-SCALES[1], SCALES[1]);
        // Wide enough for `f32` to tell the levels apart.
        let least = (SCALES[0] + low.abs() * f32::EPSILON) * self.grid.steps() as f32;
        parameters[0] = low;
        parameters[1] = high.max(low + least);
        parameters[2] = alpha_after_step(parameters[2]);
    }
}

impl Deployable for DsqActivations {
    fn initial(&self, x: &[f32]) -> Vec<f32> {
        let (scale, low) = init::scale_and_offset(self.start, x, 0, self.grid.qmax());
        let mut parameters = vec![low, low + scale * self.grid.steps() as f32, self.alpha];
        self.project(&mut parameters);
        parameters
    }

    fn grid(&self, parameters: &[f32]) -> Result<(Grid, f32, i32), NotDeployable> {
        if !self.snapped {
            return Err(NotDeployable::FreeOffset);
        }
        Ok((self.grid, self.step(parameters), self.zero_point(parameters)))
    }

    fn scale(&self, parameters: &[f32]) -> Option<f32> {
        Some(self.step(parameters))
    }
}

/// DSQ's weights, between −u and u. Parameters `[u, α]`.
#[derive(Clone, Debug)]
pub struct DsqWeights {
    levels: EvenLevels,
    alpha: f32,
    learn_alpha: bool,
}

impl DsqWeights {
    /// Weights of `bits` bits; `alpha` as for [`DsqActivations`]. `u` starts at `max|μ ± 3σ|` or, if that is less, at `max|w|`.
    pub fn new(bits: u8, alpha: f32, learn_alpha: bool) -> Self {
        DsqWeights { levels: EvenLevels::new(bits), alpha: alpha_after_step(alpha), learn_alpha }
    }
}

impl Quantizer for DsqWeights {
    fn learned(&self) -> usize {
        2
    }

    fn forward(&self, parameters: &[f32], x: &[f32], y: &mut [f32]) {
        let scale = self.levels.scale(parameters[0]);
        for (y, x) in y.iter_mut().zip(x) {
            *y = scale * self.levels.code(x / parameters[0]);
        }
    }

    fn backward(&self, parameters: &[f32], x: &[f32], dy: &[f32], dx: &mut [f32], sums: &mut [f64]) {
        let (high, steps) = (parameters[0], self.levels.steps());
        let staircase = Staircase::new(-high, 2.0 * high / steps as f32, steps, parameters[1]);
        let [by_low, by_high, by_alpha] = staircase.backward(x, dy, dx);
        sums[0] += by_high - by_low;
        sums[1] += if self.learn_alpha { by_alpha } else { 0.0 };
    }

    fn project(&self, parameters: &mut [f32]) {
        parameters[0] = scale_after_step(parameters[0]);
        parameters[1] = alpha_after_step(parameters[1]);
    }
}

impl Deployable for DsqWeights {
    fn initial(&self, x: &[f32]) -> Vec<f32> {
        let (least, greatest) = init::extremes(x);
        let high = init::three_sigma(x, init::Stat::Signed).min(greatest.max(-least));
        vec![init::usable(high), self.alpha]
    }

    fn grid(&self, parameters: &[f32]) -> Result<(Grid, f32, i32), NotDeployable> {
        Ok((self.levels.grid(), self.levels.scale(parameters[0]), 0))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{
        derivative, normal, run, snapped_values_are_deployed_values, written_values_are_deployed_values,
    };
    use super::*;

    /// The soft quantizer of the paper, equations 3 to 8, in `f64`.
    fn soft(x: f64, l: f64, u: f64, steps: f64, alpha: f64) -> f64 {
        let delta = (u - l) / steps;
        if x <= l || x >= u {
            return x.clamp(l, u);
        }
        let i = ((x - l) / delta).floor();
        let middle = l + (i + 0.5) * delta;
        let k = (2.0 / alpha - 1.0).ln() / delta;
        let s = 1.0 / (0.5 * k * delta).tanh();
        l + delta * (i + (s * (k * (x - middle)).tanh() + 1.0) / 2.0)
    }

    #[test]
    fn gradients_are_the_slopes_of_the_soft_quantizer() {
        let q = DsqActivations::new(2, 0.3, true, false, Start::Mse);
        let w = DsqWeights::new(2, 0.3, true);
        for alpha in [0.05f32, 0.3, 0.5] {
            for x in [-2.3f32, -0.95, -0.1, 0.33, 0.8, 1.9, 4.0] {
                let (l, u, a, at) = (-1.0, 2.0, f64::from(alpha), f64::from(x));
                let (_, dx, sums) = run(&q, &[-1.0, 2.0, alpha], &[x], &[1.0]);
                let close = |found: f64, f: &dyn Fn(f64) -> f64, v: f64, name: &str| {
                    let slope = derivative(f, v, 1e-6);
                    assert!(
                        (found - slope).abs() < 1e-4 * (1.0 + slope.abs()),
                        "{name} at {x}, α {alpha}: {found}, {slope}"
                    );
                };
                close(dx[0].into(), &|x| soft(x, l, u, 3.0, a), at, "x");
                close(sums[0], &|l| soft(at, l, u, 3.0, a), l, "l");
                close(sums[1], &|u| soft(at, l, u, 3.0, a), u, "u");
                close(sums[2], &|a| soft(at, l, u, 3.0, a), a, "α");
                let (_, dx, sums) = run(&w, &[2.0, alpha], &[x], &[1.0]);
                close(dx[0].into(), &|x| soft(x, -2.0, 2.0, 3.0, a), at, "weight");
                close(sums[0], &|u| soft(at, -u, u, 3.0, a), 2.0, "u of weights");
                close(sums[1], &|a| soft(at, -2.0, 2.0, 3.0, a), a, "α of weights");
            }
        }
    }

    #[test]
    fn the_soft_quantizer_becomes_the_hard_one() {
        let x: Vec<f32> =
            normal(500, 1.0).into_iter().filter(|x| ((2.0 * x + 0.5) - (2.0 * x + 0.5).round()).abs() > 0.02).collect();
        let q = DsqActivations::new(3, 0.2, false, false, Start::Mse);
        let mut y = vec![0.0; x.len()];
        q.forward(&[-1.0, 2.5, 0.2], &x, &mut y);
        let worst = |alpha: f64| {
            let off = x.iter().zip(&y).map(|(x, y)| (soft(f64::from(*x), -1.0, 2.5, 7.0, alpha) - f64::from(*y)).abs());
            off.fold(0.0, f64::max)
        };
        assert!(worst(1e-80) < 1e-3 && worst(0.2) > 0.1, "{} {}", worst(1e-80), worst(0.2));
        let sums = run(&q, &[-1.0, 2.5, 0.2], &x, &vec![1.0; x.len()]).2;
        assert!(sums[2] == 0.0 && sums[0] != 0.0, "α is held");
    }

    #[test]
    fn any_step_leaves_a_usable_range() {
        let numbers = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1e38, 1e9, 0.0, -2.0];
        for a in numbers {
            for b in numbers {
                let (activations, mut p) = (DsqActivations::new(8, 0.2, true, true, Start::Mse), [a, b, a]);
                activations.project(&mut p);
                let (_, scale, _) = activations.grid(&p).unwrap();
                assert!(scale.is_normal() && scale > 0.0 && p[0] < p[1] && p[2] > 0.0, "{p:?} of {a}, {b}");
                let (weights, mut p) = (DsqWeights::new(4, 0.2, true), [a, b]);
                weights.project(&mut p);
                assert!(weights.grid(&p).unwrap().1.is_normal() && p[1] > 0.0, "{p:?}");
            }
        }
    }

    #[test]
    fn training_and_deployment_give_the_same_floats() {
        let x = normal(2000, 1.3);
        for bits in 2..=8 {
            let q = DsqActivations::new(bits, 0.2, true, true, Start::Mse);
            snapped_values_are_deployed_values(&q, &q.initial(&x), &x);
            let q = DsqWeights::new(bits, 0.2, true);
            written_values_are_deployed_values(&q, &q.initial(&x), &x);
        }
    }
}
