//! Reconstruction: the roundings of a layer or a block learned by gradients, so that its output is that of the float network.
//!
//! What enters: a unit (a part of the walk's block), the draft, and for every sample what the quantized network gives the unit and what
//! the float network makes of it. What leaves: weights on their grids, biases, and scales of activations of fewer than eight bits. The
//! loss is `‖output − target‖²` per position, where elements count as much as the network's outputs depend on them (`fisher.rs`, with
//! [`Config::fisher`]) or outliers less than others (`outliers.rs`), plus AdaRound's regulariser `λ Σ (1 − |2h − 1|^β)`, `β` falling from 20 to 2 after a
//! warm-up. A unit is changed only if samples that were held back come closer.

pub(crate) mod fisher;
mod learner;
pub(crate) mod outliers;
mod rounding;
mod soft;
mod tally;

use crate::{Draft, Layer, MethodError, Walk, samples::is_held, walk::Side};
use fewbits_graph::{
    Graph, Tensor,
    exec::{Executor, Mode},
};
use fewbits_train::random::Random;
use learner::Learner;
pub(crate) use rounding::{NUMBERS, Rounding};
use std::{sync::Arc, time::Instant};
pub(crate) use tally::{Outcome, Tally};

/// Steps whose time says how many there can be, and the least that are worth it.
const TIMED_STEPS: usize = 5;
const LEAST_STEPS: usize = 50;

/// How roundings are learned.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Steps for each unit.
    pub iterations: usize,
    /// Samples of a step.
    pub batch: usize,
    /// `λ`, per position of the output, at four bits and fewer; a quarter of it with each bit more.
    pub regularizer: f32,
    /// Share of the steps without it.
    pub warm_up: f64,
    /// Probability that an element of an activation within the unit is not rounded.
    pub drop: f64,
    /// Probability that an element of the unit's input is the float network's. A unit that only ever sees the quantized network's noise
    /// learns to put out less, and less again in the next unit.
    pub mix: f64,
    /// Whether scales of activations of fewer than eight bits are learned.
    pub scales: bool,
    /// Whether elements of a block's output count by their Fisher information; else positions that are far larger than others count less.
    pub fisher: bool,
    /// Start of the random numbers.
    pub seed: u64,
    /// When the walk should be over, if that many steps would take longer: a block gets its share of the time that is left, and as many
    /// steps as the first ones let expect.
    pub deadline: Option<Instant>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            iterations: 500,
            batch: 16,
            regularizer: 0.01,
            warm_up: 0.2,
            drop: 0.0,
            mix: 0.5,
            scales: false,
            fisher: false,
            seed: 0,
            deadline: None,
        }
    }
}

/// A part of the walk's block that is learned at once.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Unit {
    /// What it reads.
    pub inputs: Vec<String>,
    /// What should be as in the float network.
    pub outputs: Vec<String>,
    /// Its layers.
    pub layers: Vec<Layer>,
    /// What each element of an image counts, with a mean of 1, for each output; positions count as outliers do if it is empty.
    pub importance: Vec<Vec<f32>>,
}

/// The data of a unit: by example, inputs of the quantized network and of the float network, and targets.
pub(crate) trait Examples: Sync {
    /// How many examples a sample has; they are numbered one behind the other.
    fn per_sample(&self) -> usize {
        1
    }

    /// Inputs of `example` on one side.
    ///
    /// # Errors
    /// Errors of the walk.
    fn inputs(&self, side: Side, example: usize) -> Result<Vec<Arc<Tensor>>, MethodError>;

    /// Float outputs of `example`.
    ///
    /// # Errors
    /// Errors of the walk.
    fn targets(&self, example: usize) -> Result<Vec<Arc<Tensor>>, MethodError>;
}

impl Examples for Walk<'_> {
    fn inputs(&self, side: Side, sample: usize) -> Result<Vec<Arc<Tensor>>, MethodError> {
        Walk::inputs(self, side, sample)
    }

    fn targets(&self, sample: usize) -> Result<Vec<Arc<Tensor>>, MethodError> {
        Walk::targets(self, sample)
    }
}

/// Learns the roundings of `unit`, whose computation is `part`, with `part`'s constants from the draft. Units that the tape cannot compute
/// image by image are left alone.
///
/// # Errors
/// Errors of the walk and of the network.
pub(crate) fn learn(
    walk: &Walk<'_>,
    draft: &mut Draft,
    unit: &Unit,
    part: &Graph,
    examples: &dyn Examples,
    config: &Config,
) -> Result<Outcome, MethodError> {
    let is_held = |i: &usize| is_held(i / examples.per_sample());
    let (held, seen): (Vec<usize>, Vec<usize>) = (0..walk.samples() * examples.per_sample()).partition(is_held);
    if seen.is_empty() {
        return Ok(Outcome::NoTime);
    }
    let begun = Instant::now();
    let time = config.deadline.map(|deadline| deadline.saturating_duration_since(begun).mul_f64(walk.share()));
    if time.is_some_and(|time| time.is_zero()) {
        return Ok(Outcome::NoTime);
    }
    let Some(mut learner) = Learner::new(walk, draft, unit, part, examples, config, seen.len())? else {
        return Ok(Outcome::NoDerivative);
    };
    let (learning, mut step) = (Instant::now(), 0);
    while step < learner.steps {
        learner.settle(step);
        let samples = (0..learner.batch).map(|i| seen[pick(config.seed, step, i, seen.len())]);
        learner.step(examples, &samples.collect::<Vec<_>>(), step, walk.threads())?;
        step += 1;
        if let (TIMED_STEPS, Some(time)) = (step, time) {
            let each = learning.elapsed().as_secs_f64() / step as f64;
            let fitting = step + (time.saturating_sub(begun.elapsed()).as_secs_f64() / each) as usize;
            if fitting < LEAST_STEPS.min(learner.steps) {
                return Ok(Outcome::NoTime);
            }
            learner.steps = learner.steps.min(fitting);
        }
    }
    let learned = learner.finish(walk.ground(), draft);
    let closer = held.is_empty() || {
        let error = |draft: &Draft| error_on(walk, part, draft, unit, examples, &held);
        error(&learned)? < error(draft)?
    };
    if closer {
        *draft = learned;
    }
    Ok(if closer { Outcome::Learned } else { Outcome::NotCloser })
}

/// A sample for place `i` of the batch of `step`.
pub(crate) fn pick(seed: u64, step: usize, i: usize, count: usize) -> usize {
    Random::keyed(&[seed, step as u64, i as u64]).below(count)
}

/// Squared error of the unit's outputs over `samples`, as `draft` computes them.
fn error_on(
    walk: &Walk<'_>,
    part: &Graph,
    draft: &Draft,
    unit: &Unit,
    examples: &dyn Examples,
    samples: &[usize],
) -> Result<f64, MethodError> {
    let mut part = part.clone();
    for (name, constant) in &mut part.constants {
        if let Some(changed) = draft.graph.constant(name) {
            *constant = changed.clone();
        }
    }
    let mut executor = Executor::new(&part, Mode::FakeQuant(&draft.grids), walk.threads());
    let mut sum = 0.0;
    for &sample in samples {
        let inputs = examples.inputs(Side::Quantized, sample)?.into_iter().map(Arc::unwrap_or_clone);
        let outputs = executor.run(&inputs.collect::<Vec<_>>())?;
        for (k, (output, target)) in outputs.iter().zip(examples.targets(sample)?).enumerate() {
            sum += outliers::squared_error(output, &target, unit.importance.get(k).map_or(&[], Vec::as_slice));
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests;
