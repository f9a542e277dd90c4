//! What of a layer's output those behind it can tell apart.

use crate::{Draft, Ground, Layer};
use fewbits_graph::op::Activation;
use fewbits_kernels::simd::Isa;

/// `f(y + b)`: the activation behind a layer, if it is one that clips or bends a line, and the ends of the grid behind that. What two
/// outputs differ by outside of it is nothing that the layers behind would notice, so that no layer has to make up for it.
///
/// Clipped outliers are most of it: in the last blocks of MobileNetV2 they are most of the error, by design of the range.
pub(super) struct Window {
    /// By output channel.
    bias: Vec<f32>,
    activation: Activation,
    range: (f32, f32),
}

impl Window {
    /// That of `layer`, which has `channels` outputs.
    pub fn of(ground: &Ground<'_>, draft: &Draft, layer: &Layer, channels: usize) -> Self {
        let float = ground.float;
        let bias = layer.bias.as_ref().and_then(|name| float.constant(name)).and_then(|bias| bias.as_f32());
        let bias = match bias {
            Some(bias) if bias.len() == channels => bias.to_vec(),
            Some(&[bias]) => vec![bias; channels],
            None => vec![0.0; channels],
            // One for each row: where the ends are depends on the row.
            Some(_) => {
                return Window { bias: vec![0.0; channels], activation: Activation::Identity, range: EVERYTHING };
            }
        };
        let grid = |name: &str| draft.grids.params(name).map(|params| params.range(0));
        let mut readers = float.nodes.iter().filter(|node| node.inputs.contains(&layer.output));
        let behind = match (readers.next(), readers.next()) {
            (Some(reader), None) if grid(&layer.output).is_none() && !float.is_output(&layer.output) => Some(reader),
            _ => None,
        };
        let activation = behind.and_then(|node| {
            let constants = node.inputs.iter().map(|name| ground.facts.get(name));
            node.op.def().activation(&constants.collect::<Vec<_>>())
        });
        match (behind, activation) {
            (Some(node), Some(activation)) if passes_differences(activation) => {
                Window { bias, activation, range: grid(node.output()).unwrap_or(EVERYTHING) }
            }
            _ => {
                let range = grid(&layer.output).unwrap_or(EVERYTHING);
                Window { bias, activation: Activation::Identity, range }
            }
        }
    }

    /// `f(y + b)` in place, for rows of outputs of the channels from `first` on.
    pub fn see(&self, first: usize, outputs: usize, y: &mut [f32]) {
        let bias = &self.bias[first..][..outputs];
        y.chunks_mut(outputs).for_each(|row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
        self.activation.apply(Isa::best(), y);
        let (low, high) = self.range;
        y.iter_mut().for_each(|y| *y = y.max(low).min(high));
    }
}

const EVERYTHING: (f32, f32) = (f32::NEG_INFINITY, f32::INFINITY);

/// Whether differences in front of it are about the same behind it, where they come through at all: where they do not, they count by as
/// much as comes through.
fn passes_differences(activation: Activation) -> bool {
    matches!(activation, Activation::Clamp { .. } | Activation::LeakyRelu { .. } | Activation::HardSwish)
}
