//! Reinforcement learning: an agent walks through the network and gives each tensor a width; the reward comes at the end.
//!
//! # What it does
//! Each item of more than one width is a step, in the order of [`Problem::items`]. The agent sees ten numbers: depthwise or not,
//! channels in and out, stride, kernel, weights, pixels, number of the layer, the width that it chose last, and 1 for a weight or 0
//! for an input. Its action in `[0, 1]` is spread over the range of widths and goes to the nearest one. At the end items are narrowed
//! one step each, from the last to the first, over and over until the budgets are kept; the assignment is measured, and every step
//! is remembered with the reward `−scale · damage`.
//!
//! # When it helps
//! Where the damages of single tensors do not add up and there is time for hundreds of evaluations.
//!
//! # When it fails
//! With few evaluations: the first 21 assignments are random. Layers that look alike in the ten numbers get like widths, and what is
//! left of the budget is not spent: with some hundred evaluations [`super::evolution`] gets further.
//!
//! # Cost
//! One evaluation for each assignment; one update of two networks with 300 × 300 weights for each step.
//!
//! # Config
//! [`Settings`], and the scale of rewards. They should differ by about 1 among assignments worth choosing from: one over the damage
//! of equal bits everywhere is a good scale.
//!
//! # Source
//! Wang et al., "HAQ: Hardware-Aware Automated Quantization with Mixed Precision" (CVPR 2019), as the code that came with it does it.
//!
//! # Departures
//! The reward is minus the damage, not HAQ's change of accuracy after an epoch of finetuning: nothing is trained. Widths need not be neighbours. A feature that is equal for all layers is 0. With several budgets, only tensors that an exceeded
//! one depends on are narrowed. Assignments can be given to begin with.

mod agent;
pub mod features;
mod network;
mod replay;

use super::{Measure, Record, Settings, Trial, fitting};
use crate::{Item, Kind, Problem, SearchError};
use agent::Agent;
pub use features::{Features, features};
use replay::{STATE, Step};

/// The last episode whose actions are random, counted from 0.
const WARM_UP: usize = 20;
/// Deviation of the noise after the warm-up, and what is left of it from episode to episode.
const NOISE: f64 = 0.5;
const NOISE_DECAY: f64 = 0.99;
/// Steps that are remembered, for each layer.
const MEMORY: usize = 128;

/// Measures the start, and then what an agent proposes.
///
/// `features` has one entry for each item of `problem`.
///
/// # Errors
/// Those of `measure`.
pub fn search(
    problem: &Problem,
    features: &[Features],
    scale: f64,
    settings: &Settings,
    measure: &mut Measure<'_>,
) -> Result<Vec<Trial>, SearchError> {
    let mut record = Record::new(settings, measure);
    let mut walk = Walk::new(problem, features);
    let layers = problem.items.iter().filter(|item| item.kind == Kind::Weight).count().max(1);
    let mut agent = Agent::new(MEMORY * layers, settings.seed);
    for choices in settings.fitting_start(problem) {
        let actions: Vec<f64> = walk.steps.iter().map(|&i| action(&problem.items[i], choices[i])).collect();
        let Some(damage) = record.measure(choices)? else { return Ok(record.trials) };
        let mut given = actions.iter().copied();
        walk.walk(|_| given.next().unwrap_or(0.0));
        walk.remember(&mut agent, reward(scale, damage), false);
    }
    for episode in 0.. {
        let learns = episode > WARM_UP;
        let deviation = learns.then(|| NOISE * NOISE_DECAY.powi((episode - WARM_UP) as i32));
        let mut choices = walk.walk(|state| agent.act(state, deviation));
        enforce(problem, &mut choices);
        let Some(damage) = record.measure(&choices)? else { break };
        if walk.steps.is_empty() {
            break;
        }
        walk.remember(&mut agent, reward(scale, damage), learns);
    }
    Ok(record.trials)
}

/// The reward of `damage`. What cannot be measured is as bad as can be learned from.
fn reward(scale: f64, damage: f64) -> f32 {
    const LEAST: f64 = -1e3;
    let reward = -scale * damage;
    if reward.is_nan() { LEAST as f32 } else { reward.clamp(LEAST, -LEAST) as f32 }
}

/// Narrows items one step each, from the last to the first, over and over until the budgets are kept.
fn enforce(problem: &Problem, choices: &mut [usize]) {
    for i in (0..choices.len()).rev().cycle() {
        let open = fitting::exceeding(problem, choices);
        if open.is_empty() {
            return;
        }
        choices[i] -= usize::from(open.contains(&i));
    }
}

/// An episode: what the agent saw and did.
struct Walk<'a> {
    items: &'a [Item],
    /// Items of more than one width.
    steps: Vec<usize>,
    rows: Vec<[f32; STATE - 2]>,
    widest: f32,
    taken: Vec<([f32; STATE], f64)>,
}

impl<'a> Walk<'a> {
    fn new(problem: &'a Problem, features: &[Features]) -> Self {
        let items = &problem.items[..];
        let widest = items.iter().flat_map(|item| item.widths.last()).max().copied().unwrap_or(1);
        Walk {
            items,
            steps: (0..items.len()).filter(|&i| items[i].widths.len() > 1).collect(),
            rows: features::normalised(features),
            widest: f32::from(widest),
            taken: vec![],
        }
    }

    /// The choices that `act` makes, step by step. Items of one width have that.
    fn walk(&mut self, mut act: impl FnMut(&[f32; STATE]) -> f64) -> Vec<usize> {
        let mut choices = vec![0; self.items.len()];
        let mut last = 1.0;
        self.taken.clear();
        for &i in &self.steps {
            let item = &self.items[i];
            let mut state = [0.0; STATE];
            state[..STATE - 2].copy_from_slice(&self.rows[i]);
            state[STATE - 2..].copy_from_slice(&[last, f32::from(u8::from(item.kind == Kind::Weight))]);
            let action = act(&state);
            choices[i] = choice(item, action);
            last = f32::from(item.widths[choices[i]]) / self.widest;
            self.taken.push((state, action));
        }
        choices
    }

    /// Gives the walk to the agent, which learns once for each step if `learns`. Behind the last step stands where it led to.
    fn remember(&self, agent: &mut Agent, reward: f32, learns: bool) {
        for (n, &(state, action)) in self.taken.iter().enumerate() {
            agent.observe(Step { state, action: action as f32, reward, done: n + 1 == self.taken.len() });
            if learns {
                agent.update();
            }
        }
        if let Some(&(state, _)) = self.taken.last() {
            agent.observe(Step { state, action: 0.0, reward: 0.0, done: false });
        }
    }
}

/// The range of widths that actions are spread over: each width at its ends has as much room as one within.
fn range(item: &Item) -> [f64; 2] {
    let [narrowest, widest] = [item.widths.first(), item.widths.last()].map(|w| f64::from(w.copied().unwrap_or(0)));
    [narrowest - 0.5, widest + 0.5]
}

/// `round(low + action · (high − low))`, the even one of two, and of the item's widths the nearest, the narrower of two.
fn choice(item: &Item, action: f64) -> usize {
    let [low, high] = range(item);
    let bits = (low + action * (high - low)).round_ties_even();
    let distance = |&c: &usize| (f64::from(item.widths[c]) - bits).abs();
    (0..item.widths.len()).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(0)
}

/// An action that chooses `choice`.
fn action(item: &Item, choice: usize) -> f64 {
    let [low, high] = range(item);
    (f64::from(item.widths[choice]) - low) / (high - low)
}

#[cfg(test)]
mod tests;
