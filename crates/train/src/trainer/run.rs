//! A training under way: what it is made of, stages entered, epochs run through.

use super::{Setup, StepReport, Watcher, resume::identity};
use crate::{
    TrainError,
    checkpoint::{Checkpoint, Identity, Tally},
    ema::Ema,
    loss::{Loss, LossError},
    network::{Goal, Network, Quantizers},
    optimizer::{Group, Optimizer, State},
    quantizers::{Decays, Method},
    recipe::{Fold, Phase, Recipe},
    schedule::Schedule,
};
use fewbits_data::LabelledBatch;
use fewbits_graph::{
    Tensor,
    exec::{Executor, Mode, infer},
    tape::{Config, Kind, Leaf, Leaves, Statistics, Tape, quantizer_leaf},
};
use fewbits_quant::stats::sampling_stride;

/// Elements of an activation that its quantizer is set from.
const STARTING_ELEMENTS: usize = 1 << 16;

/// What changes the computation of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Stage {
    pub(super) phase: usize,
    snapped: bool,
    pub(super) frozen: bool,
}

/// What a training is made of between two steps.
pub(super) struct Run<'a> {
    pub(super) setup: &'a Setup<'a>,
    pub(super) network: Network,
    pub(super) stage: Stage,
    pub(super) quantizers: Quantizers,
    pub(super) leaves: Leaves,
    pub(super) optimizer: Optimizer,
    /// Of values and of statistics.
    pub(super) average: Option<[Ema; 2]>,
    pub(super) gradients: Vec<f32>,
    pub(super) tapes: Vec<(Vec<usize>, Tape)>,
    pub(super) teacher: Option<Executor<'a>>,
    pub(super) step: usize,
    pub(super) best: [Vec<f32>; 2],
    pub(super) best_score: Option<(f64, usize)>,
    pub(super) tally: Tally,
    pub(super) identity: Identity,
}

impl<'a> Run<'a> {
    pub(super) fn new(setup: &'a Setup<'a>, resume: Option<Checkpoint>) -> Result<Self, TrainError> {
        let recipe = setup.recipe;
        // The phase with the fewest bits says where slots are; of equal ones the last, whose single layers have the fewest.
        let goals = recipe.phases.iter().rev().filter_map(|phase| phase.goal.as_ref());
        let narrowest = goals.min_by_key(|goal| goal.policy.activation_bits);
        let network = Network::new(setup.graph, setup.target, narrowest, recipe.fold)?;
        let mut run = Run {
            setup,
            network,
            stage: Stage { phase: usize::MAX, snapped: false, frozen: false },
            quantizers: Quantizers::default(),
            leaves: Leaves::default(),
            optimizer: Optimizer::new(recipe.rule, vec![], 0),
            average: None,
            gradients: vec![],
            tapes: vec![],
            teacher: setup.teacher.map(|graph| Executor::new(graph, Mode::Float, setup.threads)),
            step: 0,
            best: Default::default(),
            best_score: None,
            tally: Tally::default(),
            identity: identity(setup),
        };
        run.leaves = Leaves::new(run.network.graph(), &Default::default());
        let classes = run.check_data()?;
        run.check_teacher(classes)?;
        match resume {
            None => run.enter(run.stage_of(0), true)?,
            Some(checkpoint) => run.go_on(checkpoint)?,
        }
        // Operators without a derivative show now, not after the first file is written.
        let shape = run.first_batch()?.shape.clone();
        run.tape(&shape)?;
        Ok(run)
    }

    /// How many classes the network has. Refuses labels of others, and fewer images than a step takes.
    fn check_data(&self) -> Result<usize, TrainError> {
        let Setup { training, validation, .. } = *self.setup;
        let facts = infer(self.network.graph(), &[[&[1], &self.image()?[..]].concat()])?;
        let output = self.setup.graph.outputs.first().and_then(|output| facts.get(&output.name));
        let classes = match output.map_or(&[][..], |fact| &fact.dims) {
            [1, classes, places @ ..] if places.iter().all(|&n| n == 1) => *classes,
            dims => return Err(TrainError::NoClassifier { dims: dims.to_vec() }),
        };
        for loader in [training, validation] {
            if let Some((sample, label)) = loader.labels().find(|(_, label)| *label >= classes) {
                return Err(TrainError::Label { sample: loader.dataset().name(sample), label, classes });
            }
        }
        if training.batches() < self.recipe().accumulate {
            return Err(TrainError::NoBatch);
        }
        for Phase { epochs, goal } in &self.recipe().phases {
            // What is left over at the end of an epoch makes no step.
            let accumulate = self.recipe().accumulate.max(1);
            let batches = epochs * (training.batches() / accumulate * accumulate);
            if let Some(Goal { method: Method::Qat, settings, .. }) = goal
                && batches < settings.delay as usize
            {
                return Err(TrainError::Delay { batches, delay: settings.delay });
            }
        }
        Ok(classes)
    }

