//! COMQ: codes and scales that minimise the squared output error of each layer, one coordinate after the other.
//!
//! # What it does
//! For each output channel it looks for integer codes `q` and a scale `s` with the least `Σ (s q·x̂ − w·x)²`, where `x̂` is what the
//! quantized network gives the layer and `x` what the float network gives it; the mean of the difference goes into the bias. All that the
//! error depends on are the moments of `x̂` ([`crate::moments`]), so that the search never looks at data again. It begins with the float
//! weights and fixes one coordinate after the other at its best code, those with the largest energy first; the coordinates behind make
//! up for the error of those before. Then it goes round and changes codes as long as that lowers the error, in turns with the scale that
//! is best for the codes, `s = q·(G w − t) / q G q`.
//!
//! # When it helps
//! At four bits and fewer it is most of the difference between a network that works and one that does not; at eight bits for thin
//! networks. It takes off the mean error too, as bias correction does.
//!
//! # When it fails
//! With a handful of samples, or where a layer sees one position per sample (classifiers): the moments then say nothing about most
//! directions. A ridge keeps the weights near the float ones there, and a channel is changed only if samples that were held back agree.
//! Layers of more than some 8,000 inputs, and ConvTranspose, are left as they are; findings name them.
//!
//! # Cost
//! One pass over the samples for each layer, `O(outputs · K²)` per sweep; no gradients. MobileNetV2 takes some tens of seconds.
//!
//! # Config
//! [`Config`].
//!
//! # Source
//! Zhang et al., "COMQ: A Backpropagation-Free Algorithm for Post-Training Quantization" (2024), §3, greedy order; the first round is the
//! error feedback of Frantar et al., "GPTQ" (ICLR 2023), without its matrix inverse.
//!
//! # Departures
//! The target is the float network's output on its own inputs, so that a layer makes up for errors before it (AdaRound's asymmetric
//! form), but for half of them only ([`Config::trust`]), and not for what the network clips away behind the layer ([`crate::moments`]). Several scales are tried. The ridge, the centred moments with the bias, and the samples held back are ours.

mod descent;

use crate::{
    BlockMethod, Draft, Layer, MethodError, Walk,
    clipping::{Rounded, Weights},
    moments::{Group, Left, Moments},
};
use descent::{Descent, Point, codes_of};
use fewbits_graph::{Granularity, QuantParams};

/// How the search is made.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Part of the mean energy of an input that is added to all, so that directions without data keep their weights.
    pub ridge: f32,
    /// How much of the errors before a layer it makes up for, from 0 to 1. All of it would be the least squared error; but errors are noise
    /// in part, and against noise least squares shrink the signal, layer after layer.
    pub trust: f32,
    /// Scales that are tried, as multiples of the draft's; weights with one scale keep it.
    pub scales: Vec<f32>,
    /// Rounds over all coordinates, at most.
    pub rounds: usize,
    /// Whether the mean error is taken off the bias.
    pub bias: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config { ridge: 0.1, trust: 0.5, scales: vec![1.0, 0.9, 0.8, 1.1], rounds: 20, bias: true }
    }
}

/// Turns of codes and scale.
const TURNS: usize = 3;
/// Most that a scale may shrink or grow.
const LEAST_FACTOR: f32 = 0.4;

/// The method.
#[derive(Debug, Default)]
pub struct Comq {
    /// How the search is made.
    pub config: Config,
    left: Left,
}

impl BlockMethod for Comq {
    fn name(&self) -> &'static str {
        "comq"
    }

    fn improve(&self, walk: &Walk<'_>, draft: &mut Draft) -> Result<(), MethodError> {
        let Some(block) = walk.block() else { return Ok(()) };
        for layer in &block.layers {
            if let Some(moments) = self.left.moments(walk, draft, layer)? {
                self.layer(walk, draft, layer, &moments);
            }
        }
        Ok(())
    }

    fn findings(&self) -> Vec<String> {
        self.left.findings()
    }
}

/// What becomes of an output channel.
struct Channel {
    /// `s q`
    row: Vec<f32>,
    scale: f32,
    /// Mean error, to be taken off the bias.
    shift: f64,
}

