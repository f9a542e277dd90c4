//! Equalization: channels of a tensor between two layers brought to like ranges by scaling the layers' weights.
//!
//! # What it does
//! `layer₂(f(layer₁(x)))` stays the same if output channel `c` of layer 1 (weights and bias) is divided by `s_c > 0` and the weights
//! that read channel `c` in layer 2 are multiplied by it, as long as `f(s·x) = s·f(x)`: Relu, LeakyRelu, PRelu, or nothing. With one
//! weight scale per output channel, dividing costs layer 1 nothing. A depthwise layer 2 also has a scale of its own for each channel,
//! so there `s_c ∝ a_c`, the channel's reach, makes all channels alike for free. A dense layer 2 shares one scale
//! among the input channels of an output; there the ranges are shared evenly between activation and weights:
//! `s_c ∝ √(a_c / r_c)` with `r_c` the largest weight on channel `c`. Tensors that residual additions tie together are scaled
//! together, with all layers that write and read them. Pooling, also over all places, takes positive factors through; behind a Flatten, a
//! Gemm reads each channel in as many columns as it had places.
//!
//! The reach `a_c` is the channel's largest magnitude, but where activations have few bits no more of it than is worth resolving:
//! `½α · E[x²]/E|x|` with ACIQ's optimal clipping `α` for Laplace's distribution. `E[x²]/E|x|` is twice its width, however many elements a Relu
//! has set to zero.
//!
//! In front of a LeakyRelu, or a PRelu of slopes up to `α`, a runtime may round, too. At 8 bits a channel there reaches as far as its largest
//! positive element, or `√α` times its largest negative one, between what that takes of the range there and what is left of it behind. Fewer
//! bits are those of what layers read, behind it: there they decide.
//!
//! Clip 0…m (ReLU6) does not scale, but a channel that stays below `m` does not meet it. With `u_c` the channel's reach over `m`, and
//! a margin, `s_c` between `u_c` and 1 leaves what was seen as it is, as far as it is worth resolving: where activations have few bits, what
//! lies far beyond would not survive their rounding either. Channels are brought to a level `l` that almost all can reach: `s_c =
//! a_c/l` in front of depthwise layers, `√(a_c/l · max r / r_c)` in front of dense ones, within these limits, 1 where a channel reaches `m`.
//! The Clip then limits each small channel near its reach.
//!
//! Where a weight tensor has one scale for all channels, the weights of layer 1 matter instead of the activation: see `weights`. There a
//! channel that stays below `m` may also become smaller.
//!
//! # When it helps
//! Networks without BatchNormalization-friendly ranges: channels of one tensor that differ by a factor of ten or more.
//!
//! # When it fails
//! Behind other functions that do not scale, and where something else than a layer reads: these are left alone. SiLU has a way of
//! its own, [`silu_patches`]. In front of Clip, a channel that no sample drove is left alone (with one scale for all, it counts as free of the
//! ceiling); one that samples drove less than other images do is clipped, from 1.25
//! times its reach; with one scale for all, one that came to less than 0.8 of the ceiling may never meet it any more.
//!
//! # Cost
//! Extremes and moments of channels over a few samples; one multiplication per weight.
//!
//! # Config
//! [`Config`].
//!
//! # Source
//! Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), §4.1.
//!
//! # Departures
//! Activation ranges instead of the weight ranges of layer 1, where per-channel scales make these irrelevant; the depthwise case; what is
//! worth resolving in place of the largest where bits are few (those of the network, also where a single tensor has more; with a scale for each
//! output channel);
//! groups tied by additions; what LeakyRelu and PRelu read; channels below a Clip in place of Clip taken for Relu. Biases are absorbed by
//! [`crate::bias_absorption`]. Where weights have one scale, rounds end when no factor moves by more than 1e-3, or after 40; the authors go
//! on to 2e-7.

mod groups;
mod silu;
mod unfolded;
mod weights;

pub use groups::{Group, groups};
pub use silu::silu_patches;
pub use unfolded::unfolded_factors;

use fewbits_graph::{Graph, Op, Tensor};
use fewbits_quant::{
    Stats,
    ranges::{Prior, optimum},
    stats::ChannelStats,
};
use groups::{Axes, channels_of};
use std::{collections::BTreeMap, sync::Arc};

