//! The agent: deep deterministic policy gradients (Lillicrap et al. 2016) as HAQ sets them up.
//!
//! States, actions in `[0, 1]` and rewards enter; actions leave. It knows no widths and no budgets.

use super::{
    network::{Learner, Pass, Shape},
    replay::{Replay, STATE, Step},
};
use fewbits_train::random::Random;

/// Units of the hidden layers of actor and critic.
const HIDDEN: usize = 300;
const ACTOR_RATE: f32 = 1e-4;
const CRITIC_RATE: f32 = 1e-3;
/// Steps that an update looks at.
const BATCH: usize = 64;
/// What a target takes of its network at each update.
const SHARE: f32 = 0.01;
/// What the mean reward takes of that of a batch.
const BASELINE_SHARE: f32 = 0.5;
/// The critic reads the state, the action, and 1: the bias of the action's own layer.
const CRITIC_INPUTS: [usize; 3] = [STATE, 1, 1];

/// An actor `μ(s)`, a critic `Q(s, a)`, and what they have seen.
#[derive(Debug)]
pub struct Agent {
    actor: Learner,
    critic: Learner,
    actor_pass: Pass,
    critic_pass: Pass,
    single: Pass,
    replay: Replay,
    baseline: Option<f32>,
    random: Random,
}

impl Agent {
    /// An agent that remembers `memory` steps.
    pub fn new(memory: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let actor = Shape { inputs: STATE, hidden: HIDDEN };
        let critic = Shape { inputs: CRITIC_INPUTS.iter().sum(), hidden: HIDDEN };
        Agent {
            actor: Learner::new(actor.parameters(&[STATE], &mut random), ACTOR_RATE),
            critic: Learner::new(critic.parameters(&CRITIC_INPUTS, &mut random), CRITIC_RATE),
            actor_pass: Pass::new(actor, BATCH),
            critic_pass: Pass::new(critic, BATCH),
            single: Pass::new(actor, 1),
            replay: Replay::new(memory),
            baseline: None,
            random,
        }
    }

    /// An action of a normal distribution about `μ(state)` that is cut off at 0 and 1; with no deviation given, a uniform one.
    pub fn act(&mut self, state: &[f32; STATE], deviation: Option<f64>) -> f64 {
        let Some(deviation) = deviation else { return self.random.uniform() };
        let mean = f64::from(sigmoid(self.single.forward(&self.actor.values, state)[0]));
        // The mean lies in the interval and the deviation is at most half of it, so that almost every second draw is taken.
        loop {
            let action = mean + deviation * self.random.normal();
            if (0.0..=1.0).contains(&action) {
                return action;
            }
        }
    }

    /// Remembers a step.
    pub fn observe(&mut self, step: Step) {
        self.replay.push(step);
    }

