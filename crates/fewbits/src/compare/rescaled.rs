//! Channels that the second network has on other scales, as equalization leaves them: no noise, as long as all readers know. Sums by channel
//! enter, factors leave; with them the first network's values are compared on the second one's scales.

use crate::sqnr::Sqnr;

/// Samples from which factors are found.
pub(super) const SAMPLES: usize = 8;
/// Factors of all channels within this of one are noise.
const NEAR: f64 = 1.25;
/// Channels with less than this share of the power say nothing.
const FAINT: f64 = 1e-6;
/// What factors must bring for a tensor to count as rescaled, dB: rounding to few bits makes channels smaller, too, but not closer.
const GAIN_DB: f64 = 6.0;

/// One tensor in both networks, by channel (axis 1).
pub(super) fn by_channel(values: &[f32], others: &[f32], dims: &[usize]) -> Vec<Sqnr> {
    let inner = dims.iter().skip(2).product::<usize>().max(1);
    let mut channels = vec![Sqnr::default(); dims.get(1).copied().unwrap_or(1).max(1)];
    let count = channels.len();
    for (i, (x, y)) in values.chunks(inner).zip(others.chunks(inner)).enumerate() {
        channels[i % count].add(&Sqnr::of(x, y));
    }
    channels
}

/// All channels together.
pub(super) fn total(channels: &[Sqnr]) -> Sqnr {
    let mut total = Sqnr::default();
    channels.iter().for_each(|channel| total.add(channel));
    total
}

/// By what the channels of the first network are multiplied in the second one; `None` if they are on the same scales.
pub(super) fn factors(channels: &[Sqnr]) -> Option<Vec<f32>> {
    let before = total(channels);
    let gains: Vec<Option<f64>> = channels.iter().map(|channel| channel.gain(FAINT * before.power())).collect();
    let moved = gains.iter().flatten().any(|gain| gain.ln().abs() > NEAR.ln());
    let scaled = |(channel, gain): (&Sqnr, &Option<f64>)| channel.scaled(gain.unwrap_or(1.0));
    let after = total(&channels.iter().zip(&gains).map(scaled).collect::<Vec<_>>());
    let found = moved && after.db() >= before.db() + GAIN_DB;
    found.then(|| gains.into_iter().map(|gain| gain.unwrap_or(1.0) as f32).collect())
}

/// Multiplies each channel (axis 1) by its factor.
pub(super) fn scale(values: &mut [f32], dims: &[usize], factors: &[f32]) {
    let inner = dims.iter().skip(2).product::<usize>().max(1);
    for (i, values) in values.chunks_mut(inner).enumerate() {
        values.iter_mut().for_each(|v| *v *= factors[i % factors.len()]);
    }
}
