//! Zero points and scales of activations, adjusted one after the other by what the network's outputs say.
//!
//! # What it does
//! For each activation with a grid of its own, zero points a few codes away and scales a little smaller and larger are combined, twice, and
//! the best is kept if the outputs come closer to the float network's on the samples that are learned from, and do not move away on others.
//! Codes and scale move the grid's window together: a shift alone clips more on one side and frees codes on the other, which are worth
//! something once the scale is smaller. Zero stays a code, so that zero padding is exact.
//!
//! The network judges only [`Config::judged`] of the combinations: those of least squared error of the tensor by its histogram, in which each
//! channel counts as the weights that read it make it count, if calibration gathered that ([`fewbits_quant::importance`]). Activations of
//! fewer than eight bits are clipped more and more besides, by [`Config::narrower`], as long as the outputs come closer: where few elements
//! are very large, they are most of the squared error, and to the network they are few elements.
//!
//! # When it helps
//! Few-bit activations with two tails: linear bottlenecks, sums, LeakyRelu, SiLU. With one tail (behind Relu and Clip) only scales are
//! tried, since a runtime absorbs these only at the lowest zero point.
//!
//! # When it fails
//! At eight bits there is little to win. It sees one tensor at a time, and of that, where errors of elements make up for each other in the
//! outputs, not what the histogram does not show.
//!
//! # Cost
//! A pass over the chosen samples for each of [`Config::judged`] candidates of each activation and sweep. Under a deadline the last activations are left alone.
//!
//! # Config
//! [`Config`].
//!
//! # Source
//! Chen et al., "Post-training quantization by adjusting zero points" (2023), in the form that moves integer zero points by the
//! network's output.
//!
//! # Departures
//! Activations only: runtimes do not multiply weights with zero points in integers. What these would bring is in [`weights`]. Joint
//! candidates are ranked by squared error before the network sees them.

pub mod weights;

use crate::{Draft, Ground, Part, Progress};
use fewbits_graph::QuantParams;
use fewbits_quant::{TensorStats, placement::Site, ranges::Moments};
use std::time::Instant;

/// [`Config::judged`] by default.
const JUDGED: usize = 5;

/// Which candidates are tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Rounds over all activations.
    pub sweeps: usize,
    /// Codes by which zero points are moved; if there are none, up to a quarter of the codes either way at four bits and fewer, else two.
    pub shifts: Vec<i32>,
    /// Factors of scales, beside 1.
    pub factors: Vec<f32>,
    /// How many of these the network judges.
    pub judged: usize,
    /// Factor by which scales of few bits are made smaller again and again, down to its third power; 1: not at all.
    pub narrower: f32,
    /// Part of the loss by which a candidate must be better.
    pub least_gain: f64,
    /// When no further activation is looked at.
    pub deadline: Option<Instant>,
}

impl Default for Config {
    fn default() -> Self {
        let factors = vec![0.8, 0.9, 1.1];
        let narrower = 0.6;
        Config { sweeps: 2, shifts: vec![], factors, judged: JUDGED, narrower, least_gain: 1e-3, deadline: None }
    }
}

/// Powers of [`Config::narrower`].
const POWERS: i32 = 3;

impl Config {
    /// `params` clipped more and more.
    fn clipped(&self, params: &QuantParams) -> impl Iterator<Item = QuantParams> {
        let powers = if self.narrower < 1.0 && params.grid.bits < 8 { POWERS } else { 0 };
        let (params, factor) = (params.clone(), self.narrower);
        (1..=powers).map(move |power| QuantParams {
            scale: params.scale.iter().map(|scale| scale * factor.powi(power)).collect(),
            ..params.clone()
        })
    }

    /// Codes by which zero points of `bits` bits are moved.
    fn shifts_at(&self, bits: u8) -> Vec<i32> {
        let most = if bits <= 4 { (1u32 << bits).div_ceil(4) as i32 } else { 2 };
        if self.shifts.is_empty() { (-most..=most).filter(|d| *d != 0).collect() } else { self.shifts.clone() }
    }
}