impl Comq {
    fn layer(&self, walk: &Walk<'_>, draft: &mut Draft, layer: &Layer, moments: &Moments) {
        let shape = &moments.shape;
        let (Some(weights), Some(current)) = (
            Weights::of(walk.ground(), draft, layer, shape),
            draft.graph.constant(&layer.weight).and_then(|t| t.as_f32()),
        ) else {
            return;
        };
        let (current, k) = (shape.rows(current), shape.inputs);
        // Nothing takes off the mean where there is no bias.
        let counted = |groups: &[Group]| match layer.bias {
            Some(_) => groups.to_vec(),
            None => groups.iter().map(Group::about_zero).collect(),
        };
        let (fit, held) = (counted(&moments.fit), counted(&moments.held));
        let channels = walk.threads().map(shape.channels(), |c| {
            let row = |rows: &[f32]| rows[c * k..][..k].to_vec();
            let task = Task {
                config: &self.config,
                params: &weights.params,
                fit: &fit[c / shape.outputs],
                held: &held[c / shape.outputs],
                output: c % shape.outputs,
                wanted: row(&weights.rows),
                scale: weights.params.scale[if weights.params.scale.len() == 1 { 0 } else { c }],
            };
            task.solve(&row(&current))
        });
        let single = weights.params.granularity == Granularity::Tensor;
        let scale = if single { weights.params.scale.clone() } else { channels.iter().map(|c| c.scale).collect() };
        let rows = channels.iter().flat_map(|c| c.row.iter().copied()).collect();
        let shifts: Vec<f64> = channels.iter().map(|c| c.shift).filter(|_| self.config.bias).collect();
        weights.write(walk.ground(), draft, Rounded { rows, scale }, &shifts);
    }
}

/// The search for one output channel.
struct Task<'a> {
    config: &'a Config,
    params: &'a QuantParams,
    fit: &'a Group,
    held: &'a Group,
    output: usize,
    wanted: Vec<f32>,
    scale: f32,
}

impl Task<'_> {
    /// The best channel found, or `current` rounded if samples that were held back say so.
    fn solve(&self, current: &[f32]) -> Channel {
        let Config { ridge, trust, rounds, .. } = *self.config;
        let grid = self.params.grid;
        let bounds = [grid.qmin() as f32, grid.qmax() as f32];
        let descent = Descent::new(self.fit, self.output, &self.wanted, [ridge, trust], bounds);
        let start = descent.at(codes_of(current, self.scale, bounds), self.scale);
        let mut best = (descent.error(&start), start.clone());
        let single = self.params.granularity == Granularity::Tensor;
        let scales: &[f32] = if single { &[1.0] } else { &self.config.scales };
        for factor in scales {
            let mut point = descent.feed_back(self.scale * factor);
            for _ in 0..TURNS {
                descent.descend(&mut point, rounds);
                let error = descent.error(&point);
                if error < best.0 {
                    best = (error, point.clone());
                }
                let near = |p: &Point| (LEAST_FACTOR..1.0 / LEAST_FACTOR).contains(&(p.scale / self.scale));
                match descent.rescale(&point).filter(|p| !single && near(p)) {
                    Some(rescaled) => point = rescaled,
                    None => break,
                }
            }
        }
        let difference =
            |p: &Point| -> Vec<f32> { p.codes.iter().zip(&self.wanted).map(|(q, w)| q * p.scale - w).collect() };
        let held = |p: &Point| self.held.error(self.output, &difference(p));
        let chosen = if self.held.rows > 0 && held(&best.1) > held(&start) { start } else { best.1 };
        // Of the mean, too, the share that the layer's own rounding has not made is taken off by half only.
        let [all, own] = [self.fit.shift(self.output, &difference(&chosen)), self.fit.mean_of(&difference(&chosen))];
        let shift = own + f64::from(trust) * (all - own);
        Channel { row: chosen.codes.iter().map(|q| q * chosen.scale).collect(), scale: chosen.scale, shift }
    }
}

#[cfg(test)]
mod tests;
