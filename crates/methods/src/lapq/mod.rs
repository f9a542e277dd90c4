//! LAPQ: scales of weights by what they do to the loss of the whole network.
//!
//! # What it does
//! For `p` from 2 to 4 all weights get the scales of least `Σ |w − ŵ|^p`, and the loss is measured; a parabola through the losses says
//! which `p` to begin with. Where all channels of a layer share one scale and one towers above the others, halves, quarters … of the scale are
//! tried as well, down to what the median channel needs and no further than its bits. From there one factor for each layer's scales is searched by Powell's method on the loss. With
//! every change of scales the mean that rounding adds to the outputs is taken off the biases, from statistics. The result is kept if the loss on
//! other samples agrees.
//!
//! # When it helps
//! At four bits and fewer, where layers' errors make up for each other or add up, which no layer knows alone. With one scale for all channels,
//! at any width: a channel that costs the others six bits may matter less than they do, which squared errors of weights never find.
//!
//! # When it fails
//! With few samples the loss is ragged. All channels of a layer move together. Codes are the nearest ones (`comq` searches them).
//!
//! # Cost
//! About three passes over the chosen samples for each layer and sweep, and one for each halving. Under a deadline the last layers keep the scales of the best `p`.
//!
//! # Config
//! [`Config`].
//!
//! # Source
//! Nahshan et al., "Loss Aware Post-training Quantization" (2019), and the authors' code.
//!
//! # Departures
//! Weights only; ranges of activations are chosen by the network's outputs elsewhere (`--ranges auto`, `zero-point`). The loss is given:
//! distance from the float network's outputs, so that no labels are needed. Factors are searched by their logarithms. Halves of shared scales are
//! ours.

mod powell;

use crate::{
    Draft, Ground, Part, Progress,
    clipping::{Clip, Weights, largest, with_scales},
    draft::layers,
    moments::Shape,
};
use fewbits_kernels::Threads;
pub use powell::Powell;
use std::{cmp::Reverse, f64::consts::LN_2, time::Instant};

/// A channel towers above the others if the grid reaches this many times as far as the median channel's largest weight: two bits.
const TOWERING: f32 = 4.0;
/// A channel is dead if its largest weight is below this share of the tensor's.
const DEAD_SHARE: f32 = 1e-6;

/// How scales are searched.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The least and the largest `p`.
    pub powers: [f32; 2],
    /// How many are tried, evenly spread.
    pub count: usize,
    /// The search over logarithms of factors.
    pub powell: Powell,
    /// When the search ends; layers that it has not come to keep the best `p`.
    pub deadline: Option<Instant>,
}

impl Default for Config {
    fn default() -> Self {
        Config { powers: [2.0, 4.0], count: 10, powell: Powell { sweeps: 1, step: 0.1 }, deadline: None }
    }
}

