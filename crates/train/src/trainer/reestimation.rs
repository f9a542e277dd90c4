//! Re-estimation: statistics of normalizations for leaves that stand still, before an epoch is scored.
//!
//! Running averages are those of the last ten batches or so, each with other weights. In few bits weights jump from code to code, and outputs
//! with them, so that these averages fit no weights at all. `μ = 1/N Σ mean(batch k)` and `σ² = 1/N Σ variance(batch k)` over `N` training
//! batches fit those that are scored and shipped. Training itself goes on with its running averages. (Nagel et al., "Overcoming
//! Oscillations in Quantization-Aware Training", ICML 2022, where all methods get it.)

use super::run::Run;
use crate::TrainError;
use fewbits_graph::{Graph, Op, tape::Leaves};
use std::ops::Range;

/// Running means, or variances, of one normalization.
struct Statistic {
    range: Range<usize>,
    /// Weight of the old average, below 1.
    kept: f64,
    least: f64,
}

impl Statistic {
    fn all(graph: &Graph, leaves: &Leaves) -> Vec<Statistic> {
        let of = |node: &fewbits_graph::Node| {
            let Op::BatchNormalization(bn) = &node.op else { return vec![] };
            let statistic = |(input, least): (usize, f64)| {
                let leaf = leaves.running.iter().find(|leaf| Some(&*leaf.name) == node.input(input))?;
                Some(Statistic { range: leaf.range.clone(), kept: bn.momentum.into(), least })
            };
            let both = [(3, f64::NEG_INFINITY), (4, 0.0)];
            both.into_iter().filter_map(statistic).filter(|statistic| statistic.kept < 1.0).collect()
        };
        graph.nodes.iter().flat_map(of).collect()
    }

    /// What of `new = kept · old + (1 − kept) · batch` is the batch's.
    fn batch(&self, old: f32, new: f32) -> f64 {
        ((f64::from(new) - self.kept * f64::from(old)) / (1.0 - self.kept)).max(self.least)
    }
}

impl Run<'_> {
    /// Gives `leaves` the mean statistics of the first batches of the epoch behind `epoch`, as many as the recipe says. Statistics that are
    /// frozen stay; so do those that weights are folded with, which are trained with running averages.
    pub(super) fn reestimate(&mut self, epoch: usize, leaves: &mut Leaves) -> Result<(), TrainError> {
        let recipe = self.recipe();
        if self.stage.frozen || recipe.fold.on_folded() || leaves.statistics.is_empty() || recipe.reestimation == 0 {
            return Ok(());
        }
        let statistics = Statistic::all(self.network.graph(), leaves);
        let mut means = leaves.clone().statistics;
        for (count, batch) in self.setup.training.epoch(epoch as u64 + 1, 0).take(recipe.reestimation).enumerate() {
            let batch = batch?;
            let position = self.tape(&batch.shape)?;
            let old = leaves.statistics.clone();
            let unrounded = self.network.round_biases(&self.quantizers, leaves, false);
            self.tapes[position].1.forward(leaves, &[&batch.data], self.setup.threads);
            unrounded.restore(leaves);
            for statistic in &statistics {
                for i in statistic.range.clone() {
                    let found = statistic.batch(old[i], leaves.statistics[i]);
                    let mean = f64::from(means[i]);
                    means[i] = (mean + (found - mean) / (count + 1) as f64) as f32;
                }
            }
        }
        leaves.statistics = means;
        Ok(())
    }
}