/// Largest factor between two channels' scales, either way from their middle: smaller ranges are noise.
const MOST: f64 = 256.0;
/// The reach in front of a Clip is taken to be this many times what was seen.
const MARGIN: f64 = 1.25;

/// Share of the channels below a Clip that may fall short of the level of the others.
const SHORT: f64 = 0.05;

/// What the channels are equalized for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Whether weights have a scale for each output channel.
    pub per_channel: bool,
    /// Bits of activations.
    pub activation_bits: u8,
    /// Whether what LeakyRelu and PRelu read is rounded, too: to 8 bits, as all that no layer multiplies.
    pub rounds_between: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config { per_channel: true, activation_bits: 8, rounds_between: true }
    }
}

/// One number for each of `channels` from those of its places, which a Flatten has put side by side; `None` if they do not go up.
fn by_channel<T: Copy>(values: &[T], channels: usize, join: impl Fn(T, T) -> T) -> Option<Vec<T>> {
    let places =
        values.len().checked_div(channels).filter(|places| *places > 0 && places * channels == values.len())?;
    values.chunks(places).map(|places| places.iter().copied().reduce(&join)).collect()
}

/// A constant, the axis of its channels, and what to multiply each by.
type Edit<'a> = (&'a str, usize, &'a dyn Fn(usize) -> f64);

/// What equalization does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Equalized {
    /// Replacement weights and biases.
    pub patches: BTreeMap<String, Arc<Tensor>>,
    /// Groups that changed, with their `s_c`.
    pub moved: Vec<(Group, Vec<f64>)>,
}

impl Equalized {
    /// By what the channels of tensors that layers of `graph` write were multiplied, `1/s_c`.
    pub fn factors(&self, graph: &Graph) -> BTreeMap<String, Vec<f64>> {
        let of = |(group, scales): &(Group, Vec<f64>)| {
            let factors: Vec<f64> = scales.iter().map(|s| 1.0 / s).collect();
            group.writers.iter().map(|&w| (graph.nodes[w].output().to_string(), factors.clone())).collect::<Vec<_>>()
        };
        self.moved.iter().flat_map(of).collect()
    }
}

/// Equalizes every group of whose tensors there are statistics by channel: those that layers read, and [`Group::observed`] ones that matter.
pub fn equalize(graph: &Graph, stats: &Stats, config: Config) -> Equalized {
    let mut patched = graph.clone();
    let mut done = Equalized::default();
    let groups = groups(graph);
    let all = match config.per_channel {
        true => groups.iter().map(|group| scales(graph, group, stats, config)).collect(),
        false => weights::scales(graph, &groups, stats),
    };
    for (group, scales) in groups.into_iter().zip(all) {
        let Some(scales) = scales else { continue };
        // All of a group or nothing.
        let Some(new) = applied(&patched, &group, &scales) else { continue };
        done.patches.extend(new.iter().cloned());
        patched.constants.extend(new);
        done.moved.push((group, scales));
    }
    done
}

/// Weights and biases of `group` with `scales` moved; `None` if the shapes do not fit. What writes may be a BatchNormalization behind a layer.
fn applied(graph: &Graph, group: &Group, scales: &[f64]) -> Option<Vec<(String, Arc<Tensor>)>> {
    let (divide, multiply) = (|c: usize| 1.0 / scales[c], |c: usize| scales[c]);
    let mut edits: Vec<Edit> = Vec::new();
    for &writer in &group.writers {
        let node = &graph.nodes[writer];
        let written = match node.op {
            Op::BatchNormalization(_) => 0,
            _ => Axes::of(graph, writer)?.written,
        };
        edits.push((node.input(1)?, written, &divide));
        if let Some(bias) = node.input(2) {
            // A Gemm may have it as a row.
            edits.push((bias, graph.constant(bias)?.dims.len().checked_sub(1)?, &divide));
        }
    }
    for &reader in &group.readers {
        edits.push((&graph.nodes[reader].inputs[1], Axes::of(graph, reader)?.read, &multiply));
    }
    // A layer may write and read a group.
    let mut new: BTreeMap<&str, Tensor> = BTreeMap::new();
    for (name, axis, factor) in edits {
        let old = new.get(name).or(graph.constant(name).map(|t| &**t))?;
        let tensor = scaled(old, axis, scales.len(), factor)?;
        new.insert(name, tensor);
    }
    Some(new.into_iter().map(|(name, tensor)| (name.to_string(), Arc::new(tensor))).collect())
}

