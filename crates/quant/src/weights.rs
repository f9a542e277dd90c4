//! From weights to their scales. Weights are constants, so every element counts and nothing is estimated.
//!
//! What enters: a weight tensor, a symmetric grid, a granularity. What leaves: scales. Zero points are 0.

use crate::error::QuantError;
use fewbits_graph::{Granularity, Grid, QuantParams, Tensor};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// How the range of weights is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightRule {
    /// `minmax`: the largest magnitude is the largest code.
    MinMax,
    /// `mse`: the least squared error between the weights and their codes.
    #[default]
    Mse,
}

impl fmt::Display for WeightRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WeightRule::MinMax => "minmax",
            WeightRule::Mse => "mse",
        })
    }
}

impl FromStr for WeightRule {
    type Err = QuantError;

    fn from_str(text: &str) -> Result<Self, QuantError> {
        match text {
            "minmax" => Ok(WeightRule::MinMax),
            "mse" => Ok(WeightRule::Mse),
            _ => Err(QuantError::UnknownWeightRule { text: text.into() }),
        }
    }
}

/// The grid of `weight` with a scale for each group of `granularity` ([`Granularity::Block`] is not a weight granularity here).
///
/// A group without a usable element (all zero, or so small that the scale would not be a normal number) takes the largest scale
/// of the others, or 1 if there is none: its codes are 0 all the same, and its bias keeps a resolution like theirs.
///
/// # Errors
/// A weight that is not a float tensor, that has an infinite or NaN element, or whose granularity does not fit its shape.
pub fn weight_params(
    name: &str,
    weight: &Tensor,
    grid: Grid,
    granularity: Granularity,
    rule: WeightRule,
) -> Result<QuantParams, QuantError> {
    let values = weight.as_f32().ok_or_else(|| QuantError::NotFloat { tensor: name.into(), dtype: weight.dtype() })?;
    if let Some(index) = values.iter().position(|w| !w.is_finite()) {
        return Err(QuantError::NotFinite { tensor: name.into(), index, value: values[index] });
    }
    let scale = |group: &[f32]| match rule {
        WeightRule::MinMax => largest(group) / grid.qmax() as f32,
        WeightRule::Mse => mse_scale(group, grid),
    };
    let scales = match granularity {
        Granularity::Tensor => vec![scale(values)],
        Granularity::Channel { axis } if axis < weight.dims.len() => each_channel(values, &weight.dims, axis, scale),
        _ => return Err(QuantError::Granularity { tensor: name.into(), granularity, dims: weight.dims.clone() }),
    };
    let usable = |s: &&f32| s.is_normal();
    let substitute = scales.iter().filter(usable).copied().reduce(f32::max).unwrap_or(1.0);
    let scale: Vec<f32> = scales.iter().map(|s| if s.is_normal() { *s } else { substitute }).collect();
    Ok(QuantParams { grid, granularity, zero_point: vec![0; scale.len()], scale })
}

/// Calls `f` with the elements of each channel along `axis`.
fn each_channel(values: &[f32], dims: &[usize], axis: usize, f: impl Fn(&[f32]) -> f32) -> Vec<f32> {
    let (channels, inner) = (dims[axis], dims[axis + 1..].iter().product::<usize>());
    if inner == 0 || values.is_empty() {
        return vec![0.0; channels];
    }
    let mut group = Vec::with_capacity(values.len() / channels);
    (0..channels)
        .map(|channel| {
            group.clear();
            let rows = values.chunks_exact(inner).skip(channel).step_by(channels);
            rows.for_each(|row| group.extend_from_slice(row));
            f(&group)
        })
        .collect()
}

/// The largest magnitude.
pub fn largest(group: &[f32]) -> f32 {
    group.iter().fold(0.0, |m, w| if w.abs() > m { w.abs() } else { m })
}

/// Candidates of the first search, as shares of the largest magnitude: from 1 down in equal steps.
const CANDIDATES: usize = 80;
/// The least candidate. Two bits may clip a long tail this far.
const LEAST_SHARE: f32 = 0.2;

/// The symmetric scale with the least `Σ (w − s·q(w))²`: 80 candidates, then the neighbourhood of the best in ever smaller steps.
fn mse_scale(group: &[f32], grid: Grid) -> f32 {
    let full = largest(group) / grid.qmax() as f32;
    if !full.is_normal() {
        return full;
    }
    let mut step = (1.0 - LEAST_SHARE) / (CANDIDATES - 1) as f32;
    let mut best = (1.0, f32::INFINITY);
    let try_share = |best: &mut (f32, f32), share: f32| {
        let error = squared_error(group, full * share, grid, best.1);
        if error < best.1 {
            *best = (share, error);
        }
    };
    for i in 0..CANDIDATES {
        try_share(&mut best, 1.0 - i as f32 * step);
    }
    for _ in 0..4 {
        step *= 0.5;
        let share = best.0;
        try_share(&mut best, (share + step).min(1.0));
        try_share(&mut best, share - step);
    }
    full * best.0
}

