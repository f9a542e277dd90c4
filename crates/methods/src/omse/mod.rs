//! OMSE: for each channel the scale of least squared weight error, by turns of codes and scale.
//!
//! # What it does
//! For a channel's weights `w`, codes `T = round(w / α)` and the scale that is best for them, `α = ⟨w, T⟩ / ⟨T, T⟩`, are computed in turns
//! until the codes stay; from several starting scales, of which the best result is kept. What rounding adds to the mean of the outputs
//! goes off the bias.
//!
//! # When it helps
//! Where no sample should decide anything but biases. The usual scales (`--weight-ranges mse`) minimise the same error by a search over
//! clips; this ends in an exact stationary point of it.
//!
//! # When it fails
//! It does not know which weights matter to the outputs.
//!
//! # Cost
//! Some hundreds of roundings of the weights; one pass over the samples for the biases.
//!
//! # Config
//! None.
//!
//! # Source
//! Choukroun, Kravchik, Yang, Kisilev, "Low-bit Quantization of Neural Networks for Efficient Inference" (ICCV workshops 2019), the
//! alternating optimisation.
//!
//! # Departures
//! No dual representation `w ≈ α₁T₁ + α₂T₂` of the worst channels: it is two layers in place of one, which runtimes do not have. The mean
//! error in the bias is not in the paper.

use crate::{
    BlockMethod, Draft, MethodError, Walk,
    clipping::{largest, round_layers, rounded},
    moments::Left,
};
use fewbits_graph::Grid;
use fewbits_kernels::float::vectors::dot;

/// Starting scales, as shares of the one that clips nothing, from 1.1 down in steps of 0.01: a few weights may meet codes better a
/// little beyond it.
const STARTS: usize = 90;
/// Turns, at most.
const TURNS: usize = 30;

/// The method.
#[derive(Debug, Default)]
pub struct Omse {
    left: Left,
}

impl BlockMethod for Omse {
    fn name(&self) -> &'static str {
        "omse"
    }

    fn improve(&self, walk: &Walk<'_>, draft: &mut Draft) -> Result<(), MethodError> {
        round_layers(walk, draft, &self.left, |weights, _, _| {
            let best = |group| best_scale(weights.group(group), weights.bits()).unwrap_or(weights.params.scale[group]);
            weights.rounded(weights.each_group(walk.threads(), best))
        })
    }

    fn findings(&self) -> Vec<String> {
        self.left.findings()
    }
}

/// The best scale found; `None` if there is nothing but zeros.
fn best_scale(row: &[f32], bits: u8) -> Option<f32> {
    let full = largest(row) / Grid::weights(bits).qmax() as f32;
    let error = |scale: f32| -> f64 {
        let pairs = rounded(row, scale, bits).into_iter().zip(row);
        pairs.map(|(new, old)| f64::from(new - old).powi(2)).sum()
    };
    let ends = (0..STARTS).map(|i| settle(row, full * (1.1 - 0.01 * i as f32), bits)).filter(|s| s.is_normal());
    ends.map(|scale| (error(scale), scale)).min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, scale)| scale)
}

/// Turns of codes and scale from `scale`, until the scale stays.
fn settle(row: &[f32], mut scale: f32, bits: u8) -> f32 {
    for _ in 0..TURNS {
        let new = rounded(row, scale, bits);
        // With codes times scale in place of codes: `α = scale · ⟨w, ŵ⟩ / ⟨ŵ, ŵ⟩`.
        let next = scale * dot(row, &new) / dot(&new, &new);
        if next == scale || !next.is_normal() || next <= 0.0 {
            break;
        }
        scale = next;
    }
    scale
}

#[cfg(test)]
mod tests;
