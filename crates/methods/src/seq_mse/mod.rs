//! Sequential MSE: for each channel the scale of least output error, layer after layer.
//!
//! # What it does
//! For each output channel the scales `max|w| · k / (20 · qmax)`, `k = 1…20`, are tried, and the one with the least `Σ (ŵ·x̂ − w·x̂)²` is
//! kept, where `x̂` is what the network gives the layer with all layers before it quantized in their final form. A channel keeps the scale
//! it had if that is better on samples that were held back. What rounding adds to the mean goes off the bias.
//!
//! # When it helps
//! At four bits and fewer, where clips matter: it knows which weights meet large inputs.
//!
//! # When it fails
//! With a handful of samples. All codes are the nearest ones: `comq` searches codes as well.
//!
//! # Cost
//! One pass over the samples for each layer, and `20 · outputs · K²`.
//!
//! # Config
//! [`Config`].
//!
//! # Source
//! The sequential MSE of AIMET (Qualcomm), with quantized inputs on both sides of the loss.
//!
//! # Departures
//! The error is that about its mean, since the bias takes the mean. Moments in place of stored inputs ([`crate::moments`]); samples held
//! back; weights of all widths, not only up to four bits.

use crate::{
    BlockMethod, Draft, MethodError, Walk,
    clipping::{Weights, largest, round_layers, rounded},
    moments::{Left, Moments},
};

/// Which scales are tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How many candidates there are, evenly spread up to the scale that clips nothing.
    pub candidates: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config { candidates: 20 }
    }
}

/// The method.
#[derive(Debug, Default)]
pub struct SeqMse {
    /// Which scales are tried.
    pub config: Config,
    left: Left,
}

impl BlockMethod for SeqMse {
    fn name(&self) -> &'static str {
        "seq-mse"
    }

    fn improve(&self, walk: &Walk<'_>, draft: &mut Draft) -> Result<(), MethodError> {
        round_layers(walk, draft, &self.left, |weights, moments, _| {
            let scale = weights.each_group(walk.threads(), |group| self.scale(weights, moments, group));
            weights.rounded(scale)
        })
    }

    fn findings(&self) -> Vec<String> {
        self.left.findings()
    }
}

impl SeqMse {
    fn scale(&self, weights: &Weights<'_>, moments: &Moments, group: usize) -> f32 {
        let (row, current) = (weights.group(group), weights.params.scale[group]);
        let share = |k: usize| weights.scale(group, Some(largest(row) * k as f32 / self.config.candidates as f32));
        let scales: Vec<f32> = (1..=self.config.candidates).map(share).collect();
        let on_grid = |scale: &f32| rounded(row, *scale, weights.bits());
        let candidates: Vec<Vec<f32>> = scales.iter().map(on_grid).collect();
        let errors = weights.output_errors(&moments.fit, group, &candidates);
        let Some(best) = (0..scales.len()).min_by(|&a, &b| errors[a].total_cmp(&errors[b])) else { return current };
        let both = [&candidates[best], &on_grid(&current)];
        let held = weights.output_errors(moments.judge(), group, &both);
        if held[1] < held[0] { current } else { scales[best] }
    }
}

#[cfg(test)]
mod tests;
