//! Steps of optimizers over flat slices, in place.
//!
//! What enters: weights, their gradient, the optimizer's own numbers for them. What leaves: all but the gradient, one step on.
//! Definitions are those of PyTorch (`torch.optim.SGD`, `Adam`, `AdamW`). Every number is computed by itself, without fused
//! multiply-adds: the same bits on every processor, wherever slices are cut.

use crate::int::isa::multiversion;

/// Stochastic gradient descent with momentum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Length of a step.
    pub learning_rate: f32,
    /// What is left of the velocity at each step.
    pub momentum: f32,
    /// Whether a step looks ahead along the velocity.
    pub nesterov: bool,
    /// Share of the weights that is added to the gradient.
    pub weight_decay: f32,
}

impl Sgd {
    /// One step: `g = gradient + weight_decay * w`, `v = momentum * v + g`, `w -= learning_rate * d`, with `d = g + momentum * v`
    /// for Nesterov's and `d = v` otherwise. The velocity starts at 0.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn step(self, weights: &mut [f32], gradient: &[f32], velocity: &mut [f32]) {
        assert_eq!([gradient.len(), velocity.len()], [weights.len(); 2], "one number of each kind per weight");
        sgd(self, weights, gradient, velocity);
    }
}

multiversion! {
    fn sgd(sgd: Sgd, weights: &mut [f32], gradient: &[f32], velocity: &mut [f32]) {
        for ((w, g), v) in weights.iter_mut().zip(gradient).zip(velocity) {
            let g = g + sgd.weight_decay * *w;
            *v = sgd.momentum * *v + g;
            let direction = if sgd.nesterov { g + sgd.momentum * *v } else { *v };
            *w -= sgd.learning_rate * direction;
        }
    }
}

/// Adam, or AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adam {
    /// Length of a step.
    pub learning_rate: f32,
    /// What is left at each step of the running means of the gradient and of its square.
    pub betas: [f32; 2],
    /// Added to the root of the mean square.
    pub epsilon: f32,
    /// Share of the weights that is added to the gradient, or, if decoupled, taken from the weights at each step of length 1.
    pub weight_decay: f32,
    /// Whether weights decay by themselves (AdamW).
    pub decoupled: bool,
}

impl Adam {
    /// Step number `count`, from 1. If decoupled, `w -= learning_rate * weight_decay * w` and `g = gradient`; otherwise
    /// `g = gradient + weight_decay * w`. Then `m = b1 * m + (1 - b1) * g`, `v = b2 * v + (1 - b2) * g²`,
    /// `w -= learning_rate * (m / (1 - b1^count)) / (sqrt(v / (1 - b2^count)) + epsilon)`. The means `m` and `v` start at 0.
    ///
    /// # Panics
    /// If the lengths differ or `count` is 0.
    pub fn step(self, count: u32, weights: &mut [f32], gradient: &[f32], means: &mut [f32], squares: &mut [f32]) {
        let lens = [gradient.len(), means.len(), squares.len()];
        assert_eq!(lens, [weights.len(); 3], "one number of each kind per weight");
        assert!(count > 0, "steps are counted from 1");
        let left = self.betas.map(|beta| 1.0 - f64::from(beta).powf(f64::from(count)));
        let corrections = [f64::from(self.learning_rate) / left[0], 1.0 / left[1].sqrt()].map(|c| c as f32);
        adam(self, corrections, weights, gradient, means, squares);
    }
}