/// Half to even, of a number of magnitude below 2^22: what is added leaves no bits after the point. Instruction sets without rounding do
/// this several times faster than a call.
#[inline(always)]
pub fn nearest(code: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 · 2^23
    (code + MAGIC) - MAGIC
}

const LANES: usize = 8;

/// `Σ (w − s·clamp(round(w/s)))²`, or something not below `give_up` as soon as the sum reaches it. For comparing candidates: it
/// multiplies by `1/s` where the quantizer divides, which moves a tie to a neighbour at the same distance.
fn squared_error(group: &[f32], scale: f32, grid: Grid, give_up: f32) -> f32 {
    let (inverse, lo, hi) = (1.0 / scale, grid.qmin() as f32, grid.qmax() as f32);
    let error = |w: f32| {
        let code = w * inverse;
        let code = if code > lo { code } else { lo };
        let code = if code < hi { code } else { hi };
        let rest = w - nearest(code) * scale;
        rest * rest
    };
    let mut sum = 0.0;
    for chunk in group.chunks(32 * LANES) {
        let mut lanes = [0f32; LANES];
        let (rows, tail) = chunk.as_chunks::<LANES>();
        for row in rows {
            lanes.iter_mut().zip(row).for_each(|(lane, &w)| *lane += error(w));
        }
        sum += lanes.iter().sum::<f32>() + tail.iter().map(|&w| error(w)).sum::<f32>();
        if sum >= give_up {
            break;
        }
    }
    sum
}

/// Largest quantized bias: exact in f32, and far from the limits of the 32-bit sums it is added to.
const MAX_BIAS_CODE: f64 = (1 << 23) as f64;

