//! Statistics tuning: each channel of a quantized layer gets back the mean and the spread that it has in the float network.
//!
//! # What it does
//! Where BatchNormalizations stay in a quantized network, measuring their statistics anew makes up for much of what rounding did. Here
//! they are folded, so that the same is done to the layer: with mean and deviation `μ`, `σ` of a channel before its activation in the
//! float network and `μ̂`, `σ̂` in the quantized one, the channel's scale is multiplied by `r = σ/σ̂` and its bias `b` becomes
//! `r b + μ − r μ̂`. Codes stay. Layers come one after the other, each measured with those before it in their final form.
//!
//! # When it helps
//! At few bits, where rounding shrinks or stretches whole channels, and after methods that look at weights alone.
//!
//! # When it fails
//! Where the error of a channel is noise and not a factor: stretching makes noise larger. Samples that are held back decide for each
//! layer between both corrections, that of the mean alone, and none.
//!
//! # Cost
//! One pass over the samples for each layer.
//!
//! # Config
//! [`Config`].
//!
//! # Source
//! The idea of measuring BatchNormalization statistics anew in the quantized network, and for means Finkelstein et al., "Fighting
//! Quantization Bias With Bias" (2019).
//!
//! # Departures
//! The folded form. Statistics aimed at are the float network's on the same samples, not those of training. Factors keep within
//! [`Config::factors`]; weights with one scale for all channels get means only.

use crate::{
    BlockMethod, Draft, Layer, MethodError, Walk,
    walk::{LANES, Run, Side},
};
use fewbits_graph::{Granularity, Graph, Op, Tensor, exec::Mode};

/// Of how many samples one is held back for judging; a divisor of what other methods have, as mirror images go by that.
const HELD_BACK: usize = 4;
/// Channels whose variance is below this part of the layer's mean variance keep their scale.
const SILENT: f64 = 1e-4;

/// What is tuned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// Deviations too, not means alone; without them it is [`crate::bias_correction::sequential`].
    pub deviation: bool,
    /// Smallest and largest factor on a scale.
    pub factors: [f64; 2],
    /// Hold back samples, and do only what lowers the error on them.
    pub guard: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config { deviation: true, factors: [0.5, 2.0], guard: true }
    }
}

/// The method.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BnTune {
    /// What is tuned.
    pub config: Config,
}

impl BlockMethod for BnTune {
    fn name(&self) -> &'static str {
        if self.config.deviation { "bn-tune" } else { "bias-correction-sequential" }
    }

    fn improve(&self, walk: &Walk<'_>, draft: &mut Draft) -> Result<(), MethodError> {
        let layers = walk.block().map(|block| block.layers.clone()).unwrap_or_default();
        layers.iter().try_for_each(|layer| self.layer(walk, draft, layer))
    }
}

/// A channel's new output is `factor · old + shift`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Change {
    factor: f64,
    shift: f64,
}

impl BnTune {
    fn layer(&self, walk: &Walk<'_>, draft: &mut Draft, layer: &Layer) -> Result<(), MethodError> {
        let graph = walk.ground().float;
        let Some(biases) = biases(graph, draft, layer) else { return Ok(()) };
        let Some([fit, held]) = measure(walk, draft, layer, biases.len(), self.config.guard)? else { return Ok(()) };
        let scaled = self.config.deviation && scales_by_channel(draft, layer, biases.len());
        let kept = vec![Change { factor: 1.0, shift: 0.0 }; fit.len()];
        let means: Vec<Change> = fit.iter().map(|channel| channel.matching_mean(1.0)).collect();
        let mut candidates = vec![means];
        if scaled {
            candidates.push(self.matching_deviation(&fit));
        }
        // Later candidates do more: with nothing held back the last one is meant.
        let best = match held.iter().all(|channel| channel.count > 0.0) {
            true => {
                let error = |changes: &[Change]| -> f64 { held.iter().zip(changes).map(|(c, to)| c.error(*to)).sum() };
                let least = |a: Vec<Change>, b: Vec<Change>| if error(&b) < error(&a) { b } else { a };
                candidates.into_iter().fold(kept, least)
            }
            false => candidates.pop().unwrap_or(kept),
        };
        apply(draft, layer, &biases, &best);
        Ok(())
    }