multiversion! {
    fn adam(adam: Adam, corrections: [f32; 2], weights: &mut [f32], gradient: &[f32], means: &mut [f32], squares: &mut [f32]) {
        let [beta1, beta2] = adam.betas;
        let (coupled, kept) = match adam.decoupled {
            true => (0.0, 1.0 - adam.learning_rate * adam.weight_decay),
            false => (adam.weight_decay, 1.0),
        };
        for (((w, g), m), v) in weights.iter_mut().zip(gradient).zip(means).zip(squares) {
            let g = g + coupled * *w;
            *m += (g - *m) * (1.0 - beta1);
            *v = beta2 * *v + (1.0 - beta2) * g * g;
            *w = kept * *w - corrections[0] * (*m / (v.sqrt() * corrections[1] + adam.epsilon));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENS: [usize; 5] = [0, 1, 15, 33, 1000];

    fn numbers(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 31) % 2003) as f32 * 1e-3 - 1.0).collect()
    }

    fn close(found: f32, expected: f64) -> bool {
        (f64::from(found) - expected).abs() < 1e-5 * expected.abs().max(1e-2)
    }

    #[test]
    fn a_constant_gradient_makes_a_geometric_velocity() {
        let (rate, momentum) = (0.01, 0.9);
        for (len, nesterov) in LENS.into_iter().flat_map(|len| [(len, false), (len, true)]) {
            let sgd = Sgd { learning_rate: rate as f32, momentum: momentum as f32, nesterov, weight_decay: 0.0 };
            let (start, g) = (numbers(len, 1), numbers(len, 2));
            let (mut w, mut v) = (start.clone(), vec![0.0; len]);
            let mut factor = 0.0;
            for step in 1..=10 {
                sgd.step(&mut w, &g, &mut v);
                let velocity = (1.0 - f64::powi(momentum, step)) / (1.0 - momentum);
                factor += if nesterov { 1.0 + momentum * velocity } else { velocity };
                for i in 0..len {
                    assert!(close(v[i], f64::from(g[i]) * velocity));
                    assert!((f64::from(w[i]) - f64::from(start[i]) + rate * factor * f64::from(g[i])).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn weights_without_a_gradient_decay() {
        let start = numbers(100, 1);
        let zeros = vec![0.0; 100];
        let (mut by_sgd, mut by_adam) = (start.clone(), start.clone());
        let sgd = Sgd { learning_rate: 0.5, momentum: 0.0, nesterov: false, weight_decay: 0.02 };
        let adam = Adam { learning_rate: 0.5, betas: [0.9, 0.999], epsilon: 1e-8, weight_decay: 0.02, decoupled: true };
        let (mut velocity, mut means, mut squares) = (zeros.clone(), zeros.clone(), zeros.clone());
        for step in 1..=20 {
            sgd.step(&mut by_sgd, &zeros, &mut velocity);
            adam.step(step, &mut by_adam, &zeros, &mut means, &mut squares);
        }
        for ((sgd, adam), start) in by_sgd.iter().zip(&by_adam).zip(&start) {
            let expected = f64::from(*start) * 0.99f64.powi(20);
            assert!(close(*sgd, expected) && close(*adam, expected));
        }
    }

    #[test]
    fn adam_walks_by_its_rate_along_a_constant_gradient() {
        for len in LENS {
            let adam =
                Adam { learning_rate: 0.01, betas: [0.8, 0.99], epsilon: 0.125, weight_decay: 0.0, decoupled: false };
            let (start, g) = (numbers(len, 1), numbers(len, 2));
            let (mut w, mut means, mut squares) = (start.clone(), vec![0.0; len], vec![0.0; len]);
            for step in 1..=30 {
                adam.step(step, &mut w, &g, &mut means, &mut squares);
            }
            for i in 0..len {
                let g = f64::from(g[i]);
                let walked = 0.3 * g / (g.abs() + 0.125);
                assert!((f64::from(w[i]) - f64::from(start[i]) + walked).abs() < 1e-5, "{i} of {len}");
            }
        }
    }

    #[test]
    fn adam_follows_its_definition_step_by_step() {
        for decoupled in [false, true] {
            let (rate, betas, epsilon, decay) = (0.03, [0.9, 0.99], 1e-3, 0.1);
            let adam = Adam {
                learning_rate: rate as f32,
                betas: betas.map(|beta| beta as f32),
                epsilon: epsilon as f32,
                weight_decay: decay as f32,
                decoupled,
            };
            let (mut w, mut m, mut v) = ([0.7f32], [0.0], [0.0]);
            let (mut w64, mut m64, mut v64) = (0.7f64, 0.0, 0.0);
            for (step, gradient) in (1..).zip([1.0f32, -0.5, 0.25, 2.0, 0.0, -3.0]) {
                adam.step(step, &mut w, &[gradient], &mut m, &mut v);
                let mut g = f64::from(gradient);
                if decoupled {
                    w64 -= rate * decay * w64;
                } else {
                    g += decay * w64;
                }
                m64 = betas[0] * m64 + (1.0 - betas[0]) * g;
                v64 = betas[1] * v64 + (1.0 - betas[1]) * g * g;
                let corrected = [m64 / (1.0 - betas[0].powi(step as i32)), v64 / (1.0 - betas[1].powi(step as i32))];
                w64 -= rate * corrected[0] / (corrected[1].sqrt() + epsilon);
                assert!((f64::from(w[0]) - w64).abs() < 1e-6, "step {step}, decoupled {decoupled}");
            }
        }
    }
}
