//! The loop: batches in, steps made, epochs scored, checkpoints written.
//!
//! What enters: a graph, a recipe, loaders of batches. What leaves: the values of the leaves, last and best. Whoever watches gets
//! every step and epoch. Nothing here depends on time or on the number of threads, so that a run that goes on from a checkpoint
//! ends in the same bits.

mod finite;
mod reestimation;
mod resume;
mod run;
mod scoring;
mod step;

use crate::{
    TrainError,
    checkpoint::Checkpoint,
    loss::{Loss, hits},
    network::{Network, Quantizers},
    recipe::Recipe,
};
use fewbits_data::Loader;
use fewbits_graph::{
    Graph,
    tape::{Leaves, Statistics, Tape},
};
use fewbits_kernels::Threads;
use fewbits_quant::target::Target;
use run::Run;
use std::collections::BTreeMap;

/// What a training needs.
#[derive(Debug)]
pub struct Setup<'a> {
    /// The float network.
    pub graph: &'a Graph,
    /// What elements of its constants were multiplied by, by name, where it is another one scaled: they learn as if they were not.
    pub scaled: &'a BTreeMap<String, Vec<f32>>,
    /// Where it will run.
    pub target: &'a Target,
    /// How it is trained.
    pub recipe: &'a Recipe,
    /// Batches to train on.
    pub training: &'a Loader,
    /// Batches to score epochs on.
    pub validation: &'a Loader,
    /// A float network to learn from too.
    pub teacher: Option<&'a Graph>,
    /// Worker threads.
    pub threads: &'a Threads,
}

/// One step, when it is done.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// Counted from 0.
    pub step: usize,
    /// Steps of the whole training.
    pub steps: usize,
    /// The epoch it belongs to.
    pub epoch: usize,
    /// Loss of its batch, or of its batches.
    pub loss: Loss,
    /// Their images.
    pub images: usize,
    /// Learning rate of weights.
    pub learning_rate: f64,
}

/// One epoch, when it is scored.
#[derive(Clone, Debug)]
pub struct EpochReport {
    /// Counted from 0.
    pub epoch: usize,
    /// Mean loss of its training batches.
    pub loss: f64,
    /// Share of training images classified right, percent.
    pub training_top1: f64,
    /// Share of validation images classified right, percent, as trained (fake quantization).
    pub top1: f64,
    /// Scale of each quantizer that learns one and rounds, averaged over its groups.
    pub scales: Vec<(String, f32)>,
    /// Whether it is the best so far.
    pub best: bool,
    /// Why it cannot be the result, whatever its score.
    pub not_final: Option<&'static str>,
}

/// Sees a training go by. An error, if what is seen cannot be kept, ends the training.
pub trait Watcher {
    /// When nothing stands in the way of step `step` and those after it.
    ///
    /// # Errors
    /// As all of these.
    fn begin(&mut self, step: usize) -> Result<(), TrainError>;
    /// After each step.
    ///
    /// # Errors
    /// As all of these.
    fn step(&mut self, report: &StepReport) -> Result<(), TrainError>;
    /// Before an epoch is scored.
    fn scoring(&mut self, _epoch: usize) {}
    /// After each epoch.
    ///
    /// # Errors
    /// As all of these.
    fn epoch(&mut self, report: &EpochReport) -> Result<(), TrainError>;
    /// Whether the state is wanted after `step` steps.
    fn wants_checkpoint(&mut self, step: usize) -> bool;
    /// The state.
    ///
    /// # Errors
    /// As all of these.
    fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), TrainError>;
}

/// A finished training.
#[derive(Debug)]
pub struct Outcome {
    /// The network in its two forms.
    pub network: Network,
    /// The quantizers of the last phase.
    pub quantizers: Quantizers,
    /// The leaves of the best epoch under the last settings.
    pub leaves: Leaves,
    /// Its score, percent, and its number.
    pub best: (f64, usize),
}

/// Trains.
///
/// # Errors
/// [`TrainError`]: of the network, the data, the method; [`TrainError::NotFinite`] if it diverges.
pub fn train(setup: &Setup<'_>, resume: Option<Checkpoint>, watcher: &mut dyn Watcher) -> Result<Outcome, TrainError> {
    let mut run = Run::new(setup, resume)?;
    watcher.begin(run.step)?;
    while run.step < run.steps() {
        run.epoch(watcher)?;
    }
    let (score, epoch) = run.best_score.unwrap_or((0.0, run.step / run.steps_per_epoch()));
    let mut leaves = run.leaves.clone();
    if let [values, statistics] = &run.best
        && values.len() == leaves.values.len()
    {
        leaves.values.clone_from(values);
        leaves.statistics.clone_from(statistics);
    }
    Ok(Outcome { network: run.network, quantizers: run.quantizers, leaves, best: (score, epoch) })
}

/// Share of images of `loader` that the network classifies right, percent, computed as it is trained.
///
/// # Errors
/// As [`train`].
pub fn score(
    network: &Network,
    quantizers: &Quantizers,
    leaves: &Leaves,
    loader: &Loader,
    threads: &Threads,
) -> Result<f64, TrainError> {
    let mut tapes: Vec<(Vec<usize>, Tape)> = Vec::new();
    let (mut right, mut all) = (0, 0);
    let mut leaves = leaves.clone();
    // The copy stays as it ships.
    let _ = network.round_biases(quantizers, &mut leaves);
    for batch in loader.epoch(0, 0) {
        let batch = batch?;
        if !tapes.iter().any(|(shape, _)| *shape == batch.shape) {
            let mut config = network.config(quantizers, Statistics::Running);
            config.forward_only = true;
            let tape = Tape::compile(network.graph(), &leaves, std::slice::from_ref(&batch.shape), &config)?;
            tapes.push((batch.shape.clone(), tape));
        }
        let Some((_, tape)) = tapes.iter_mut().find(|(shape, _)| *shape == batch.shape) else { continue };
        tape.forward(&mut leaves, &[&batch.data], threads);
        right += hits(tape.output(0), &batch.labels);
        all += batch.labels.len();
    }
    Ok(100.0 * right as f64 / all.max(1) as f64)
}
