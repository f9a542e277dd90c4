//! What the weights alone tell: channels that are dead or tower above the others, lone large weights, biases beyond the grid,
//! numbers that are not finite.

use super::{Severity, Warning};
use fewbits_graph::{Granularity, Graph, Grid, Node, Op, Tensor, op::Fact};
use fewbits_kernels::float::Activation;
use fewbits_quant::{
    Mapping, RangeRule, Stats, WeightRule,
    placement::{Placement, Site},
    weights::{guard_bias, weight_params},
};

/// A channel is dead if its largest weight is below this share of the tensor's.
const DEAD_SHARE: f32 = 1e-6;
/// An outlier channel has this many times the median channel's largest weight: 3 of 8 bits are lost per tensor.
const OUTLIER: f32 = 8.0;
/// Ranges of channels that differ by this factor leave the smallest with one code of 8 bits per tensor.
const SPREAD: f32 = 100.0;
/// A lone weight is this many times the second largest of its channel: 2 bits are lost to it.
const LONE: f32 = 4.0;
/// Channels of fewer weights have no tail to speak of.
const LEAST_WEIGHTS: usize = 16;
/// Range of a layer's input when nothing is known of it: that of Relu6.
const ASSUMED_RANGE: f32 = 6.0;

/// Warnings about constants, in graph order.
pub(super) fn warnings(graph: &Graph, placement: &Placement, stats: &Stats) -> Vec<Warning> {
    let mut found = Vec::new();
    for node in &graph.nodes {
        let broken = node.present_inputs().filter_map(|name| Some((name, graph.constant(name)?)));
        let broken: Vec<Warning> = broken.filter_map(|(name, tensor)| non_finite(node, name, tensor)).collect();
        let layer = node.input(1).and_then(|name| Some((name, graph.constant(name)?, placement.sites.get(name)?)));
        match layer {
            Some((name, weight, Site::Weight { axis, input, bias, .. })) if broken.is_empty() => {
                let channels = Channels::of(weight, *axis);
                found.extend(channels.iter().flat_map(|c| c.warnings(node)));
                let range = input_range(graph, input, stats);
                let bias = bias.as_ref().and_then(|b| graph.constant(b)).and_then(|t| t.as_f32());
                found.extend(bias.and_then(|bias| bias_overflow(node, name, weight, *axis, bias, range)));
                found.extend(depthwise(node, weight));
            }
            _ => found.extend(broken),
        }
    }
    found
}

fn warning(node: &Node, kind: &'static str, severity: Severity, message: String, hint: &str) -> Warning {
    Warning { node: node.name.clone(), kind, severity, message, hint: hint.into() }
}

fn non_finite(node: &Node, name: &str, tensor: &Tensor) -> Option<Warning> {
    let values = tensor.as_f32()?;
    let first = values.iter().position(|v| !v.is_finite())?;
    // Infinite bounds of a Clip, or an infinite padding, are meant.
    if values.len() == 1 && !matches!(node.op, Op::Conv(_) | Op::Gemm(_) | Op::MatMul(_)) {
        return None;
    }
    let count = values.iter().filter(|v| !v.is_finite()).count();
    let message =
        format!("`{name}` has {count} numbers that are not finite, the first at element {first} ({})", values[first]);
    Some(warning(
        node,
        "non_finite",
        Severity::Error,
        message,
        "export the model again from a checkpoint without NaN or infinity",
    ))
}

/// Magnitudes of a weight tensor by output channel.
struct Channels {
    /// Largest magnitude of each channel.
    largest: Vec<f32>,
    /// Second largest.
    second: Vec<f32>,
    /// Weights per channel.
    count: usize,
}

impl Channels {
    fn of(weight: &Tensor, axis: usize) -> Option<Self> {
        let (values, channels) = (weight.as_f32()?, *weight.dims.get(axis)?);
        let inner: usize = weight.dims[axis + 1..].iter().product();
        let (mut largest, mut second) = (vec![0f32; channels], vec![0f32; channels]);
        for (i, w) in values.iter().map(|w| w.abs()).enumerate() {
            let c = i / inner % channels;
            if w > largest[c] {
                second[c] = std::mem::replace(&mut largest[c], w);
            } else {
                second[c] = second[c].max(w);
            }
        }
        (channels > 0 && inner > 0).then(|| Channels { largest, second, count: values.len() / channels })
    }

    fn is_alive(&self, channel: usize) -> bool {
        let most = self.largest.iter().copied().fold(0.0, f32::max);
        most > 0.0 && self.largest[channel] > most * DEAD_SHARE
    }

    fn warnings(&self, node: &Node) -> Vec<Warning> {
        let (alive, dead): (Vec<usize>, Vec<usize>) = (0..self.largest.len()).partition(|&c| self.is_alive(c));
        let living = self.of_living(node, &alive);
        self.of_dead(node, &dead).into_iter().chain(living).chain(self.of_lone(node, &alive)).collect()
    }

    fn of_dead(&self, node: &Node, dead: &[usize]) -> Option<Warning> {
        let first = dead.first()?;
        let message =
            format!("{} of {} output channels have no weights left (first: {first})", dead.len(), self.largest.len());
        let hint = "they put out their bias whatever comes in; harmless at any bits, and could be pruned";
        Some(warning(node, "dead_channels", Severity::Note, message, hint))
    }

