//! What an epoch is worth: its score, whether it can be the result, and how wide the steps of its quantizers are.

use super::{EpochReport, run::Run, score};
use crate::TrainError;
use fewbits_graph::tape::{Leaves, quantizer_leaf};

impl Run<'_> {
    pub(super) fn score_epoch(
        &mut self,
        epoch: usize,
        loss: f64,
        training_top1: f64,
    ) -> Result<EpochReport, TrainError> {
        let mut leaves = self.scored_leaves();
        self.reestimate(epoch, &mut leaves)?;
        let top1 = score(&self.network, &self.quantizers, &leaves, self.setup.validation, self.setup.threads)?;
        let not_final = self.not_final(&leaves);
        let best = not_final.is_none() && self.best_score.is_none_or(|(score, _)| top1 > score);
        if best {
            self.best_score = Some((top1, epoch));
            self.best = [leaves.values.clone(), leaves.statistics.clone()];
        }
        Ok(EpochReport { epoch, loss, training_top1, top1, scales: self.scales(&leaves), best, not_final })
    }

    /// Why the epoch cannot be the result: it does not compute what the last one will, or does not round.
    fn not_final(&self, leaves: &Leaves) -> Option<&'static str> {
        let last = self.stage_of(self.recipe().epochs().saturating_sub(1));
        let frozen = self.stage.frozen == last.frozen || leaves.statistics.is_empty();
        let reasons = [
            (self.stage.phase != last.phase, "not yet the last bits"),
            (!frozen, "statistics not yet frozen"),
            (self.quantizers.unsettled(leaves), "offsets or ranges not yet settled"),
        ];
        reasons.into_iter().find(|(holds, _)| *holds).map(|(_, reason)| reason)
    }

    /// The leaves to score and ship: averaged, if they are averaged.
    pub(super) fn scored_leaves(&self) -> Leaves {
        let mut leaves = self.leaves.clone();
        if let Some([values, statistics]) = &self.average {
            leaves.values.clone_from(&values.values);
            leaves.statistics.clone_from(&statistics.values);
            self.quantizers.project(&mut leaves);
        }
        leaves
    }

    /// The scale of each quantizer that learns one, averaged over its groups.
    fn scales(&self, leaves: &Leaves) -> Vec<(String, f32)> {
        let scale = |name: &String| {
            let quantizer = self.quantizers.get(name)?;
            let learned = quantizer.learned();
            let numbers = leaves.get(&quantizer_leaf(name)).filter(|_| learned > 0)?;
            let scales: Vec<f32> = numbers.chunks_exact(learned).filter_map(|group| quantizer.scale(group)).collect();
            (!scales.is_empty()).then(|| (name.clone(), scales.iter().sum::<f32>() / scales.len() as f32))
        };
        self.quantizers.all.keys().filter_map(scale).collect()
    }
}
