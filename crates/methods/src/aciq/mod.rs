//! ACIQ: weights clipped where a distribution of their width has the least expected error, then brought back to their own width.
//!
//! # What it does
//! Each channel's clip is the analytic one for a Laplace or a normal distribution ([`fewbits_quant::ranges::optimum`]), whichever leaves the lower
//! squared error of the weights. Rounding changes mean and deviation of a channel's weights: the deviation is brought back with the
//! factor `ξ = ‖w − E w‖ / ‖ŵ − E ŵ‖` on the scale, the codes staying as they are; what the mean does to the outputs goes off the bias.
//!
//! # When it helps
//! At four bits, from few samples: nothing is fitted to them but the bias. `--ranges aciq` clips activations by the same formula.
//!
//! # When it fails
//! Weights that look like neither distribution; a search over scales (`omse`, `seq-mse`) finds better ones. In deep networks without slack
//! (MobileNetV2) more deviation is more noise too.
//!
//! # Cost
//! Two roundings of the weights; one pass over the samples for the biases.
//!
//! # Config
//! None.
//!
//! # Source
//! Banner, Nahshan, Soudry, "Post training 4-bit quantization of convolutional networks for rapid-deployment" (NeurIPS 2019), equations
//! 1–6 (clip), 12 and 13 (correction of weights).
//!
//! # Departures
//! The paper adds `E w − E ŵ` to the weights, which are no codes then; its mean effect on the outputs is in the bias instead, with that
//! of all other rounding errors. The authors saw no gain from clipping weights and used the clip for activations alone.
//!
//! Bits by channel are a choice of granularity, not part of this method: [`bits`] (`--granularity channel-bits`). For *weights* they
//! fit kernels as they are: a channel's codes of 8 bits or fewer are codes of an 8-bit grid with the channel's own scale, so integer kernels
//! compute exactly these numbers. What is not there is the size: the container has 8 bits, and no runtime stores mixed widths in a
//! tensor. A channel of one bit has the codes −1 and 1, of none the code 0; from two on grids are narrow, where the paper's have `2^M`
//! codes. The sum of bits is exactly that of equal bits. Channels of *activations* have none: their scales would be inside of the sum of a
//! layer, which no integer kernel has.

pub mod bits;

use crate::{
    BlockMethod, Draft, MethodError, Walk,
    clipping::{Clip, Rounded, Weights, mean_and_width, round_layers, rounded},
    moments::Left,
};
use fewbits_kernels::Threads;
use fewbits_quant::ranges::Prior;

/// The method.
#[derive(Debug, Default)]
pub struct Aciq {
    left: Left,
}

impl BlockMethod for Aciq {
    fn name(&self) -> &'static str {
        "aciq"
    }

    fn improve(&self, walk: &Walk<'_>, draft: &mut Draft) -> Result<(), MethodError> {
        round_layers(walk, draft, &self.left, |weights, _, _| round(weights, walk.threads()))
    }

    fn findings(&self) -> Vec<String> {
        self.left.findings()
    }
}

fn round(weights: &Weights<'_>, threads: &Threads) -> Rounded {
    let clips = [Prior::Laplace, Prior::Gauss].map(|prior| weights.clips(Clip::Aciq(prior), threads));
    let scale = weights.each_group(threads, |group| {
        let [laplace, gauss] = [0, 1].map(|prior: usize| weights.scale(group, clips[prior][group]));
        let error = |scale| distance(weights.group(group), &rounded(weights.group(group), scale, weights.bits()));
        if error(gauss) < error(laplace) { gauss } else { laplace }
    });
    stretched(weights, weights.rounded(scale))
}

/// The same codes with scales that give each group its deviation back.
fn stretched(weights: &Weights<'_>, Rounded { mut rows, mut scale }: Rounded) -> Rounded {
    for (group, (new, scale)) in rows.chunks_mut(weights.width().max(1)).zip(&mut scale).enumerate() {
        let wider = *scale * deviation_factor(weights.group(group), new);
        new.iter_mut().for_each(|w| *w = (*w / *scale).round_ties_even() * wider);
        *scale = wider;
    }
    Rounded { rows, scale }
}

/// `ξ`; 1 where a deviation is zero.
fn deviation_factor(old: &[f32], new: &[f32]) -> f32 {
    let deviation = |values| mean_and_width(values, Prior::Gauss).1;
    let factor = (deviation(old) / deviation(new)) as f32;
    if factor.is_normal() { factor } else { 1.0 }
}

/// `Σ (w − ŵ)²`
fn distance(old: &[f32], new: &[f32]) -> f64 {
    old.iter().zip(new).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

#[cfg(test)]
mod tests;
