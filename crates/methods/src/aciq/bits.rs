//! Bits by channel: wide channels get more codes, narrow ones fewer, as many in sum as if all had the same bits.
//!
//! With `C` channels of `M` bits there are `B = C·2^M` codes to give away; at the least expected error a channel that is clipped at `α_i` gets
//! `B·α_i^(2/3) / Σ_j α_j^(2/3)` of them (Banner et al., §4), and the whole number of bits next to the logarithm. That sum of bits is not
//! `C·M`; the target `M` is moved, as the authors' program does, until it nearly is, and what is left is taken from or given to the channels
//! that rounding favoured or wronged most.

use super::{distance, stretched};
use crate::{
    Draft, Ground, Layer,
    clipping::{Clip, Rounded, Weights, mean_and_width, rounded},
    layers,
    moments::Shape,
};
use fewbits_graph::{Grid, QuantParams};
use fewbits_kernels::Threads;
use fewbits_quant::{ranges::Prior, weights::guard_bias};

/// Most bits of weights whose layer shares them out anew.
pub const MOST_SHARED: u8 = 4;
/// Bits of the grid that holds the codes of all channels, and the most of a channel.
const CONTAINER: u8 = 8;
/// Times that the target is moved.
const MOVES: usize = 10;
/// A mean this near to what is wanted ends that.
const NEAR: f64 = 0.01;

/// Bits of each channel, given where it is clipped: `bits` each on average, 0 to 8. Channels of width 0 get none.
pub fn allocate(clips: &[f64], bits: u8) -> Vec<u8> {
    let wanted = f64::from(bits);
    let shares: Vec<f64> = clips.iter().map(|clip| clip.max(0.0).powf(2.0 / 3.0)).collect();
    let sum: f64 = shares.iter().sum();
    if !(sum > 0.0 && sum.is_finite()) {
        return vec![bits; clips.len()];
    }
    let count = clips.len() as f64;
    let ideal = |target: f64| shares.iter().map(|s| target + (count * s / sum).log2()).collect::<Vec<f64>>();
    let whole = |ideal: &[f64]| ideal.iter().map(|b| b.round().clamp(0.0, CONTAINER.into()) as u8).collect::<Vec<u8>>();
    let total = |found: &[u8]| found.iter().map(|b| usize::from(*b)).sum::<usize>();
    let mut target = wanted;
    let mut found = whole(&ideal(target));
    for _ in 0..MOVES {
        let gap = wanted - total(&found) as f64 / count;
        if gap.abs() <= NEAR {
            break;
        }
        target += 0.5 * gap;
        found = whole(&ideal(target));
    }
    let ideal = ideal(target);
    let goal = usize::from(bits) * clips.len();
    loop {
        // Of equals the first.
        let favour = |i: &usize| f64::from(found[*i]) - ideal[*i];
        let by_favour = |a: &usize, b: &usize| favour(a).total_cmp(&favour(b)).then(b.cmp(a));
        let (next, up) = match total(&found).cmp(&goal) {
            std::cmp::Ordering::Equal => break,
            std::cmp::Ordering::Greater => ((0..found.len()).filter(|i| found[*i] > 0).max_by(by_favour), false),
            std::cmp::Ordering::Less => {
                let open = (0..found.len()).filter(|i| found[*i] < CONTAINER && shares[*i] > 0.0);
                (open.min_by(|a, b| favour(a).total_cmp(&favour(b)).then(a.cmp(b))), true)
            }
        };
        let Some(next) = next else { break };
        found[next] = if up { found[next] + 1 } else { found[next] - 1 };
    }
    found
}