    /// One step of the critic towards `r − r̄ + Q'(s', μ'(s'))`, one of the actor up `Q(s, μ(s))`, and targets follow.
    pub fn update(&mut self) {
        let batch = self.replay.sample(BATCH, &mut self.random);
        if batch.is_empty() {
            return;
        }
        let mean = batch.iter().map(|(step, _)| step.reward).sum::<f32>() / BATCH as f32;
        let baseline = self.baseline.map_or(mean, |old| old + BASELINE_SHARE * (mean - old));
        self.baseline = Some(baseline);
        let states = by_feature(batch.iter().map(|(step, _)| &step.state));
        let next_states = by_feature(batch.iter().map(|(_, next)| next));
        let actions: Vec<f32> = batch.iter().map(|(step, _)| step.action).collect();

        let next_actions = sigmoids(self.actor_pass.forward(&self.actor.target, &next_states));
        let next_values = self.critic_pass.forward(&self.critic.target, &critic_input(&next_states, &next_actions));
        let targets: Vec<f32> = std::iter::zip(&batch, next_values)
            .map(|((step, _), next)| step.reward - baseline + if step.done { 0.0 } else { *next })
            .collect();

        let values = self.critic_pass.forward(&self.critic.values, &critic_input(&states, &actions));
        let errors: Vec<f32> =
            values.iter().zip(&targets).map(|(q, target)| 2.0 * (q - target) / BATCH as f32).collect();
        self.critic_pass.backward(&self.critic.values, &errors, Some(&mut self.critic.gradient));
        self.critic.step();

        let actions = sigmoids(self.actor_pass.forward(&self.actor.values, &states));
        self.critic_pass.forward(&self.critic.values, &critic_input(&states, &actions));
        let slopes = self.critic_pass.backward(&self.critic.values, &[-1.0 / BATCH as f32; BATCH], None);
        let of_actions = &slopes[STATE * BATCH..][..BATCH];
        let errors: Vec<f32> = of_actions.iter().zip(&actions).map(|(slope, a)| slope * a * (1.0 - a)).collect();
        self.actor_pass.backward(&self.actor.values, &errors, Some(&mut self.actor.gradient));
        self.actor.step();

        self.actor.follow(SHARE);
        self.critic.follow(SHARE);
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn sigmoids(x: &[f32]) -> Vec<f32> {
    x.iter().map(|&x| sigmoid(x)).collect()
}

/// States as `[feature][step]`.
fn by_feature<'a>(states: impl Iterator<Item = &'a [f32; STATE]> + Clone) -> Vec<f32> {
    (0..STATE).flat_map(|feature| states.clone().map(move |state| state[feature])).collect()
}

fn critic_input(states: &[f32], actions: &[f32]) -> Vec<f32> {
    [states, actions, &[1.0; BATCH]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learns_what_each_state_wants() {
        // One step per episode; the reward is best if the action is the first number of the state.
        let mut agent = Agent::new(4096, 1);
        let mut random = Random::new(2);
        let state = |x: f64| {
            let mut state = [0.5; STATE];
            state[0] = x as f32;
            state
        };
        for _ in 0..600 {
            let (x, a) = (random.uniform(), random.uniform());
            let reward = -(4.0 * (a - x).powi(2)) as f32;
            agent.observe(Step { state: state(x), action: a as f32, reward, done: true });
            agent.observe(Step { state: state(x), action: 0.0, reward: 0.0, done: false });
        }
        (0..1500).for_each(|_| agent.update());
        for x in [0.1, 0.3, 0.5, 0.7, 0.9] {
            let action = agent.act(&state(x), Some(1e-9));
            assert!((action - x).abs() < 0.12, "{x}: {action}");
        }
    }

    #[test]
    fn noise_is_a_normal_distribution_that_is_cut_off() {
        let mut agent = Agent::new(16, 1);
        let state = [0.5; STATE];
        let mean = agent.act(&state, Some(1e-9));
        let draws = 20_000;
        for deviation in [0.1, 0.5] {
            // Simpson's rule over the interval.
            let density = |x: f64| (-0.5 * ((x - mean) / deviation).powi(2)).exp();
            let integral = |f: &dyn Fn(f64) -> f64| {
                (0..=200)
                    .map(|i| f(i as f64 / 200.0) * [1.0, 4.0, 2.0][if i % 200 == 0 { 0 } else { 2 - i % 2 }])
                    .sum::<f64>()
            };
            let expected = integral(&|x| x * density(x)) / integral(&density);
            let expected_square = integral(&|x| x * x * density(x)) / integral(&density);
            let (mut sum, mut square) = (0.0, 0.0);
            for _ in 0..draws {
                let action = agent.act(&state, Some(deviation));
                assert!((0.0..=1.0).contains(&action));
                (sum, square) = (sum + action, square + action * action);
            }
            assert!((sum / f64::from(draws) - expected).abs() < 0.01);
            assert!((square / f64::from(draws) - expected_square).abs() < 0.01);
        }
    }
}