    /// Refuses a teacher that cannot be computed on a batch, or knows another number of classes.
    fn check_teacher(&mut self, classes: usize) -> Result<(), TrainError> {
        let batch = self.first_batch()?;
        let Some(teacher) = &mut self.teacher else { return Ok(()) };
        let taught = teacher.run(&[Tensor::f32(&batch.shape, batch.data.clone())]).map_err(TrainError::Teacher)?;
        let (student, teacher) = (batch.labels.len() * classes, taught.first().map_or(0, Tensor::len));
        match student == teacher {
            true => Ok(()),
            false => Err(TrainError::Loss { step: 0, source: LossError::Teacher { student, teacher } }),
        }
    }

    pub(super) fn recipe(&self) -> &'a Recipe {
        self.setup.recipe
    }

    pub(super) fn steps_per_epoch(&self) -> usize {
        (self.setup.training.batches() / self.recipe().accumulate.max(1)).max(1)
    }

    pub(super) fn steps(&self) -> usize {
        self.steps_per_epoch() * self.recipe().epochs()
    }

    /// What an epoch computes.
    pub(super) fn stage_of(&self, epoch: usize) -> Stage {
        let recipe = self.recipe();
        let (phase, epochs) = recipe.phase(epoch);
        let share = (epoch - epochs.start.min(epoch)) as f64 / epochs.len().max(1) as f64;
        let last = epoch + 1 >= epochs.end;
        Stage {
            phase,
            snapped: last || share >= recipe.snap_at,
            frozen: recipe.fold == Fold::Running || share >= recipe.freeze_at,
        }
    }

    /// Enters a stage; with `start`, quantizers that are new are set from weights and a first batch.
    pub(super) fn enter(&mut self, stage: Stage, start: bool) -> Result<(), TrainError> {
        let before = std::mem::replace(&mut self.stage, stage);
        self.tapes.clear();
        let phase: &Phase = &self.recipe().phases[stage.phase];
        self.quantizers = match &phase.goal {
            None => Quantizers::default(),
            Some(goal) => {
                let mut goal = goal.clone();
                goal.settings.snapped = stage.snapped;
                self.network.quantizers(&goal, &self.image()?)?
            }
        };
        if before.phase != stage.phase {
            let old = std::mem::replace(&mut self.leaves, Leaves::new(self.network.graph(), &self.quantizers.all));
            self.carry_over(&old);
            if start && phase.goal.is_some() {
                self.network.start_weights(&self.quantizers, &mut self.leaves);
                self.start_activations()?;
            }
            let decay = self.recipe().average;
            let both = || [&self.leaves.values, &self.leaves.statistics].map(|now| Ema::new(now, decay));
            self.average = (decay > 0.0).then(both);
        }
        Ok(())
    }

    /// Values and momentum of the leaves that were there before.
    fn carry_over(&mut self, old: &Leaves) {
        for leaf in &self.leaves.parameters {
            // Widths may have changed: quantizers start anew.
            if let Some(values) = old.get(&leaf.name).filter(|_| leaf.kind != Kind::Quantizer) {
                self.leaves.values[leaf.range.clone()].copy_from_slice(values);
            }
        }
        if old.statistics.len() == self.leaves.statistics.len() {
            self.leaves.statistics.clone_from(&old.statistics);
        }
        let count = self.leaves.values.len();
        let mut state = self.optimizer.state().clone();
        self.optimizer = Optimizer::new(self.recipe().rule, self.groups(), count);
        let fresh = self.optimizer.state();
        // Quantizers come last, so what is kept is a prefix.
        let kept = self.leaves.parameters.iter().find(|l| l.kind == Kind::Quantizer).map_or(count, |l| l.range.start);
        let resized = |old: &[f32], new: &[f32]| -> Vec<f32> {
            let kept = kept.min(old.len()).min(new.len());
            [&old[..kept], &new[kept..]].concat()
        };
        state = State {
            steps: state.steps,
            first: resized(&state.first, &fresh.first),
            second: resized(&state.second, &fresh.second),
        };
        self.optimizer.resume(state).expect("the state was made for these groups");
        self.gradients = vec![0.0; count];
    }

    fn groups(&self) -> Vec<Group> {
        let recipe = self.recipe();
        let groups = |leaf: &Leaf| -> Vec<Group> {
            let whole = vec![leaf.range.clone()];
            let (learning_rate, weight_decay, ranges) = match leaf.kind {
                Kind::Quantizer => {
                    let tensor = leaf.name.strip_suffix(&quantizer_leaf("")).unwrap_or(&leaf.name);
                    let quantizer = self.quantizers.get(tensor);
                    let decay = match quantizer.map(|quantizer| quantizer.decays()) {
                        Some(Decays::AsWeights) => recipe.weight_decay,
                        Some(Decays::AsScales) => recipe.quantizer_decay,
                        Some(Decays::Never) | None => 0.0,
                    };
                    // What is in no group stays.
                    let ranges = match quantizer.map_or(0, |quantizer| quantizer.fixed()) {
                        0 => whole,
                        fixed => {
                            let learned = leaf.dims[1];
                            leaf.range.clone().step_by(learned).map(|start| start..start + learned - fixed).collect()
                        }
                    };
                    (recipe.quantizer_rate, decay, ranges)
                }
                Kind::Weight => (1.0, recipe.weight_decay, whole),
                Kind::Bias | Kind::Affine | Kind::Running => (1.0, 0.0, whole),
            };
            let (learning_rate, weight_decay) = (learning_rate as f32, weight_decay as f32);
            ranges.into_iter().map(|range| Group { range, learning_rate, weight_decay }).collect()
        };
        self.leaves.parameters.iter().filter(|leaf| !leaf.range.is_empty()).flat_map(groups).collect()
    }

    /// Dimensions of one image.
    fn image(&self) -> Result<Vec<usize>, TrainError> {
        Ok(self.first_batch()?.shape[1..].to_vec())
    }

    fn first_batch(&self) -> Result<LabelledBatch, TrainError> {
        let first = self.setup.training.epoch(0, 0).next();
        Ok(first.ok_or(TrainError::NoBatch)??)
    }

    /// Sets the numbers of activation quantizers from the first batch, each when those before it are set.
    fn start_activations(&mut self) -> Result<(), TrainError> {
        let batch = self.first_batch()?;
        // With the statistics that steps have: the running ones of a network with initial weights are those of nothing.
        let config = Config { stops: true, forward_only: true, recompute: false, ..self.config() };
        let mut tape = Tape::compile(self.network.graph(), &self.leaves, std::slice::from_ref(&batch.shape), &config)?;
        let quantizers = &self.quantizers;
        let statistics = self.leaves.statistics.clone();
        tape.forward_initializing(&mut self.leaves, &[&batch.data], self.setup.threads, &mut |name, x, numbers| {
            let Some(quantizer) = quantizers.get(name) else { return };
            let stride = sampling_stride(x.len(), STARTING_ELEMENTS);
            let some: Vec<f32> = x.iter().step_by(stride).copied().collect();
            numbers.copy_from_slice(&quantizer.initial(&some)[..numbers.len()]);
        });
        self.leaves.statistics = statistics;
        Ok(())
    }

    /// The rest of the epoch that the next step belongs to.
    pub(super) fn epoch(&mut self, watcher: &mut dyn Watcher) -> Result<(), TrainError> {
        let per_epoch = self.steps_per_epoch();
        let epoch = self.step / per_epoch;
        let stage = self.stage_of(epoch);
        if stage != self.stage {
            self.enter(stage, true)?;
        }
        let accumulate = self.recipe().accumulate.max(1);
        let mut batches = self.setup.training.epoch(epoch as u64, self.step % per_epoch * accumulate);
        while self.step / per_epoch == epoch && self.step < self.steps() {
            let (schedule, begun) = self.schedule();
            let factor = schedule.factor(self.step - begun);
            let learning_rate = self.recipe().learning_rate * factor;
            let mut total = vec![0.0; if accumulate > 1 { self.gradients.len() } else { 0 }];
            let (mut losses, mut images) = (Vec::with_capacity(accumulate), 0);
            for _ in 0..accumulate {
                let Some(batch) = batches.next() else { break };
                let batch = batch?;
                let found = self.gradient(&batch)?;
                self.tally.add(&found, batch.labels.len());
                losses.push(found);
                images += batch.labels.len();
                total.iter_mut().zip(&self.gradients).for_each(|(t, g)| *t += g / accumulate as f32);
            }
            if losses.is_empty() {
                break;
            }
            if accumulate > 1 {
                self.gradients = total;
            }
            self.update(learning_rate)?;
            let (step, steps) = (self.step, self.steps());
            self.step += 1;
            let loss = Loss::of_step(&losses);
            watcher.step(&StepReport { step, steps, epoch, loss, images, learning_rate })?;
            if !self.step.is_multiple_of(per_epoch) && watcher.wants_checkpoint(self.step) {
                watcher.checkpoint(&self.checkpoint())?;
            }
        }
        let Tally { loss, hits, images, batches } = std::mem::take(&mut self.tally);
        let training_top1 = 100.0 * hits as f64 / images.max(1) as f64;
        watcher.scoring(epoch);
        let report = self.score_epoch(epoch, loss / batches.max(1) as f64, training_top1)?;
        watcher.epoch(&report)?;
        watcher.checkpoint(&self.checkpoint())
    }

    /// The schedule of the phase that is on, and its first step.
    fn schedule(&self) -> (Schedule, usize) {
        let (recipe, steps_per_epoch) = (self.recipe(), self.steps_per_epoch());
        let (_, epochs) = recipe.phase(self.step / steps_per_epoch.max(1));
        let (decay, begun) = (recipe.decay.clone(), epochs.start * steps_per_epoch);
        (Schedule { decay, epochs: epochs.len() as f64, warmup: recipe.warmup, steps_per_epoch }, begun)
    }

    /// What a step computes in this stage.
    pub(super) fn config(&self) -> Config {
        let statistics = if self.stage.frozen { Statistics::Running } else { Statistics::Batch };
        let mut config = self.network.config(&self.quantizers, statistics);
        config.recompute = self.recipe().recompute;
        config.fold_batch = self.recipe().fold == Fold::Batch;
        config
    }
}