/// Raises weight scales until `|bias[c]| / (input_scale · scales[c]) ≤ 2^23`, and returns the channels it raised.
///
/// `scales` has one entry per channel, or a single one for all of them. A channel needs this when its weights are tiny beside
/// its bias, and then a coarser weight grid costs nothing that the output would show. Biases that are not finite are passed over.
pub fn guard_bias(scales: &mut [f32], input_scale: f32, bias: &[f32]) -> Vec<usize> {
    let mut raised = Vec::new();
    let last = scales.len().saturating_sub(1);
    for (channel, bias) in bias.iter().enumerate().filter(|(_, b)| b.is_finite()) {
        let Some(scale) = scales.get_mut(channel.min(last)) else { break };
        let fits = |s: f32| f64::from(bias.abs()) <= MAX_BIAS_CODE * f64::from(input_scale * s);
        if !fits(*scale) {
            *scale = (f64::from(bias.abs()) / (MAX_BIAS_CODE * f64::from(input_scale))) as f32;
            // The product of the scales is rounded to f32.
            while !fits(*scale) && scale.is_finite() {
                *scale = scale.next_up();
            }
            raised.push(channel);
        }
    }
    raised
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;
    use fewbits_testing::anchors::{Anchor, Density, laplace};

    fn params(weight: &Tensor, grid: Grid, granularity: Granularity, rule: WeightRule) -> QuantParams {
        weight_params("w", weight, grid, granularity, rule).unwrap()
    }

    /// The definition, with the division of the quantizer.
    fn error(group: &[f32], scale: f32, grid: Grid) -> f64 {
        let error = |&w: &f32| {
            let q = (w / scale).round_ties_even().clamp(grid.qmin() as f32, grid.qmax() as f32);
            f64::from(w - q * scale).powi(2)
        };
        group.iter().map(error).sum()
    }

    #[test]
    fn minmax_is_the_largest_magnitude_of_each_group() {
        let weight = Tensor::f32(&[2, 3, 1], vec![0.1, -1.27, 0.3, 0.0, 2.54, -0.4]);
        let of = |granularity| params(&weight, Grid::weights(8), granularity, WeightRule::MinMax).scale;
        assert_eq!(of(Granularity::Tensor), [0.02]);
        assert_eq!(of(Granularity::Channel { axis: 0 }), [0.01, 0.02]);
        assert_eq!(of(Granularity::Channel { axis: 1 }), [0.1f32, 2.54, 0.4].map(|m| m / 127.0));
    }

    #[test]
    fn mse_is_as_good_as_a_fine_exhaustive_search() {
        let mut random = Random::new(3);
        for len in [9, 33, 400] {
            for bits in [2, 3, 4, 6, 8] {
                for grid in [Grid::weights(bits), Grid { narrow: false, ..Grid::weights(bits) }] {
                    let group: Vec<f32> = (0..len).map(|_| 0.1 * random.laplace()).collect();
                    let found = error(&group, mse_scale(&group, grid), grid);
                    let full = largest(&group) / grid.qmax() as f32;
                    let all = (100..=1000).map(|i| error(&group, full * i as f32 / 1000.0, grid));
                    let least = all.fold(f64::MAX, f64::min);
                    // The error of nine weights is ragged; that of many is smooth.
                    let tolerance = if len == 9 { 1.1 } else { 1.01 };
                    assert!(found <= tolerance * least, "{len} weights, {bits} bits: {found} against {least}");
                    assert!(found <= error(&group, full, grid) * (1.0 + 1e-6));
                }
            }
        }
    }

    #[test]
    fn mse_clips_normal_and_laplace_weights_where_theory_says() {
        let count = 200_000;
        // On symmetric grids Laplace's distribution has the clips of the exponential one with a bit less.
        for (density, values, sign) in
            [(Density::Normal, Density::Normal.quantiles(count), 0), (Density::Exponential, laplace(count), 1)]
        {
            let weight = Tensor::f32(&[count], values);
            for Anchor { bits, clip, step, .. } in density.anchors().iter().filter(|anchor| anchor.bits + sign <= 8) {
                let params = params(&weight, Grid::weights(bits + sign), Granularity::Tensor, WeightRule::Mse);
                let (found, best) = (f64::from(params.range(0).1), density.best_clip(*bits));
                let what = format!("{density:?} at {bits} bits: {found}");
                assert!((found / best - 1.0).abs() < 5e-3, "{what} and not {best}");
                assert!((found - clip).abs() <= 0.5 * step + 5e-3 * clip, "{what}, in the table {clip}");
                let ratio = density.error(found, *bits) / density.error(best, *bits);
                assert!(ratio < 1.0 + 1e-4, "{what}, error times {ratio}");
            }
        }
    }

    #[test]
    fn dead_channels_take_the_scale_of_the_living() {
        let weight = Tensor::f32(&[4, 2], vec![0.0, 0.0, 1e-44, -1e-44, 0.5, 1.0, 0.25, 0.0]);
        for rule in [WeightRule::MinMax, WeightRule::Mse] {
            let scale = params(&weight, Grid::weights(8), Granularity::Channel { axis: 0 }, rule).scale;
            assert!(scale.iter().all(|s| s.is_normal() && *s > 0.0));
            assert_eq!((scale[0], scale[1]), (scale[2], scale[2]));
            let dead = Tensor::f32(&[2, 2], vec![0.0; 4]);
            assert_eq!(params(&dead, Grid::weights(2), Granularity::Channel { axis: 1 }, rule).scale, [1.0, 1.0]);
            let none = Tensor::f32(&[2, 0], vec![]);
            assert_eq!(params(&none, Grid::weights(2), Granularity::Channel { axis: 0 }, rule).scale, [1.0, 1.0]);
        }
    }

    #[test]
    fn weights_that_cannot_be_quantized_are_named() {
        let channel = |axis| Granularity::Channel { axis };
        let try_it = |weight: &Tensor, granularity| {
            weight_params("conv.w", weight, Grid::weights(8), granularity, WeightRule::Mse).unwrap_err().to_string()
        };
        let broken = Tensor::f32(&[2, 2], vec![0.0, 1.0, f32::NAN, 2.0]);
        assert_eq!(try_it(&broken, channel(0)), "weight `conv.w` has NaN at element 2");
        assert!(try_it(&Tensor::i32(&[1], vec![1]), channel(0)).contains("int32"));
        assert!(try_it(&Tensor::f32(&[1], vec![1.0]), channel(1)).contains("conv.w"));
        assert!("entropy".parse::<WeightRule>().unwrap_err().hint().unwrap().contains("minmax"));
    }

    #[test]
    fn guarded_biases_fit() {
        let bias = [0.5, -1000.0, 3.0, f32::NAN];
        let mut scales = [0.01, 1e-6, 1e-12, 1.0];
        let raised = guard_bias(&mut scales, 0.003, &bias);
        assert_eq!(raised, [1, 2]);
        assert_eq!((scales[0], scales[3]), (0.01, 1.0));
        for (bias, scale) in bias.iter().zip(scales).take(3) {
            assert!((bias / (0.003 * scale)).abs() <= 8_388_608.0);
        }
        assert!(guard_bias(&mut scales, 0.003, &bias).is_empty(), "a second time changes nothing");
        let mut single = [1e-9];
        assert_eq!(guard_bias(&mut single, 1.0, &[0.0, 1.0, 0.5]), [1]);
        assert!(guard_bias(&mut [], 1.0, &[1.0]).is_empty());
    }
}
