//! Steps down a gradient: flat parameters and their gradients enter, new parameters leave. The definitions are PyTorch's.
//! It must not know what the parameters are of, nor how their rate changes over time.

use std::ops::Range;

use fewbits_kernels::{
    Threads,
    float::update::{Adam, Sgd},
};
use serde::Serialize;

/// The rule of a step, from a gradient `g` to a value `p`. Test `trajectories_equal_pytorch`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Rule {
    /// `g ← g + weight_decay·p`, `b ← momentum·b + g`, `p ← p − rate·b`; with `nesterov`, `p ← p − rate·(g + momentum·b)`.
    Sgd {
        /// Share of the last step that goes on; 0 for none.
        momentum: f32,
        /// Whether the gradient counts once more.
        nesterov: bool,
    },
    /// `g ← g + weight_decay·p`, then `m ← β₁·m + (1 − β₁)·g`, `v ← β₂·v + (1 − β₂)·g²` and
    /// `p ← p − rate · m/(1 − β₁ᵗ) / (√(v/(1 − β₂ᵗ)) + ε)` in step `t` = 1, 2, … (Kingma and Ba 2015).
    Adam(Moments),
    /// Adam with `p ← p·(1 − rate·weight_decay)` first, in place of the decay in the gradient (Loshchilov and Hutter 2019).
    AdamW(Moments),
}

/// How Adam averages.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Moments {
    /// Decay of the mean of gradients and of the mean of squares, `β₁` and `β₂`.
    pub betas: [f32; 2],
    /// Added to the divisor, `ε`.
    pub epsilon: f32,
}

impl Default for Moments {
    fn default() -> Self {
        Self { betas: [0.9, 0.999], epsilon: 1e-8 }
    }
}

/// Parameters that share their settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Which of the flat parameters.
    pub range: Range<usize>,
    /// Multiplies the learning rate.
    pub learning_rate: f32,
    /// See [`Rule`].
    pub weight_decay: f32,
}

/// What an optimizer remembers between steps: enough to go on as if it had not been interrupted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    /// Steps done.
    pub steps: u32,
    /// `b` or `m` of each parameter.
    pub first: Vec<f32>,
    /// `v` of each parameter; empty if the rule has none.
    pub second: Vec<f32>,
}

/// A stored state that belongs to other parameters or to another rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the optimizer's state has {found:?} numbers, {expected:?} are needed")]
pub struct StateMismatch {
    /// Lengths of the two vectors of the stored state.
    pub found: [usize; 2],
    /// The lengths that the rule needs for its parameters.
    pub expected: [usize; 2],
}

/// Parameters of a task.
const PART: usize = 1 << 14;

/// A rule, its groups and its state. Parameters in no group never change.
#[derive(Debug, Clone)]
pub struct Optimizer {
    rule: Rule,
    groups: Vec<Group>,
    parameters: usize,
    state: State,
}

impl Optimizer {
    /// An optimizer of `parameters` numbers that has not made a step. Panics if a group lies outside, or two overlap.
    pub fn new(rule: Rule, mut groups: Vec<Group>, parameters: usize) -> Self {
        groups.sort_by_key(|group| group.range.start);
        let ends = std::iter::once(0).chain(groups.iter().map(|group| group.range.end));
        assert!(ends.zip(&groups).all(|(end, group)| end <= group.range.start), "groups overlap");
        assert!(groups.last().is_none_or(|group| group.range.end <= parameters), "a group lies outside the parameters");
        let [first, second] = lengths(rule, parameters).map(|n| vec![0.0; n]);
        Self { rule, groups, parameters, state: State { steps: 0, first, second } }
    }

    /// What has to be stored.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Goes on from a stored state.
    pub fn resume(&mut self, state: State) -> Result<(), StateMismatch> {
        let (found, expected) = ([state.first.len(), state.second.len()], lengths(self.rule, self.parameters));
        if found != expected {
            return Err(StateMismatch { found, expected });
        }
        self.state = state;
        Ok(())
    }

    /// Makes one step, the same on any number of threads. Panics unless there are as many values and gradients as parameters.
    pub fn step(&mut self, learning_rate: f32, values: &mut [f32], gradients: &[f32], threads: &Threads) {
        let lengths = [values.len(), gradients.len()];
        assert_eq!(lengths, [self.parameters; 2], "one value and one gradient for each parameter");
        let State { steps, first, second } = &mut self.state;
        *steps += 1;
        for Group { range, learning_rate: factor, weight_decay } in &self.groups {
            let (learning_rate, weight_decay) = (learning_rate * factor, *weight_decay);
            let (values, gradients) = (&mut values[range.clone()], &gradients[range.clone()]);
            let parts = values.chunks_mut(PART).zip(gradients.chunks(PART)).zip(first[range.clone()].chunks_mut(PART));
            match self.rule {
                Rule::Sgd { momentum, nesterov } => {
                    let sgd = Sgd { learning_rate, momentum, nesterov, weight_decay };
                    threads.each(parts, |((values, gradients), first)| sgd.step(values, gradients, first));
                }
                Rule::Adam(Moments { betas, epsilon }) | Rule::AdamW(Moments { betas, epsilon }) => {
                    let decoupled = matches!(self.rule, Rule::AdamW(_));
                    let adam = Adam { learning_rate, betas, epsilon, weight_decay, decoupled };
                    let parts = parts.zip(second[range.clone()].chunks_mut(PART));
                    threads.each(parts, |(((values, gradients), first), second)| {
                        adam.step(*steps, values, gradients, first, second);
                    });
                }
            }
        }
    }
}

/// Lengths of the two vectors of a rule's state.
fn lengths(rule: Rule, parameters: usize) -> [usize; 2] {
    match rule {
        Rule::Sgd { .. } => [parameters, 0],
        Rule::Adam(_) | Rule::AdamW(_) => [parameters; 2],
    }
}