/// Changes the scales of weights in `draft`; returns whether the result was kept. `loss` is lower where outputs are closer.
///
/// # Errors
/// Those of `loss`.
pub fn tune<E>(
    ground: Ground<'_>,
    draft: &mut Draft,
    config: &Config,
    threads: &Threads,
    loss: &dyn Fn(&Draft, Part) -> Result<f64, E>,
    progress: &dyn Progress,
) -> Result<bool, E> {
    let layers = layers(ground.float, ground.placement);
    let shapes = Shape::all(ground, &layers);
    let weights = Weights::all(ground, draft, &layers, &shapes);
    let halvings = halvings(&weights);
    progress.begin("lapq", config.count + 1 + halvings.len() + 3 * weights.len() * config.powell.sweeps);
    let with = |scales: &[Vec<f32>]| with_scales(ground, draft, &weights, scales);
    let by_power = |p: f32| -> Vec<Vec<f32>> {
        let scales = |own: &Weights<'_>| own.scales(Clip::Lp(p), threads).unwrap_or_else(|| own.params.scale.clone());
        weights.iter().map(scales).collect()
    };
    let measured = |scales: &[Vec<f32>]| {
        progress.step();
        loss(&with(scales), Part::Fit)
    };
    let [least, most] = config.powers;
    let power = |i: usize| least + (most - least) * i as f32 / (config.count.max(2) - 1) as f32;
    let mut tried = Vec::new();
    let is_over = || config.deadline.is_some_and(|deadline| Instant::now() >= deadline);
    for p in (0..config.count).map(power) {
        if !tried.is_empty() && is_over() {
            break;
        }
        tried.push((p, measured(&by_power(p))?));
    }
    if let Some(p) = vertex(&tried).filter(|_| !is_over()) {
        tried.push((p.clamp(least, most), measured(&by_power(p.clamp(least, most)))?));
    }
    let best = tried.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1));
    let (p, mut value) = best.unwrap_or((least, f64::INFINITY));
    let start = by_power(p);
    let scaled = |logarithms: &[f64]| -> Vec<Vec<f32>> {
        let factors = logarithms.iter().map(|log| log.exp() as f32);
        start.iter().zip(factors).map(|(scales, factor)| scales.iter().map(|s| s * factor).collect()).collect()
    };
    let mut logarithms = vec![0.0; weights.len()];
    for (layer, times) in halvings.into_iter().take_while(|_| !is_over()) {
        let mut probe = logarithms.clone();
        probe[layer] = -LN_2 * times as f64;
        let lower = measured(&scaled(&probe))?;
        if lower < value {
            (logarithms, value) = (probe, lower);
        }
    }
    config.powell.minimise(&mut |at| measured(&scaled(at)), &mut logarithms, value, &is_over)?;
    let result = with(&scaled(&logarithms));
    progress.end();
    let kept = loss(&result, Part::Held)? <= loss(draft, Part::Held)?;
    if kept {
        *draft = result;
    }
    Ok(kept)
}

/// Layers whose channels share a scale that one channel needs and the others do not, the worst first, and how often to halve it: once, twice,
/// and so on, as long as half of the living channels keep all of their weights.
fn halvings(weights: &[Weights<'_>]) -> Vec<(usize, usize)> {
    let largest_number = |own: &Weights<'_>| -> Option<usize> {
        let [scale] = own.params.scale[..] else { return None };
        let mut channels: Vec<f32> = own.rows.chunks(own.shape.inputs.max(1)).map(largest).collect();
        channels.sort_by(f32::total_cmp);
        let most = *channels.last()?;
        channels.retain(|channel| *channel > DEAD_SHARE * most);
        let ratio = scale * own.params.grid.qmax() as f32 / channels.get(channels.len() / 2)?;
        let number = ratio.min(2f32.powi(own.bits().into())).log2() as usize;
        Some(number).filter(|_| ratio >= TOWERING)
    };
    let numbers = weights.iter().enumerate().filter_map(|(layer, own)| Some((layer, largest_number(own)?)));
    let mut numbers: Vec<(usize, usize)> = numbers.collect();
    numbers.sort_by_key(|(_, number)| Reverse(*number));
    numbers.into_iter().flat_map(|(layer, number)| (1..=number).map(move |times| (layer, times))).collect()
}

/// Where the parabola of least squares through points with evenly spread abscissas is lowest; `None` if it opens downward.
fn vertex(points: &[(f32, f64)]) -> Option<f32> {
    let count = points.len() as f64;
    let middle = points.iter().map(|(p, _)| f64::from(*p)).sum::<f64>() / count;
    let sum = |power: i32, y: bool| -> f64 {
        let term = |(p, loss): &(f32, f64)| (f64::from(*p) - middle).powi(power) * if y { *loss } else { 1.0 };
        points.iter().map(term).sum()
    };
    // About the middle of evenly spread points the sums of odd powers are zero.
    let slope = sum(1, true) / sum(2, false);
    let curvature =
        (count * sum(2, true) - sum(2, false) * sum(0, true)) / (count * sum(4, false) - sum(2, false).powi(2));
    (curvature > 0.0 && curvature.is_finite()).then(|| (middle - 0.5 * slope / curvature) as f32)
}

#[cfg(test)]
mod tests;
