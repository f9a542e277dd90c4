//! Scales where a weight tensor has one scale for all of its channels: then small output channels of layer 1 lose as much as small input
//! channels of layer 2.
//!
//! With `p_c` the largest weight of output channel `c` of layer 1, relative to the whole tensor's, `r_c` the same of input channel `c` of
//! layer 2: `s_c = √(p_c / r_c)` makes both alike (Nagel et al., §4.1). All groups in turn until nothing moves, which brings the layers around
//! a depthwise one to their common geometric mean.

use super::{Axes, Group, MOST, applied, channels_of, largest_of, largest_per_channel, largest_read, used};
use fewbits_graph::Graph;
use fewbits_quant::Stats;

/// Most rounds over all groups.
const ROUNDS: usize = 40;
/// A factor this near to one is none.
const NEAR: f64 = 1e-3;

/// `s_c` for each group.
pub(super) fn scales(graph: &Graph, groups: &[Group], stats: &Stats) -> Vec<Option<Vec<f64>>> {
    let mut patched = graph.clone();
    let known =
        |group: &Group| group.tensors.iter().all(|t| stats.0.get(t).is_some_and(|seen| seen.channels.is_some()));
    let start = |group: &Group| Some(vec![1.0; channels_of(graph, group).filter(|_| known(group))?]);
    let mut all: Vec<Option<Vec<f64>>> = groups.iter().map(start).collect();
    for _ in 0..ROUNDS {
        let mut moved = false;
        for (group, total) in groups.iter().zip(&mut all) {
            let Some(scales) = total else { continue };
            let Some(new) = balanced(&patched, group, stats, scales) else {
                *total = None;
                continue;
            };
            let step: Vec<f64> = new.iter().zip(&*scales).map(|(new, old)| new / old).collect();
            let Some(changed) = applied(&patched, group, &step) else {
                *total = None;
                continue;
            };
            patched.constants.extend(changed);
            moved |= step.iter().any(|s| s.ln().abs() > NEAR);
            *scales = new;
        }
        if !moved {
            break;
        }
    }
    all
}

/// The scales of `group` in all that balance the weights of `graph`, which has those of `before`; `None` if the shapes do not fit.
fn balanced(graph: &Graph, group: &Group, stats: &Stats, before: &[f64]) -> Option<Vec<f64>> {
    let written = |&writer: &usize| {
        let axis = Axes::of(graph, writer)?.written;
        largest_per_channel(graph.constant(graph.nodes[writer].input(1)?)?, axis).map(relative)
    };
    let written = largest_of(group.writers.iter().map(written))?;
    let read = largest_read(graph, group, relative)?;
    if written.len() != before.len() || read.len() != before.len() {
        return None;
    }
    let pairs = written.iter().zip(&read).zip(before);
    let raw =
        |((&p, &r), &s): ((&f32, &f32), &f64)| (p > 0.0 && r > 0.0).then(|| s * (f64::from(p) / f64::from(r)).sqrt());
    let raw: Vec<Option<f64>> = pairs.map(raw).collect();
    let free = |s: Option<f64>| s.map_or(1.0, |s| s.clamp(1.0 / MOST, MOST));
    if group.ceilings.is_empty() {
        return Some(raw.into_iter().map(free).collect());
    }
    let used = used(group, stats, 8, before.len())?;
    let limited = |(s, u): (Option<f64>, f64)| {
        let least = u.clamp(1.0 / MOST, 1.0);
        // What stays below the ceiling does so when made smaller.
        let most = if u < 1.0 { MOST } else { 1.0 };
        // A channel that stays at zero does not meet the ceiling.
        if u == 0.0 { free(s) } else { s.map_or(1.0, |s| s.clamp(least, most)) }
    };
    Some(raw.into_iter().zip(used).map(limited).collect())
}

/// Parts of the largest.
fn relative(mut values: Vec<f32>) -> Vec<f32> {
    let most = values.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    values.iter_mut().for_each(|v| *v /= most);
    values
}