/// Rounds the weights of `draft` that have a scale for each channel and at most four bits to bits by channel. Their grids get 8 bits, whose
/// codes those of every channel are among. Returns a line for a report; nothing where no layer has such weights.
pub fn share_out(ground: Ground<'_>, draft: &mut Draft, threads: &Threads) -> Option<String> {
    let (mut channels, mut counts, mut layers_done) = (0, [0usize; CONTAINER as usize + 1], 0);
    for layer in layers(ground.float, ground.placement) {
        let dims = ground.facts.get(&layer.input).map(|fact| &fact.dims[..]);
        let Some(shape) = dims.and_then(|dims| Shape::of(ground.float, &layer, dims)) else { continue };
        let Some(weights) = Weights::of(ground, draft, &layer, &shape) else { continue };
        if weights.bits() > MOST_SHARED || weights.params.scale.len() != shape.channels() {
            continue;
        }
        let bits = share_layer(ground, draft, &layer, &weights, threads);
        bits.iter().for_each(|b| counts[usize::from(*b)] += 1);
        (channels, layers_done) = (channels + bits.len(), layers_done + 1);
    }
    let listed = counts.iter().enumerate().filter(|(_, count)| **count > 0);
    let listed: Vec<String> = listed.map(|(bits, count)| format!("{count} of {bits}")).collect();
    (layers_done > 0).then(|| {
        format!(
            "{channels} channels of {layers_done} layers by bits: {}; codes are in 8-bit containers, which integer kernels compute, but \
             the file is no smaller for them",
            listed.join(", ")
        )
    })
}

fn share_layer(
    ground: Ground<'_>,
    draft: &mut Draft,
    layer: &Layer,
    weights: &Weights<'_>,
    threads: &Threads,
) -> Vec<u8> {
    let priors = [Prior::Laplace, Prior::Gauss];
    // By bits from two on, by prior, by channel.
    let clips: Vec<[Vec<Option<f32>>; 2]> = (2..=CONTAINER)
        .map(|bits| priors.map(|prior| Clip::Aciq(prior).magnitudes(&weights.rows, weights.width(), bits, threads)))
        .collect();
    let scale = |group: usize, bits: u8, prior: usize| {
        let row = weights.group(group);
        let scale = match bits {
            0 => 0.0,
            // Two codes, a sign: the mean magnitude is best.
            1 => mean_and_width(&row.iter().map(|w| w.abs()).collect::<Vec<_>>(), Prior::Laplace).0 as f32,
            _ => clips[usize::from(bits - 2)][prior][group].unwrap_or(0.0) / Grid::weights(bits).qmax() as f32,
        };
        // Where all codes are 0, any scale will do: that of the grid so far keeps the bias's resolution.
        if scale.is_normal() { scale } else { weights.params.scale[group] }
    };
    let at = weights.bits();
    let error = |group: usize, prior: usize| {
        distance(weights.group(group), &on_grid(weights.group(group), scale(group, at, prior), at))
    };
    let prior = weights.each_group(threads, |group| usize::from(error(group, 1) < error(group, 0)));
    let clip = |(group, prior): (usize, &usize)| clips[usize::from(at - 2)][*prior][group].unwrap_or(0.0).into();
    let bits = allocate(&prior.iter().enumerate().map(clip).collect::<Vec<f64>>(), at);
    let mut scales: Vec<f32> = (0..bits.len()).map(|group| scale(group, bits[group], prior[group])).collect();
    let rows = |scales: &[f32]| -> Vec<f32> {
        (0..bits.len()).flat_map(|group| on_grid(weights.group(group), scales[group], bits[group])).collect()
    };
    let mut new = stretched(weights, Rounded { rows: rows(&scales), scale: scales.clone() });
    let input = draft.grids.params(&layer.input).and_then(QuantParams::tensor_params);
    let bias = layer.bias.as_ref().and_then(|bias| ground.float.constant(bias)?.as_f32());
    if let (Some((input, _)), Some(bias)) = (input, bias) {
        scales.clone_from(&new.scale);
        if !guard_bias(&mut scales, input, bias).is_empty() {
            new = Rounded { rows: rows(&scales), scale: scales };
        }
    }
    let params = QuantParams { grid: Grid::weights(CONTAINER), scale: new.scale, ..weights.params.clone() };
    if let Some(old) = ground.float.constant(&layer.weight) {
        draft.set_constant(&layer.weight, weights.shape.tensor(&old.dims, new.rows));
        draft.set_params(&layer.weight, params);
    }
    bits
}

/// `row` on the symmetric narrow grid of `bits` bits: of one bit the codes −1 and 1, of none the code 0.
fn on_grid(row: &[f32], scale: f32, bits: u8) -> Vec<f32> {
    match bits {
        0 => vec![0.0; row.len()],
        1 => row.iter().map(|w| if *w < 0.0 { -scale } else { scale }).collect(),
        _ => rounded(row, scale, bits),
    }
}
