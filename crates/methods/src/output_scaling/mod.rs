//! Output scaling: the channels of a network's last convolution brought to one range, and back to their own in float behind it.
//!
//! # What it does
//! A last convolution `y = W x + b` whose output is decoded in float has one grid for all channels: box offsets of ±3 share it with
//! class scores of −30…8. Instead it computes `u_c = (y_c − o_c) / s_c` within ±1 for every channel (weights and bias absorb
//! scale and offset exactly), and `y_c = s_c·u_c + o_c` follows in float, where the decoding is float anyway. Preparation leaves a
//! neutral multiplication and addition behind each last convolution for this; unused ones are dropped on export.
//!
//! # When it helps
//! Detection and segmentation heads, whose channels mean different things.
//!
//! # When it fails
//! A channel that never showed its range in calibration would be clipped. Hence each range is widened by a quarter, and reaches at
//! least [`OTHER_SIDE`] of its length to the other side of zero: a class that was never seen has only negative scores.
//!
//! # Cost
//! Channel extremes of a few samples; at run time one multiplication and addition per output element.
//!
//! # Config
//! None.
//!
//! # Source
//! Our own; the per-channel counterpart for outputs of per-channel weights.
//!
//! # Departures
//! None.

use fewbits_graph::{Graph, Op, Tensor, passes::OutputSlot};
use fewbits_quant::{Range, Stats, stats::ChannelStats};
use std::{collections::BTreeMap, sync::Arc};

/// How far a range reaches at least to the other side of zero, as a share of its reach on this side.
pub const OTHER_SIDE: f32 = 0.3;
/// Factor by which observed ranges are widened.
const MARGIN: f32 = 1.25;

/// Replacement constants, and the tensors that they bring to a known range.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scaling {
    /// Weights, biases, scales and offsets by name.
    pub patches: BTreeMap<String, Arc<Tensor>>,
    /// Ranges by tensor name.
    pub ranges: BTreeMap<String, Range>,
}

/// Scalings of the `slots` of `graph` whose tensors have statistics by channel.
pub fn scaling(graph: &Graph, slots: &[OutputSlot], stats: &Stats) -> Scaling {
    let mut found = Scaling::default();
    for slot in slots {
        let Some(channels) = stats.0.get(&slot.tensor).and_then(|s| s.channels.as_ref()) else { continue };
        let node = &graph.nodes[slot.layer];
        let constant = |i: usize| node.input(i).and_then(|name| graph.constant(name));
        let (Some(weight), Some(bias)) = (constant(1), constant(2)) else { continue };
        let (Some(weights), Some(biases)) = (weight.as_f32(), bias.as_f32()) else { continue };
        let ranges = ranges(channels, slot.rectified);
        if !matches!(node.op, Op::Conv(_)) || ranges.len() != biases.len() || ranges.is_empty() {
            continue;
        }
        let row = weights.len() / ranges.len();
        let divided = |(i, w): (usize, &f32)| w / ranges[i / row].1;
        let shifted = |(b, (offset, scale)): (&f32, &(f32, f32))| (b - offset) / scale;
        let per_channel = |values: Vec<f32>| Arc::new(Tensor::f32(&[ranges.len(), 1, 1], values));
        let weights = Tensor::f32(&weight.dims, weights.iter().enumerate().map(divided).collect());
        let biases = Tensor::f32(&bias.dims, biases.iter().zip(&ranges).map(shifted).collect());
        found.patches.extend([
            (node.inputs[1].clone(), Arc::new(weights)),
            (node.inputs[2].clone(), Arc::new(biases)),
            (slot.scale.clone(), per_channel(ranges.iter().map(|r| r.1).collect())),
            (slot.offset.clone(), per_channel(ranges.iter().map(|r| r.0).collect())),
        ]);
        found.ranges.insert(slot.tensor.clone(), Range { lo: if slot.rectified { 0.0 } else { -1.0 }, hi: 1.0 });
    }
    found
}

/// Offset and scale of each channel: `(x − offset) / scale` lies within ±1, or within 0…1 behind a Relu (offset 0).
fn ranges(channels: &ChannelStats, rectified: bool) -> Vec<(f32, f32)> {
    let widest = channels.largest().into_iter().fold(0f32, f32::max);
    // A channel without a range of its own gets a small one.
    let least = (1e-3 * widest).max(1e-6);
    let range = |(&lo, &hi): (&f32, &f32)| {
        let (lo, hi) = (MARGIN * lo.min(0.0), MARGIN * hi.max(0.0));
        if rectified {
            // A class that was never seen may come up yet.
            return (0.0, hi.max(OTHER_SIDE * widest).max(least));
        }
        let (lo, hi) = (lo.min(-OTHER_SIDE * hi), hi.max(-OTHER_SIDE * lo));
        (0.5 * (lo + hi), (0.5 * (hi - lo)).max(least))
    };
    channels.min.iter().zip(&channels.max).map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_leave_room_on_both_sides_of_zero() {
        let channels =
            ChannelStats { count: 1, min: vec![-20.0, -2.0, 0.0], max: vec![-5.0, 2.0, 0.0], ..Default::default() };
        let reach = |(offset, scale): (f32, f32)| (offset - scale, offset + scale);
        let found: Vec<_> = ranges(&channels, false).into_iter().map(reach).collect();
        let close = |(a, b): (f32, f32), (c, d): (f32, f32)| (a - c).abs() < 1e-4 && (b - d).abs() < 1e-4;
        assert!(close(found[0], (-25.0, 7.5)), "a class that was never seen: {:?}", found[0]);
        assert!(close(found[1], (-2.5, 2.5)));
        assert!(found[2].1 > found[2].0, "a silent channel");
        let rectified = ranges(&ChannelStats { min: vec![0.0; 3], max: vec![10.0, 1.0, 0.0], ..channels }, true);
        assert_eq!(rectified, [(0.0, 12.5), (0.0, 3.0), (0.0, 3.0)]);
    }
}