    fn matching_deviation(&self, fit: &[Channel]) -> Vec<Change> {
        let typical = fit.iter().map(|channel| channel.variances()[0]).sum::<f64>() / fit.len().max(1) as f64;
        let [low, high] = self.config.factors;
        let change = |channel: &Channel| {
            let [float, quantized] = channel.variances();
            let silent = float.min(quantized) <= SILENT * typical;
            channel.matching_mean(if silent { 1.0 } else { (float / quantized).sqrt().clamp(low, high) })
        };
        fit.iter().map(change).collect()
    }
}

/// Sums over the samples and positions of one channel: float values `f`, quantized values `q`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Channel {
    count: f64,
    /// `Σ f`, `Σ q`
    first: [f64; 2],
    /// `Σ f²`, `Σ q²`
    second: [f64; 2],
    /// `Σ f q`
    product: f64,
}

impl Channel {
    fn add(&mut self, f: f32, q: f32) {
        let (f, q) = (f64::from(f), f64::from(q));
        self.count += 1.0;
        self.first = [self.first[0] + f, self.first[1] + q];
        self.second = [self.second[0] + f * f, self.second[1] + q * q];
        self.product += f * q;
    }

    fn join(&mut self, other: &Channel) {
        self.count += other.count;
        self.product += other.product;
        for side in 0..2 {
            self.first[side] += other.first[side];
            self.second[side] += other.second[side];
        }
    }

    fn means(&self) -> [f64; 2] {
        self.first.map(|sum| sum / self.count.max(1.0))
    }

    fn variances(&self) -> [f64; 2] {
        let means = self.means();
        [0, 1].map(|side| (self.second[side] / self.count.max(1.0) - means[side] * means[side]).max(0.0))
    }

    /// The change by `factor` that brings the mean to the float one.
    fn matching_mean(&self, factor: f64) -> Change {
        let [float, quantized] = self.means();
        Change { factor, shift: float - factor * quantized }
    }

    /// `Σ (factor q + shift − f)²`
    fn error(&self, Change { factor, shift }: Change) -> f64 {
        let squares = factor * factor * self.second[1] + self.count * shift * shift + self.second[0];
        squares + 2.0 * (factor * shift * self.first[1] - factor * self.product - shift * self.first[0])
    }
}

/// The layer's biases as `draft` has them, if they are its alone.
fn biases(graph: &Graph, draft: &Draft, layer: &Layer) -> Option<Vec<f32>> {
    let name = layer.bias.as_ref()?;
    let plain = match &graph.nodes[layer.node].op {
        Op::Gemm(gemm) => gemm.alpha == 1.0 && gemm.beta == 1.0,
        op => matches!(op, Op::Conv(_) | Op::ConvTranspose(_)),
    };
    let alone = |name: &String| {
        graph.nodes.iter().flat_map(|node| node.present_inputs()).filter(|input| input == name).count() == 1
    };
    let bias = draft.graph.constant(name)?.as_f32()?;
    (plain && alone(name) && alone(&layer.weight)).then(|| bias.to_vec())
}

fn scales_by_channel(draft: &Draft, layer: &Layer, channels: usize) -> bool {
    let by_channel = |p: &fewbits_graph::QuantParams| {
        p.granularity == Granularity::Channel { axis: layer.axis } && p.scale.len() == channels
    };
    draft.grids.params(&layer.weight).is_some_and(by_channel)
}

