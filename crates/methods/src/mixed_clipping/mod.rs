//! Mixed clipping: the clipping rule that is best for each layer at its own bits.
//!
//! # What it does
//! Each layer's weights are rounded under every rule of [`CLIPS`], and the rule with the least error of the layer's *outputs* is kept:
//! `Σ v G vᵀ` over its channels, `v = ŵ − w`, with the moments `G` of the inputs that the quantized network gives it, from samples that
//! were held back. So a rule is judged by what the layer multiplies, and not by the weights alone. What clipping and rounding add to the
//! mean of the outputs goes off the bias.
//!
//! [`MixedClipping::tune`] judges rules by what the whole network puts out instead: one layer after the other, all others as they stand.
//!
//! # When it helps
//! Mixed precision: a rule that is right at eight bits (no clipping) is wrong at three, and layers differ in their distributions. It costs
//! nothing at run time, and it is a good start for methods that change codes.
//!
//! # When it fails
//! All codes are the nearest ones: at four bits and fewer most of what can be won is in other codes (`comq`, `adaround`).
//!
//! # Cost
//! One pass over the samples for each layer, and `O(outputs · K²)` per rule; by the network's outputs, up to ten passes for each layer.
//!
//! # Config
//! [`Config`].
//!
//! # Source
//! Huang et al., mixed clipping for mixed precision (2021): weights are clipped according to the bits that were searched, before they are
//! quantized. The candidates and the objective are those of the clipping literature ([`crate::clipping`]) and of ours.
//!
//! # Departures
//! The selection: the paper does not say how a rule is chosen; the least output error is our reading, and the least loss of the network the
//! other.

mod network;

use crate::{
    BlockMethod, Draft, MethodError, Walk,
    clipping::{CLIPS, Clip, Rounded, Weights, round_layers},
    moments::{Left, Moments},
};
use fewbits_kernels::Threads;
use std::{
    fmt,
    sync::{Mutex, PoisonError},
};

/// Which rules are tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The rules; of equals the first.
    pub clips: Vec<Clip>,
}

impl Default for Config {
    fn default() -> Self {
        Config { clips: CLIPS.to_vec() }
    }
}

/// Which rule a layer got.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Its weight.
    pub weight: String,
    /// Bits of its grid.
    pub bits: u8,
    /// The rule.
    pub clip: Clip,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} at {} bits", self.weight, self.clip, self.bits)
    }
}

/// The method.
#[derive(Debug, Default)]
pub struct MixedClipping {
    /// Which rules are tried.
    pub config: Config,
    choices: Mutex<Vec<Choice>>,
    left: Left,
}

impl MixedClipping {
    /// The rules of the layers so far, in order.
    pub fn choices(&self) -> Vec<Choice> {
        self.choices.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The rule with the least output error, with the weights that it makes.
    fn choose(&self, weights: &Weights<'_>, moments: &Moments, threads: &Threads) -> Option<(Clip, Rounded)> {
        let candidate = |clip: &Clip| Some((*clip, weights.rounded(weights.scales(*clip, threads)?)));
        let mut candidates: Vec<(Clip, Rounded)> = self.config.clips.iter().filter_map(candidate).collect();
        let by_group = weights.each_group(threads, |group| {
            let rows: Vec<&[f32]> = candidates.iter().map(|(_, new)| weights.part(&new.rows, group)).collect();
            weights.output_errors(moments.judge(), group, &rows)
        });
        let error = |i: usize| by_group.iter().map(|errors| errors[i]).sum::<f64>();
        let best = (0..candidates.len()).min_by(|&a, &b| error(a).total_cmp(&error(b)))?;
        Some(candidates.swap_remove(best))
    }
}

impl BlockMethod for MixedClipping {
    fn name(&self) -> &'static str {
        "mixed-clipping"
    }

    fn improve(&self, walk: &Walk<'_>, draft: &mut Draft) -> Result<(), MethodError> {
        round_layers(walk, draft, &self.left, |weights, moments, layer| {
            let Some((clip, rounded)) = self.choose(weights, moments, walk.threads()) else {
                return weights.rounded(weights.params.scale.clone());
            };
            let choice = Choice { weight: layer.weight.clone(), bits: weights.bits(), clip };
            self.choices.lock().unwrap_or_else(PoisonError::into_inner).push(choice);
            rounded
        })
    }

    fn findings(&self) -> Vec<String> {
        self.choices().iter().map(Choice::to_string).chain(self.left.findings()).collect()
    }
}

#[cfg(test)]
mod tests;