/// `√Σg²`, summed in f64 in a fixed order.
pub fn global_norm(gradients: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 8];
    let (chunks, rest) = gradients.as_chunks::<8>();
    for chunk in chunks {
        for (lane, &gradient) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(gradient) * f64::from(gradient);
        }
    }
    let rest: f64 = rest.iter().map(|&gradient| f64::from(gradient) * f64::from(gradient)).sum();
    (lanes.iter().sum::<f64>() + rest).sqrt()
}

/// Shortens the gradient to `max_norm` if it is longer: `g ← g · min(1, max_norm / (norm + 1e-6))`, as PyTorch's
/// `clip_grad_norm_`. Returns the norm before; if it is not finite, the gradients are left as they are.
pub fn clip_global_norm(gradients: &mut [f32], max_norm: f64) -> f64 {
    let norm = global_norm(gradients);
    let factor = (max_norm / (norm + 1e-6)) as f32;
    if norm.is_finite() && factor < 1.0 {
        gradients.iter_mut().for_each(|gradient| *gradient *= factor);
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: [f32; 5] = [0.5, -1.25, 2.0, 0.75, -0.1];

    fn optimizer(rule: Rule) -> Optimizer {
        let groups = vec![
            Group { range: 3..5, learning_rate: 10.0, weight_decay: 0.0 },
            Group { range: 0..3, learning_rate: 1.0, weight_decay: 0.1 },
        ];
        Optimizer::new(rule, groups, START.len())
    }

    /// The gradient of step `t` is `sin(3·value + t)`.
    fn walk(optimizer: &mut Optimizer, values: &mut [f32], steps: Range<usize>) {
        for step in steps {
            let gradients: Vec<f32> = values.iter().map(|value| (value * 3.0 + step as f32).sin()).collect();
            optimizer.step(0.01, values, &gradients, &Threads::new(1));
        }
    }

    fn rules() -> [Rule; 5] {
        let moments = Moments::default();
        [
            Rule::Sgd { momentum: 0.0, nesterov: false },
            Rule::Sgd { momentum: 0.9, nesterov: false },
            Rule::Sgd { momentum: 0.9, nesterov: true },
            Rule::Adam(moments),
            Rule::AdamW(moments),
        ]
    }

    #[test]
    fn trajectories_equal_pytorch() {
        // tests/golden/pytorch.py
        let expected = [
            [0.501203537, -1.23243189, 1.97644281, 0.804013431, -0.326954901],
            [0.464667201, -1.20833313, 1.93069184, 0.767396271, -0.691797972],
            [0.467230082, -1.19708312, 1.91086829, 0.703041315, -1.05929875],
            [0.475384086, -1.24057317, 1.98040617, 0.624999404, -0.247854933],
            [0.474615186, -1.24079752, 1.97724795, 0.624999404, -0.247854933],
        ];
        for (rule, expected) in rules().into_iter().zip(expected) {
            let mut values = START;
            walk(&mut optimizer(rule), &mut values, 0..5);
            for (found, expected) in values.iter().zip(expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-6, "{rule:?}: {values:?}");
            }
        }
    }

    #[test]
    fn stored_state_continues_the_same_steps() {
        for rule in rules() {
            let (mut whole, mut parts) = (START, START);
            walk(&mut optimizer(rule), &mut whole, 0..6);
            let mut first = optimizer(rule);
            walk(&mut first, &mut parts, 0..4);
            let stored = first.state().clone();
            let mut second = optimizer(rule);
            second.resume(stored).unwrap();
            walk(&mut second, &mut parts, 4..6);
            assert_eq!(whole, parts, "{rule:?}");
        }
        let error = optimizer(Rule::Adam(Moments::default())).resume(State::default()).unwrap_err();
        assert_eq!(error, StateMismatch { found: [0, 0], expected: [5, 5] });
    }

    #[test]
    fn parameters_outside_of_groups_stay() {
        let groups = vec![Group { range: 1..2, learning_rate: 1.0, weight_decay: 0.0 }];
        let mut values = [1.0; 3];
        Optimizer::new(Rule::Sgd { momentum: 0.0, nesterov: false }, groups, 3).step(
            0.5,
            &mut values,
            &[1.0; 3],
            &Threads::new(1),
        );
        assert_eq!(values, [1.0, 0.5, 1.0]);
    }

    #[test]
    #[should_panic(expected = "groups overlap")]
    fn overlapping_groups_are_a_mistake() {
        let group = |range| Group { range, learning_rate: 1.0, weight_decay: 0.0 };
        Optimizer::new(Rule::Adam(Moments::default()), vec![group(0..3), group(2..4)], 4);
    }

    #[test]
    fn clipping_equals_pytorch() {
        let mut gradients = [3.0, -4.0, 12.0];
        assert_eq!(clip_global_norm(&mut gradients, 20.0), 13.0);
        assert_eq!(gradients, [3.0, -4.0, 12.0]);
        assert_eq!(clip_global_norm(&mut gradients, 2.0), 13.0);
        // tests/golden/pytorch.py
        for (found, expected) in gradients.iter().zip([0.461538434f64, -0.615384579, 1.846153736]) {
            assert!((f64::from(*found) - expected).abs() < 1e-6, "{gradients:?}");
        }
        // Sums beyond the first eight, and beyond f32.
        assert_eq!(global_norm(&[1.0; 25]), 5.0);
        assert!((global_norm(&[3e30, 4e30]) / 5e30 - 1.0).abs() < 1e-6);
        let mut broken = [1.0, f32::NAN];
        assert!(clip_global_norm(&mut broken, 0.1).is_nan());
        assert_eq!(broken[0], 1.0);
    }
}