/// `s_c`, with geometric mean one where there is no ceiling; `None` if there is nothing to equalize or the shapes do not fit.
fn scales(graph: &Graph, group: &Group, stats: &Stats, config: Config) -> Option<Vec<f64>> {
    let bits = config.activation_bits;
    let channels = channels_of(graph, group)?;
    let reach = reach(group.tensors.iter(), stats, bits, channels)?;
    let leaking = group.leaking.iter().filter(|_| config.rounds_between && bits >= 8);
    let leaked = leaking.map(|(tensor, slope)| leaked(tensor, *slope, stats, channels));
    let reach = largest_of(std::iter::once(Some(reach)).chain(leaked))?;
    let weight = largest_read(graph, group, |largest| largest)?;
    if weight.len() != reach.len() {
        return None;
    }
    let depthwise = group.readers.iter().all(|&reader| Axes::of(graph, reader).is_some_and(|axes| axes.depthwise));
    if !group.ceilings.is_empty() {
        return below_ceilings(&reach, &used(group, stats, bits, weight.len())?, &weight, depthwise);
    }
    let raw = |(&a, &r): (&f32, &f32)| match (f64::from(a), f64::from(r)) {
        (a, r) if !(a > 0.0 && r > 0.0 && a.is_finite()) => None,
        (a, _) if depthwise => Some(a),
        (a, r) => Some((a / r).sqrt()),
    };
    let raw: Vec<Option<f64>> = reach.iter().zip(&weight).map(raw).collect();
    let known: Vec<f64> = raw.iter().flatten().map(|s| s.ln()).collect();
    let middle = known.iter().sum::<f64>() / known.len().max(1) as f64;
    // Silent channels stay as they are.
    let limit = |s: Option<f64>| s.map_or(1.0, |s| (s.ln() - middle).exp().clamp(1.0 / MOST, MOST));
    (known.len() > 1).then(|| raw.into_iter().map(limit).collect())
}

/// `a_c`, the largest of `tensors`.
fn reach<'a>(tensors: impl Iterator<Item = &'a String>, stats: &Stats, bits: u8, channels: usize) -> Option<Vec<f32>> {
    let alpha = 0.5 * optimum(Prior::Laplace, bits);
    let of = |seen: &ChannelStats| -> Option<Vec<f32>> {
        let [squares, magnitudes] =
            [&seen.squares, &seen.magnitudes].map(|sums| by_channel(sums, channels, |a, b| a + b));
        let largest = by_channel(&seen.largest(), channels, f32::max)?;
        // Where there is nothing but zeros this is not a number, and the largest magnitude counts.
        let worth = squares?.into_iter().zip(magnitudes?);
        let worth = worth.map(|(squares, magnitudes)| if bits < 8 { alpha * squares / magnitudes } else { f64::MAX });
        Some(largest.into_iter().zip(worth).map(|(largest, worth)| largest.min(worth as f32)).collect())
    };
    largest_of(tensors.map(|tensor| of(stats.0.get(tensor)?.channels.as_ref()?)))
}

/// Of what LeakyRelu or PRelu reads: the largest positive element of each channel, or `√slope` times the largest negative one.
fn leaked(tensor: &str, slope: f32, stats: &Stats, channels: usize) -> Option<Vec<f32>> {
    let seen = stats.0.get(tensor)?.channels.as_ref()?;
    let share = slope.sqrt();
    let of = |(lo, hi): (&f32, &f32)| hi.max(-lo * share);
    by_channel(&seen.min.iter().zip(&seen.max).map(of).collect::<Vec<f32>>(), channels, f32::max)
}

/// Largest weight on each channel among the readers, each layer's put through `unit`.
fn largest_read(graph: &Graph, group: &Group, unit: impl Fn(Vec<f32>) -> Vec<f32>) -> Option<Vec<f32>> {
    let channels = channels_of(graph, group)?;
    let of = |&reader: &usize| {
        let axis = Axes::of(graph, reader)?.read;
        let largest = largest_per_channel(graph.constant(&graph.nodes[reader].inputs[1])?, axis)?;
        by_channel(&largest, channels, f32::max).map(&unit)
    };
    largest_of(group.readers.iter().map(of))
}