/// Adjusts the activations of `draft`; returns how many changed. `loss` is lower where outputs are closer.
///
/// # Errors
/// Those of `loss`.
pub fn adjust<E>(
    ground: Ground<'_>,
    draft: &mut Draft,
    config: &Config,
    loss: &dyn Fn(&Draft, Part) -> Result<f64, E>,
    progress: &dyn Progress,
) -> Result<usize, E> {
    let names = activations(ground, draft);
    progress.begin("zero-point", names.len() * config.sweeps);
    let (mut fit, mut held) = (loss(draft, Part::Fit)?, loss(draft, Part::Held)?);
    let before = draft.grids.clone();
    for _ in 0..config.sweeps {
        let mut moved = false;
        for (name, site) in &names {
            if config.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                break;
            }
            let Some(params) = draft.grids.params(name).cloned() else { continue };
            let mut best: Option<(f64, QuantParams)> = None;
            let mut judge = |candidate: QuantParams| {
                draft.set_params(name, candidate.clone());
                let loss = loss(draft, Part::Fit)?;
                let least = best.as_ref().map_or(fit * (1.0 - config.least_gain), |(least, _)| *least);
                let better = loss < least;
                if better {
                    best = Some((loss, candidate));
                }
                Ok(better)
            };
            for candidate in config.clipped(&params) {
                if !judge(candidate)? {
                    break;
                }
            }
            for candidate in promising(candidates(&params, site, config), site, ground.stats.0.get(name), config.judged)
            {
                judge(candidate)?;
            }
            draft.set_params(name, params.clone());
            if let Some((loss_fit, candidate)) = best {
                draft.set_params(name, candidate);
                let loss_held = loss(draft, Part::Held)?;
                if loss_held <= held {
                    (fit, held, moved) = (loss_fit, loss_held, true);
                } else {
                    draft.set_params(name, params);
                }
            }
            progress.step();
        }
        if !moved {
            break;
        }
    }
    progress.end();
    Ok(names.iter().filter(|(name, _)| before.params(name) != draft.grids.params(name)).count())
}

/// Activations with one scale of their own, in the order in which they are made.
fn activations<'a>(ground: Ground<'a>, draft: &Draft) -> Vec<(String, &'a Site)> {
    let made = ground.float.nodes.iter().flat_map(|n| n.outputs.iter());
    let all = ground.float.inputs.iter().map(|v| &v.name).chain(made);
    let own = |name: &String| {
        let site = ground.placement.sites.get(name).filter(|site| matches!(site, Site::Activation { .. }))?;
        draft.grids.params(name)?.tensor_params()?;
        Some((name.clone(), site))
    };
    all.filter_map(own).collect()
}

/// Grids a little away from `params` that the site allows: every factor with every shift.
fn candidates(params: &QuantParams, site: &Site, config: &Config) -> Vec<QuantParams> {
    let Site::Activation { bounds, .. } = site else { return vec![] };
    let grid = params.grid;
    let one_tail = bounds.is_some_and(|(low, _)| low >= 0.0) || params.zero_point[0] == grid.qmin();
    let shifts = if one_tail { vec![] } else { config.shifts_at(grid.bits) };
    let moves = |&factor: &f32| std::iter::once(0).chain(shifts.iter().copied()).map(move |shift| (factor, shift));
    let factors: Vec<f32> = config.factors.iter().copied().chain([1.0]).collect();
    let mut moved: Vec<(f32, i32)> = factors.iter().flat_map(moves).filter(|to| *to != (1.0, 0)).collect();
    // The nearest first; a tenth of the scale counts as much as a code.
    let distance = |&(factor, shift): &(f32, i32)| 10.0 * (factor - 1.0).abs() + shift.abs() as f32;
    moved.sort_by(|a, b| distance(a).total_cmp(&distance(b)));
    let all = moved.into_iter().map(|(factor, shift)| (factor * params.scale[0], params.zero_point[0] + shift));
    let candidate = |(scale, zero_point)| QuantParams::per_tensor(grid, scale, zero_point);
    let allowed = |params: &QuantParams| {
        let ((low, high), zero) = (params.range(0), params.zero_point[0]);
        let inside = bounds.is_none_or(|(least, most)| low >= least && high <= most);
        inside && (grid.qmin()..=grid.qmax()).contains(&zero) && params.scale[0].is_normal()
    };
    all.map(candidate).filter(allowed).collect()
}

/// The `most` of `all` with the least expected squared error behind what alone reads the tensor; without statistics the
/// nearest.
fn promising(mut all: Vec<QuantParams>, site: &Site, stats: Option<&TensorStats>, most: usize) -> Vec<QuantParams> {
    if let (Site::Activation { reader, .. }, Some(stats)) = (site, stats.filter(|_| all.len() > most)) {
        let histogram = if stats.weighted.total() > 0 { &stats.weighted } else { &stats.histogram };
        let moments = Moments::behind(stats, histogram, *reader);
        all.sort_by_cached_key(|params| moments.mean_squared_error(params).to_bits());
    }
    all.truncate(most);
    all
}

#[cfg(test)]
mod tests;
