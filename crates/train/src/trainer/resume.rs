//! A training taken down as a [`Checkpoint`], and gone on from one.

use super::{Setup, run::Run};
use crate::{
    TrainError,
    checkpoint::{Checkpoint, Identity},
    random::Random,
    recipe::Recipe,
};
use fewbits_data::Loader;
use fewbits_graph::tape::Leaves;
use fewbits_quant::plan::model_sha256;

impl Run<'_> {
    pub(super) fn go_on(&mut self, checkpoint: Checkpoint) -> Result<(), TrainError> {
        if let Some(what) = self.identity.difference(&checkpoint.identity) {
            return Err(TrainError::OtherRun { what });
        }
        self.step = checkpoint.step;
        // The state is of the stage of the last step made; the next one is entered when its first step is made.
        let stage = self.stage_of(self.step.saturating_sub(1) / self.steps_per_epoch());
        self.enter(stage, false)?;
        let fits = checkpoint.values.len() == self.leaves.values.len()
            && checkpoint.statistics.len() == self.leaves.statistics.len()
            && self
                .average
                .as_ref()
                .is_none_or(|both| [0, 1].iter().all(|&i| both[i].values.len() == checkpoint.average[i].len()))
            && [0, checkpoint.statistics.len()].contains(&checkpoint.best[1].len());
        if !fits {
            return Err(TrainError::OtherRun { what: "another number of parameters" });
        }
        self.leaves.values = checkpoint.values;
        self.leaves.statistics = checkpoint.statistics;
        self.optimizer.resume(checkpoint.optimizer)?;
        for (average, values) in self.average.iter_mut().flatten().zip(checkpoint.average) {
            (average.values, average.updates) = (values, checkpoint.average_updates);
        }
        self.best = checkpoint.best;
        self.best_score = checkpoint.best_score;
        self.tally = checkpoint.tally;
        Ok(())
    }

    pub(super) fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            identity: self.identity.clone(),
            step: self.step,
            values: self.leaves.values.clone(),
            statistics: self.leaves.statistics.clone(),
            optimizer: self.optimizer.state().clone(),
            average: self.average.as_ref().map(|both| both.each_ref().map(|a| a.values.clone())).unwrap_or_default(),
            average_updates: self.average.as_ref().map_or(0, |[values, _]| values.updates),
            best: self.best.clone(),
            best_score: self.best_score,
            tally: self.tally,
        }
    }
}

/// What must be the same for a run to go on.
pub(super) fn identity(setup: &Setup<'_>) -> Identity {
    let leaves = Leaves::new(setup.graph, &Default::default());
    let parameters: Vec<String> =
        leaves.parameters.iter().map(|leaf| format!("{}{:?}", leaf.name, leaf.dims)).collect();
    let loaders = [setup.training, setup.validation];
    let batches = loaders.map(Loader::settings);
    // Recomputing changes no number.
    let recipe = Recipe { recompute: false, ..setup.recipe.clone() };
    let teacher = setup.teacher.map(model_sha256);
    let start = model_sha256(setup.graph);
    let scaled = setup.scaled.iter().map(|(name, factors)| (name, mixed(factors.iter().map(|f| f.to_bits().into()))));
    let scaled: Vec<_> = scaled.collect();
    Identity {
        settings: format!("{recipe:?} {} {batches:?}", setup.target.name),
        network: format!("{start} {scaled:?} {teacher:?} {}", parameters.join(" ")),
        data: format!("{:?}", loaders.map(|loader| (fingerprint(loader), loader.batches()))),
    }
}

/// A number that other files or labels would change.
fn fingerprint(loader: &Loader) -> u64 {
    loader.labels().fold(0, |so_far, (sample, label)| {
        let name = loader.dataset().name(sample);
        let bytes = name.file_name().unwrap_or_default().as_encoded_bytes();
        let words = bytes.chunks(8).map(|part| part.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)));
        mixed([so_far, label as u64].into_iter().chain(words))
    })
}

/// A number that other words would change.
fn mixed(words: impl Iterator<Item = u64>) -> u64 {
    Random::keyed(&words.collect::<Vec<_>>()).next_u64()
}