/// Elementwise; `None` if one is, or lengths differ.
fn largest_of(lists: impl Iterator<Item = Option<Vec<f32>>>) -> Option<Vec<f32>> {
    let larger = |a: Vec<f32>, b: Vec<f32>| {
        (a.len() == b.len()).then(|| a.iter().zip(&b).map(|(a, b)| a.max(*b)).collect::<Vec<f32>>())
    };
    let all = lists.collect::<Option<Vec<_>>>()?;
    let mut all = all.into_iter();
    let first = all.next()?;
    all.try_fold(first, larger)
}

/// `s_c` from `u_c` to one. `reach` is `a_c`, `used` is `u_c`, `weight` is `r_c`.
fn below_ceilings(reach: &[f32], used: &[f64], weight: &[f32], depthwise: bool) -> Option<Vec<f64>> {
    let channels = || reach.iter().zip(used).zip(weight).map(|((a, u), r)| [f64::from(*a), *u, f64::from(*r)]);
    let has_room = |[a, u, r]: &[f64; 3]| *u > 0.0 && *u < 1.0 && *r > 0.0 && *a > 0.0;
    // Where the ceiling lets each channel's reach come to.
    let mut highest: Vec<f64> = channels().filter(has_room).map(|[a, u, _]| a / u).collect();
    highest.sort_by(f64::total_cmp);
    let level = highest.get((SHORT * highest.len() as f64) as usize)?;
    let most = f64::from(weight.iter().copied().fold(0f32, f32::max));
    let scale = |channel: [f64; 3]| match channel {
        channel if !has_room(&channel) => 1.0,
        [a, u, _] if depthwise => (a / level).clamp(u.max(1.0 / MOST), 1.0),
        [a, u, r] => (a / level * most / r).sqrt().clamp(u.max(1.0 / MOST), 1.0),
    };
    let scales: Vec<f64> = channels().map(scale).collect();
    scales.iter().any(|s| *s < 1.0).then_some(scales)
}

/// `u_c`: what each channel uses of the room below the ceiling, as far as it is worth resolving.
fn used(group: &Group, stats: &Stats, bits: u8, channels: usize) -> Option<Vec<f64>> {
    let mut used = vec![0f64; channels];
    for (tensor, ceiling) in &group.ceilings {
        let reach = reach(std::iter::once(tensor), stats, bits, channels)?;
        let of = |a: f32| MARGIN * f64::from(a) / f64::from(*ceiling);
        used.iter_mut().zip(reach).for_each(|(u, a)| *u = u.max(of(a)));
    }
    Some(used)
}

/// Largest magnitude for each index along `axis`; `None` if an element is not finite.
fn largest_per_channel(tensor: &Tensor, axis: usize) -> Option<Vec<f32>> {
    let values = tensor.as_f32().filter(|v| v.iter().all(|x| x.is_finite()))?;
    let (count, inner) = (*tensor.dims.get(axis)?, tensor.dims.get(axis + 1..)?.iter().product::<usize>());
    let mut largest = vec![0f32; count];
    for (i, v) in values.iter().enumerate() {
        let c = i / inner.max(1) % count;
        largest[c] = largest[c].max(v.abs());
    }
    Some(largest)
}

/// `tensor` times what `factor` says of each of the `channels` along `axis`, a block of as many indices each.
fn scaled(tensor: &Tensor, axis: usize, channels: usize, factor: &dyn Fn(usize) -> f64) -> Option<Tensor> {
    let inner: usize = tensor.dims.get(axis + 1..)?.iter().product();
    let size = *tensor.dims.get(axis)?;
    let places = size.checked_div(channels).filter(|places| places * channels == size)?;
    let channel = |i: usize| i / inner.max(1) % size / places;
    let times = |(i, &w): (usize, &f32)| (f64::from(w) * factor(channel(i))) as f32;
    Some(Tensor::f32(&tensor.dims, tensor.as_f32()?.iter().enumerate().map(times).collect()))
}

#[cfg(test)]
mod tests;
