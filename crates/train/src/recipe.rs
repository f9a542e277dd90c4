//! How a network is trained: everything that decides the result, as one value that can be written down.

use crate::{loss::Objective, network::Goal, optimizer::Rule, quantizers::Method, schedule::Decay};
use std::{fmt, ops::Range};

/// How BatchNormalization and quantized weights go together. Where weights are folded, the factors `γ/√(σ² + ε)` are constants of the
/// gradient: `γ` learns as the scale of the normalization that it also is, not through the rounding of the weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fold {
    /// `none`: weights are quantized as they are; the normalization becomes a scale per channel of the deployed weight.
    #[default]
    None,
    /// `batch`: weights are quantized as folded with the statistics of the batch, of the layer with float weights (Jacob et al. 2018,
    /// section 3.2); running statistics after the freeze.
    Batch,
    /// `corrected`: weights are quantized as folded with running statistics; batch statistics, of the layer with float weights, until
    /// the freeze, corrected for (Krishnamoorthi 2018, section 3.2.2).
    Corrected,
    /// `running`: the same with running statistics throughout.
    Running,
    /// `merged`: folded for good before training.
    Merged,
}

impl Fold {
    /// Every option with its name.
    pub const ALL: [(&'static str, Fold); 5] = [
        ("none", Fold::None),
        ("batch", Fold::Batch),
        ("corrected", Fold::Corrected),
        ("running", Fold::Running),
        ("merged", Fold::Merged),
    ];

    /// What `method` folds with unless something else is asked for.
    pub fn of(method: Option<Method>) -> Fold {
        if method == Some(Method::LsqBn) { Fold::Corrected } else { Fold::None }
    }

    /// Share of the epochs after which normalizations freeze unless something else is asked for.
    pub fn freeze_at(self) -> f64 {
        if self.on_folded() { 0.5 } else { 1.0 }
    }

    /// Whether quantizers are on folded weights while the normalization is still there.
    pub fn on_folded(self) -> bool {
        matches!(self, Fold::Batch | Fold::Corrected | Fold::Running)
    }
}

impl fmt::Display for Fold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Fold::ALL.iter().find(|(_, fold)| fold == self).map_or("none", |(name, _)| name))
    }
}

/// Some epochs with one goal. Later phases start from the values of the one before.
#[derive(Clone, Debug)]
pub struct Phase {
    /// Epochs.
    pub epochs: usize,
    /// What is trained towards; `None` trains in float.
    pub goal: Option<Goal>,
}

/// A training.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// One after the other.
    pub phases: Vec<Phase>,
    /// Batch normalization and weights.
    pub fold: Fold,
    /// Share of the epochs after which normalizations use running statistics.
    pub freeze_at: f64,
    /// Share of the epochs after which offsets are whole numbers of steps.
    pub snap_at: f64,
    /// How steps are made.
    pub rule: Rule,
    /// Largest learning rate.
    pub learning_rate: f64,
    /// Multiplies it for the numbers of quantizers.
    pub quantizer_rate: f64,
    /// Weight decay of weights.
    pub weight_decay: f64,
    /// Weight decay of the numbers of quantizers.
    pub quantizer_decay: f64,
    /// How the learning rate falls.
    pub decay: Decay,
    /// Epochs of linear warm-up.
    pub warmup: f64,
    /// The loss.
    pub objective: Objective,
    /// Strength of the kurtosis regulariser, 0 for none.
    pub kure: f64,
    /// Largest norm of the gradient, 0 for any.
    pub clip_norm: f64,
    /// Batches for one step.
    pub accumulate: usize,
    /// Compute most layers again in the backward pass, to save memory; the result is the same.
    pub recompute: bool,
    /// Decay of the moving average of the parameters, 0 for none.
    pub average: f64,
    /// Batches that statistics of normalizations are taken from anew before an epoch is scored, 0 for running averages.
    pub reestimation: usize,
    /// Everything random depends on it.
    pub seed: u64,
}

impl Recipe {
    /// One phase of Nesterov's SGD along a cosine, with what its method folds with and the rate of its scales; nothing else.
    pub fn new(phase: Phase, learning_rate: f64) -> Recipe {
        let method = phase.goal.as_ref().map(|goal| goal.method);
        let fold = Fold::of(method);
        Recipe {
            phases: vec![phase],
            fold,
            freeze_at: fold.freeze_at(),
            snap_at: 0.5,
            rule: Rule::Sgd { momentum: 0.9, nesterov: true },
            learning_rate,
            quantizer_rate: method.map_or(1.0, Method::quantizer_rate),
            weight_decay: 1e-4,
            quantizer_decay: 0.0,
            decay: Decay::Cosine { floor: 0.0 },
            warmup: 0.0,
            objective: Objective::default(),
            kure: 0.0,
            clip_norm: 0.0,
            accumulate: 1,
            recompute: false,
            average: 0.0,
            reestimation: 0,
            seed: 0,
        }
    }

    /// The learning rate that trainings towards `goal` (`None`: in float) usually need, by SGD with momentum and for batches of 128 images.
    pub fn usual_rate(goal: Option<&Goal>, fold: Fold) -> f64 {
        match goal {
            None => 0.1,
            // Without normalization, large steps diverge.
            Some(_) if fold == Fold::Merged => 0.0005,
            Some(goal) if !goal.policy.is_low() => 0.001,
            // Nor with one that is frozen half of the time.
            Some(_) if fold.on_folded() => 0.0025,
            Some(_) => 0.01,
        }
    }

    /// Epochs of all phases.
    pub fn epochs(&self) -> usize {
        self.phases.iter().map(|phase| phase.epochs).sum()
    }

    /// The number of the phase that `epoch` is in, the last one after the end, and its epochs.
    pub fn phase(&self, epoch: usize) -> (usize, Range<usize>) {
        let mut found = (0, 0..0);
        for (i, phase) in self.phases.iter().enumerate() {
            let begin = found.1.end;
            found = (i, begin..begin + phase.epochs);
            if found.1.contains(&epoch) {
                break;
            }
        }
        found
    }
}