    /// A channel that towers above the others, or ranges that lie far apart.
    fn of_living(&self, node: &Node, alive: &[usize]) -> Option<Warning> {
        let mut sorted = alive.to_vec();
        sorted.sort_by(|&a, &b| self.largest[a].total_cmp(&self.largest[b]));
        let (&lowest, &highest) = (sorted.first()?, sorted.last()?);
        let value = |c: usize| self.largest[c];
        let (above, spread) = (value(highest) / value(sorted[sorted.len() / 2]), value(highest) / value(lowest));
        if above >= OUTLIER {
            let message = format!(
                "channel {highest} reaches {:.3}, {above:.0} times the median channel: one scale for all loses {:.1} bits",
                value(highest),
                above.log2()
            );
            let hint = "keep --granularity channel, the default, or let --method auto clip the channel if that costs less; below 8 bits \
                        keep this layer at 8";
            return Some(warning(node, "outlier_channel", Severity::Warning, message, hint));
        }
        (spread >= SPREAD).then(|| {
            let message = format!(
                "ranges of the channels differ {spread:.0}-fold (channel {lowest}: {:.1e}, channel {highest}: {:.1e})",
                value(lowest),
                value(highest)
            );
            let hint = "keep --granularity channel, the default: one scale for all would round the small ones to zero";
            warning(node, "channel_spread", Severity::Warning, message, hint)
        })
    }

    fn of_lone(&self, node: &Node, alive: &[usize]) -> Option<Warning> {
        let ratio = |c: usize| self.largest[c] / self.second[c].max(f32::MIN_POSITIVE);
        let lone: Vec<usize> =
            alive.iter().copied().filter(|&c| self.count >= LEAST_WEIGHTS && ratio(c) >= LONE).collect();
        let worst = *lone.iter().max_by(|&&a, &&b| ratio(a).total_cmp(&ratio(b)))?;
        let message = format!(
            "in {} of {} channels one weight is {LONE} or more times every other (channel {worst}: {:.3} against {:.3})",
            lone.len(),
            self.largest.len(),
            self.largest[worst],
            self.second[worst]
        );
        let hint = "harmless at 8 bits; below, --weight-ranges mse (the default) cuts it off where that pays";
        Some(warning(node, "outlier_weight", Severity::Warning, message, hint))
    }
}

/// Range of the activation `name`, and whether it is known or assumed.
fn input_range(graph: &Graph, name: &str, stats: &Stats) -> (f32, &'static str) {
    if let Some(seen) = stats.0.get(name) {
        let scale = RangeRule::MinMax.params(seen, Grid::activations(8), Mapping::Affine).scale[0];
        return (255.0 * scale, "seen in calibration");
    }
    match super::activations::bounds(graph, name) {
        Some((lo, hi)) => (hi - lo, "as the operator before it bounds it"),
        None => (ASSUMED_RANGE, "assumed; --calib DATA measures it"),
    }
}

fn bias_overflow(
    node: &Node,
    name: &str,
    weight: &Tensor,
    axis: usize,
    bias: &[f32],
    (range, how): (f32, &str),
) -> Option<Warning> {
    let grid = Grid::weights(8);
    let mut scale = weight_params(name, weight, grid, Granularity::Channel { axis }, WeightRule::MinMax).ok()?.scale;
    let before = scale.clone();
    let channels = Channels::of(weight, axis)?;
    let mut raised = guard_bias(&mut scale, range / 255.0, bias);
    raised.retain(|&c| channels.is_alive(c));
    let worst = *raised.iter().max_by(|&&a, &&b| (scale[a] / before[a]).total_cmp(&(scale[b] / before[b])))?;
    let message = format!(
        "{} biases overflow their grid at 8 bits (channel {worst}: bias {:.2e}, weights up to {:.1e}; input range {range:.1} {how})",
        raised.len(),
        bias[worst],
        before[worst] * grid.qmax() as f32
    );
    let hint = "Fewbits widens the weight scale of these channels; their weights are too small to show beside the bias";
    Some(warning(node, "bias_overflow", Severity::Warning, message, hint))
}

fn depthwise(node: &Node, weight: &Tensor) -> Option<Warning> {
    let Op::Conv(conv) = &node.op else { return None };
    if conv.group < 2 || weight.dims.get(1) != Some(&1) {
        return None;
    }
    let taps: usize = weight.dims[2..].iter().product();
    let message = format!("{} channels with {taps} weights each", weight.dims[0]);
    let hint = "needs --granularity channel, the default; suffers first below 8 bits: give it more bits than the rest";
    Some(warning(node, "depthwise", Severity::Note, message, hint))
}

/// The interval that a node with constant bounds clamps to.
pub(super) fn clamp(graph: &Graph, node: &Node) -> Option<(f32, f32)> {
    let facts: Vec<Option<Fact>> = node.inputs.iter().map(|i| graph.constant(i).cloned().map(Fact::constant)).collect();
    let known = node.inputs.iter().zip(&facts).skip(1).all(|(name, fact)| name.is_empty() || fact.is_some());
    let facts: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
    match node.op.def().activation(&facts) {
        Some(Activation::Clamp { min, max }) if known && min.is_finite() && max.is_finite() => Some((min, max)),
        _ => None,
    }
}
