//! Re-estimation: statistics of normalizations for leaves that stand still, before an epoch is scored.
//!
//! Running averages are those of the last ten batches or so, each with other weights. In few bits weights jump from code to code, and outputs
//! with them, so that these averages fit no weights at all. `μ = 1/N Σ mean(batch k)` and `σ² = 1/N Σ variance(batch k)` over `N` training
//! batches fit those that are scored and shipped. Training itself goes on with its running averages. (Nagel et al., "Overcoming
//! Oscillations in Quantization-Aware Training", ICML 2022, where all methods get it.)

use super::run::Run;
use crate::TrainError;
use fewbits_graph::{
    Op,
    tape::{Leaves, Tape},
};

impl Run<'_> {
    /// Gives `leaves` the mean statistics of the first batches of the epoch after `epoch`, as many as the recipe says. Statistics that are
    /// frozen stay, as weights have learned with them; so do those that weights are folded with, which are trained with running averages.
    pub(super) fn reestimate(&self, epoch: usize, leaves: &mut Leaves) -> Result<(), TrainError> {
        let recipe = self.recipe();
        if self.stage.frozen || recipe.fold.on_folded() || leaves.statistics.is_empty() || recipe.reestimation == 0 {
            return Ok(());
        }
        // Without momentum, what a pass leaves behind is its batch's.
        let mut graph = self.network.graph().clone();
        for node in &mut graph.nodes {
            if let Op::BatchNormalization(bn) = &mut node.op {
                bn.momentum = 0.0;
            }
        }
        let mut config = self.config();
        config.forward_only = true;
        let mut tape = None;
        let mut means: Vec<f64> = leaves.statistics.iter().map(|&x| x.into()).collect();
        for (count, batch) in self.setup.training.epoch(epoch as u64 + 1, 0).take(recipe.reestimation).enumerate() {
            let batch = batch?;
            // Batches are of one size: what would be left over at the end of an epoch is left out.
            let tape = match &mut tape {
                Some(tape) => tape,
                None => tape.insert(Tape::compile(&graph, leaves, std::slice::from_ref(&batch.shape), &config)?),
            };
            let unrounded = self.network.round_biases(&self.quantizers, leaves);
            tape.forward(leaves, &[&batch.data], self.setup.threads);
            unrounded.restore(leaves);
            for (mean, found) in means.iter_mut().zip(&mut leaves.statistics) {
                *mean += (f64::from(*found) - *mean) / (count + 1) as f64;
                // Biases are rounded with the best that is known.
                *found = *mean as f32;
            }
        }
        // Weights that overflow are an error of the next step. Should there be none, an earlier epoch is the result.
        if means.iter().any(|mean| !mean.is_finite()) {
            leaves.statistics.clone_from(&self.scored_leaves().statistics);
        }
        Ok(())
    }
}
