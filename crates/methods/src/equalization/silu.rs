//! Equalization through `x · Sigmoid(x)`, which does not scale by itself.
//!
//! With `x' = x / s` per channel, `x' · Sigmoid(s·x')` is the old product divided by `s`: layer 1 absorbs the division, layer 2 the
//! multiplication, and the Sigmoid gets its factor back from a multiplication in front of it (see
//! [`fewbits_graph::passes::SiluSlot`]). Factors are powers of two up to 128, so that they are codes of an 8-bit grid of step one
//! and lose nothing. The Sigmoid's input may be coarse: beyond ±8 nothing happens.

use super::{Axes, largest_per_channel, scaled};
use fewbits_graph::{Graph, Tensor, passes::SiluSlot};
use fewbits_quant::{Range, Stats, stats::ChannelStats};
use std::{collections::BTreeMap, sync::Arc};

/// Largest power of two of a factor.
const MOST: f64 = 7.0;
/// Slots whose largest power is lower are left alone: two bits of range are worth a multiplication, less is not.
const LEAST: f64 = 2.0;
/// What SiLU makes of numbers below this is not worth resolving.
const FLAT_BELOW: f32 = 4.0;

/// Replacement constants and the ranges of the factors.
pub fn silu_patches(
    graph: &Graph,
    slots: &[SiluSlot],
    stats: &Stats,
) -> (BTreeMap<String, Arc<Tensor>>, BTreeMap<String, Range>) {
    let mut patched = graph.clone();
    let (mut patches, mut ranges) = (BTreeMap::new(), BTreeMap::new());
    for slot in slots {
        let Some(channels) = stats.0.get(&slot.tensor).and_then(|s| s.channels.as_ref()) else { continue };
        let (first, second) = (&graph.nodes[slot.first], &graph.nodes[slot.second]);
        let (Some(written), Some(read)) = (Axes::of(graph, slot.first), Axes::of(graph, slot.second)) else { continue };
        let Some(factors) = factors(&patched, second.input(1), channels, read) else { continue };
        let (divide, multiply) = (|c: usize| 1.0 / factors[c], |c: usize| factors[c]);
        let edits = [
            (first.input(1), written.written, &divide as &dyn Fn(usize) -> f64),
            (first.input(2), 0, &divide),
            (second.input(1), read.read, &multiply),
            (Some(&slot.scale), 0, &multiply),
        ];
        for (name, axis, factor) in edits {
            let Some(name) = name else { continue };
            let Some(tensor) = patched.constant(name).and_then(|t| scaled(t, axis, factors.len(), factor)) else {
                continue;
            };
            let tensor = Arc::new(tensor);
            patched.constants.insert(name.into(), tensor.clone());
            patches.insert(name.to_string(), tensor);
        }
        ranges.insert(slot.scale.clone(), Range { lo: 0.0, hi: 255.0 });
    }
    (patches, ranges)
}

/// Powers of two from 1 to 128 by channel; `None` if they are too alike to bother, or shapes do not fit.
fn factors(graph: &Graph, reads: Option<&str>, channels: &ChannelStats, axes: Axes) -> Option<Vec<f64>> {
    let weights = largest_per_channel(graph.constant(reads?)?, axes.read)?;
    if weights.len() != channels.min.len() {
        return None;
    }
    let reach = channels.min.iter().zip(&channels.max).map(|(lo, hi)| f64::from(hi.max((-lo).min(FLAT_BELOW))));
    let logs: Vec<Option<f64>> = reach
        .zip(&weights)
        .map(|(a, &r)| {
            let log = || if axes.depthwise { a.log2() } else { 0.5 * (a / f64::from(r)).log2() };
            (a > 0.0 && r > 0.0).then(log)
        })
        .collect();
    let highest = logs.iter().flatten().copied().reduce(f64::max)?;
    let power = |log: Option<f64>| log.map_or(0.0, |log| (MOST + log - highest).round().clamp(0.0, MOST));
    let lowest = logs.iter().flatten().map(|&log| power(Some(log))).reduce(f64::min)?;
    let powers: Vec<f64> = logs.into_iter().map(|log| (power(log) - lowest).max(0.0)).collect();
    let most = powers.iter().copied().fold(0.0, f64::max);
    (most >= LEAST).then(|| powers.into_iter().map(f64::exp2).collect())
}