/// Sums by channel of what the layer puts out in both networks, from the samples that are learned from and from those held back.
/// `None` if outputs have no such channels.
fn measure(
    walk: &Walk<'_>,
    draft: &Draft,
    layer: &Layer,
    channels: usize,
    guard: bool,
) -> Result<Option<[Vec<Channel>; 2]>, MethodError> {
    let Some(block) = walk.block() else { return Ok(None) };
    let names = [layer.output.as_str()];
    let (float, quantized) = (block.part(walk.ground().float, &names)?, block.part(&draft.graph, &names)?);
    // What counts is the layer's result before it is rounded to a grid of its own.
    let mut grids = draft.grids.clone();
    grids.0.remove(&layer.output);
    let runs = [
        Run { side: Side::Float, part: &float, mode: Mode::Float },
        Run { side: Side::Quantized, part: &quantized, mode: Mode::FakeQuant(&grids) },
    ];
    let start = || [vec![Channel::default(); channels], vec![Channel::default(); channels]];
    let lanes = walk.each(&runs, 0..walk.samples(), LANES, start, |sums, sample, outputs| {
        let part = usize::from(guard && sample % HELD_BACK == HELD_BACK - 1);
        let mut tensors = outputs.into_iter().flatten();
        if let (Some(f), Some(q)) = (tensors.next(), tensors.next()) {
            add(&mut sums[part], &f, &q);
        }
        Ok(())
    })?;
    let mut total = start();
    for lane in &lanes {
        for (total, part) in total.iter_mut().flatten().zip(lane.iter().flatten()) {
            total.join(part);
        }
    }
    Ok(Some(total).filter(|[fit, _]| fit.iter().all(|channel| channel.count > 0.0)))
}

/// Adds two outputs `[N, C, …]`.
fn add(sums: &mut [Channel], f: &Tensor, q: &Tensor) {
    let (Some(all_f), Some(all_q)) = (f.as_f32(), q.as_f32()) else { return };
    let plane: usize = f.dims.iter().skip(2).product();
    if f.dims.get(1) != Some(&sums.len()) || plane == 0 {
        return;
    }
    for (i, (f, q)) in all_f.chunks(plane).zip(all_q.chunks(plane)).enumerate() {
        let mut channel = Channel::default();
        f.iter().zip(q).for_each(|(f, q)| channel.add(*f, *q));
        sums[i % sums.len()].join(&channel);
    }
}

/// Changes biases, and weights that have a scale per channel; codes stay.
fn apply(draft: &mut Draft, layer: &Layer, biases: &[f32], changes: &[Change]) {
    let new = biases.iter().zip(changes).map(|(b, c)| (c.factor * f64::from(*b) + c.shift) as f32);
    let new: Vec<f32> = new.collect();
    let (Some(name), Some(weight)) = (&layer.bias, draft.graph.constant(&layer.weight).cloned()) else { return };
    let Some(old) = draft.graph.constant(name).cloned().filter(|_| new.iter().all(|b| b.is_finite())) else { return };
    draft.set_constant(name, Tensor::f32(&old.dims, new));
    if changes.iter().all(|c| c.factor == 1.0) {
        return;
    }
    let (Some(params), Some(values)) = (draft.grids.params(&layer.weight), weight.as_f32()) else { return };
    let mut params = params.clone();
    let [low, high] = [params.grid.qmin() as f32, params.grid.qmax() as f32];
    let scales: Vec<f32> = params.scale.iter().zip(changes).map(|(s, c)| (f64::from(*s) * c.factor) as f32).collect();
    let inner: usize = weight.dims.iter().skip(layer.axis + 1).product();
    let scaled = |(i, w): (usize, &f32)| {
        let channel = i / inner % scales.len();
        (w / params.scale[channel]).round_ties_even().clamp(low, high) * scales[channel]
    };
    let values = values.iter().enumerate().map(scaled).collect();
    params.scale = scales.clone();
    draft.set_constant(&layer.weight, Tensor::f32(&weight.dims, values));
    draft.set_params(&layer.weight, params);
}

#[cfg(test)]
mod tests;
