//! Channels that the second network has on other scales, as equalization leaves them. Sums by channel enter; leave factors by which the
//! first network's channels are multiplied before they are compared.
//!
//! A factor per channel is `f_c = Σxy / Σx²` over half of the elements; it is believed where the other half agrees, `Σ(f_c·x − y)²` being
//! 6 dB below `Σ(x − y)²`, and where what is computed of the tensor is on its own scale again and as much closer: else factors would hide
//! an error.

use crate::sqnr::Sqnr;
use fewbits_graph::Graph;
use std::collections::{BTreeMap, BTreeSet};

/// Samples from which factors are found.
pub(super) const SAMPLES: usize = 32;
/// Factors of all channels within this of one are noise.
const NEAR: f64 = 1.25;
/// Channels with less than this share of the power say nothing.
const FAINT: f64 = 1e-6;
/// What factors must bring, dB, and how much closer tensors behind must be: rounding to few bits makes channels smaller, too, but hardly closer.
const GAIN_DB: f64 = 6.0;

/// Two signals by channel (axis 1), of elements at even and at odd places.
#[derive(Clone, Debug, Default)]
pub(super) struct Channels(Vec<[Sqnr; 2]>);

impl Channels {
    /// `values` and `others` of shape `dims`, the first row of which is that of sample `sample`.
    pub(super) fn of(values: &[f32], others: &[f32], dims: &[usize], sample: usize) -> Self {
        let inner = dims.iter().skip(2).product::<usize>().max(1);
        let count = dims.get(1).copied().unwrap_or(1).max(1);
        let mut channels = vec![[Sqnr::default(); 2]; count];
        for (i, (x, y)) in values.chunks(inner).zip(others.chunks(inner)).enumerate() {
            // A single place is even in one sample, odd in the next.
            let first = sample + i / count;
            for (place, pair) in x.iter().zip(y).enumerate() {
                channels[i % count][(first + place) % 2].push(*pair.0, *pair.1);
            }
        }
        Channels(channels)
    }

    /// Adds more of the same signals. Axis 1 may vary.
    pub(super) fn add(&mut self, more: &Channels) {
        self.0.resize(self.0.len().max(more.0.len()), Default::default());
        for (sum, more) in self.0.iter_mut().zip(&more.0) {
            sum.iter_mut().zip(more).for_each(|(sum, more)| sum.add(more));
        }
    }

    /// All channels together.
    pub(super) fn total(&self) -> Sqnr {
        self.0.iter().flatten().copied().sum()
    }

    /// Factors of the channels; `None` if they are on the same scales.
    fn factors(&self) -> Option<Vec<f32>> {
        let [even, odd] = [0, 1].map(|half| self.0.iter().map(|channel| channel[half]).collect::<Vec<Sqnr>>());
        let power = even.iter().copied().sum::<Sqnr>().power();
        let gains: Vec<f64> = even.iter().map(|channel| channel.gain(FAINT * power).unwrap_or(1.0)).collect();
        let after: Sqnr = odd.iter().zip(&gains).map(|(channel, gain)| channel.scaled(*gain)).sum();
        let moved = gains.iter().any(|gain| gain.ln().abs() > NEAR.ln());
        let believed = moved && after.db() >= odd.into_iter().sum::<Sqnr>().db() + GAIN_DB;
        believed.then(|| gains.iter().map(|gain| *gain as f32).collect())
    }
}

/// By what channels of the first network are multiplied in the second one, `graph`, for each tensor of `measured` that is on other scales.
pub(super) fn factors(graph: &Graph, measured: &BTreeMap<String, Channels>) -> BTreeMap<String, Vec<f32>> {
    let mut found: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    let readers = graph.consumers();
    // Readers first, so that what is said of them is known.
    for name in graph.nodes.iter().rev().flat_map(|node| &node.outputs) {
        // What a network puts out is meant as it is.
        let Some(channels) = measured.get(name).filter(|_| !graph.is_output(name)) else { continue };
        let Some(factors) = channels.factors() else { continue };
        let least = channels.total().db() + GAIN_DB;
        let (mut open, mut seen) = (vec![name.as_str()], BTreeSet::new());
        let mut kept = true;
        while let Some(tensor) = open.pop() {
            for output in readers.get(tensor).into_iter().flatten().flat_map(|&reader| &graph.nodes[reader].outputs) {
                match measured.get(output) {
                    _ if found.contains_key(output) || !seen.insert(output) => {}
                    Some(behind) => kept &= behind.total().db() >= least,
                    None => open.push(output),
                }
            }
        }
        if kept {
            found.insert(name.clone(), factors);
        }
    }
    found
}

/// Multiplies each channel (axis 1) by its factor.
pub(super) fn scale(values: &mut [f32], dims: &[usize], factors: &[f32]) {
    let inner = dims.iter().skip(2).product::<usize>().max(1);
    let count = dims.get(1).copied().unwrap_or(1).max(1);
    for (i, values) in values.chunks_mut(inner).enumerate() {
        let factor = factors.get(i % count).copied().unwrap_or(1.0);
        values.iter_mut().for_each(|v| *v *= factor);
    }
}
