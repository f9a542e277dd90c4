//! What a grid makes of values: how many lie beyond it, how many of its codes they use, and the noise of clipping and of rounding.
//! Values and a grid enter, sums leave.

use fewbits_graph::{Granularity, QuantParams};

/// The share of values that decides how many codes are used.
const MOST: f64 = 0.999;
/// A channel that spans fewer codes than this is narrow, if another spans this many times as many.
pub(super) const NARROW: f64 = 2.0;
const TIMES: f64 = 8.0;
/// Codes of wider grids are not counted.
const WIDEST_BITS: u8 = 16;

/// Values on a grid, in sums over all samples.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct OnGrid {
    /// Values by code, the lowest first.
    codes: Vec<u64>,
    /// Values more than half a step beyond the grid.
    clipped: u64,
    /// `Σ x²`.
    signal: f64,
    /// `Σ (x − q(x))²` of clipped values.
    clipping: f64,
    /// `Σ (x − q(x))²` of the others.
    rounding: f64,
    /// `Σ scale²`.
    steps: f64,
    /// Least and greatest value of each channel, in steps.
    channels: Vec<[f64; 2]>,
}

impl OnGrid {
    /// `values` of shape `dims` with channels along `axis`; `None` for grids that have a scale for blocks.
    pub(super) fn of(values: &[f32], dims: &[usize], axis: usize, params: &QuantParams) -> Option<Self> {
        let channels = dims.get(axis).copied().unwrap_or(1).max(1);
        let inner = dims.iter().skip(axis + 1).product::<usize>().max(1);
        let (grid, own) = (params.grid, params.scale.len() == channels);
        let blocks = matches!(params.granularity, Granularity::Block { .. });
        if blocks || grid.bits > WIDEST_BITS || !own && params.scale.len() != 1 {
            return None;
        }
        let (qmin, qmax) = (f64::from(grid.qmin()), f64::from(grid.qmax()));
        let mut found = OnGrid {
            codes: vec![0; grid.steps() as usize + 1],
            clipped: 0,
            signal: 0.0,
            clipping: 0.0,
            rounding: 0.0,
            steps: 0.0,
            channels: vec![[f64::INFINITY, f64::NEG_INFINITY]; channels],
        };
        for (i, &x) in values.iter().enumerate().filter(|(_, x)| x.is_finite()) {
            let channel = i / inner % channels;
            let group = if own { channel } else { 0 };
            let (scale, zero) = (f64::from(params.scale[group]), f64::from(params.zero_point[group]));
            let place = f64::from(x) / scale + zero;
            let code = place.round_ties_even().clamp(qmin, qmax);
            let noise = ((place - code) * scale).powi(2);
            found.codes[(code - qmin) as usize] += 1;
            if place < qmin - 0.5 || place > qmax + 0.5 {
                found.clipped += 1;
                found.clipping += noise;
            } else {
                found.rounding += noise;
            }
            found.signal += f64::from(x).powi(2);
            found.steps += scale * scale;
            let [least, greatest] = &mut found.channels[channel];
            (*least, *greatest) = (least.min(place), greatest.max(place));
        }
        Some(found)
    }

    /// Adds more values of the same tensor.
    pub(super) fn add(&mut self, more: &OnGrid) {
        self.codes.iter_mut().zip(&more.codes).for_each(|(sum, more)| *sum += more);
        self.clipped += more.clipped;
        self.signal += more.signal;
        self.clipping += more.clipping;
        self.rounding += more.rounding;
        self.steps += more.steps;
        for ([least, greatest], [less, more]) in self.channels.iter_mut().zip(&more.channels) {
            (*least, *greatest) = (least.min(*less), greatest.max(*more));
        }
    }

    fn values(&self) -> u64 {
        self.codes.iter().sum()
    }

    fn by_signal(&self, noise: f64) -> f64 {
        if self.signal > 0.0 { noise / self.signal } else { 0.0 }
    }

    /// Share of the values that are clipped.
    pub(super) fn clipped(&self) -> f64 {
        self.clipped as f64 / self.values().max(1) as f64
    }

    /// Power of the noise of clipping by that of the signal.
    pub(super) fn clipping(&self) -> f64 {
        self.by_signal(self.clipping)
    }

    /// Power of the noise of rounding by that of the signal.
    pub(super) fn rounding(&self) -> f64 {
        self.by_signal(self.rounding)
    }

    /// Mean power of a value.
    pub(super) fn power(&self) -> f64 {
        self.signal / self.values().max(1) as f64
    }

    /// Of a weight: power of the noise that rounding it is expected to bring into an output, by that of an input: `Σ scale² / 12` over
    /// what an output is summed from. It does not matter whether the values have been rounded before.
    pub(super) fn noise_gain(&self) -> f64 {
        self.steps / 12.0 / self.channels.len() as f64
    }

    /// How many codes there are.
    pub(super) fn codes(&self) -> usize {
        self.codes.len()
    }

    /// The fewest neighbouring codes that hold 99.9 % of the values.
    pub(super) fn codes_of_most(&self) -> usize {
        let wanted = (MOST * self.values() as f64).ceil() as u64;
        let (mut held, mut first, mut fewest) = (0, 0, self.codes.len());
        for last in 0..self.codes.len() {
            held += self.codes[last];
            while held - self.codes[first] >= wanted && first < last {
                held -= self.codes[first];
                first += 1;
            }
            if held >= wanted {
                fewest = fewest.min(last - first + 1);
            }
        }
        fewest
    }

    /// How many channels there are whose values differ.
    pub(super) fn channels(&self) -> usize {
        self.spans().count()
    }

    /// Those of them that are narrow.
    pub(super) fn narrow_channels(&self) -> usize {
        let limit = NARROW.min(self.widest_channel() / TIMES);
        self.spans().filter(|span| *span < limit).count()
    }

    /// Codes that the widest channel spans.
    pub(super) fn widest_channel(&self) -> f64 {
        self.spans().fold(0.0, f64::max).min(self.codes.len() as f64 - 1.0)
    }

    fn spans(&self) -> impl Iterator<Item = f64> {
        self.channels.iter().map(|[least, greatest]| greatest - least).filter(|span| *span > 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fewbits_graph::Grid;

    /// Steps of 1 from −2 to 5.
    fn grid() -> QuantParams {
        QuantParams::per_tensor(Grid::activations(3), 1.0, 2)
    }

    #[test]
    fn noise_is_that_of_clipping_and_of_rounding() {
        // 8 is clipped to 5, −2.5 to the even −2; 0.25 is rounded to 0.
        let mut found = OnGrid::of(&[8.0, -2.5, 0.25], &[1, 3], 2, &grid()).unwrap();
        let signal = 64.0 + 6.25 + 0.0625;
        assert_eq!((found.clipping(), found.rounding()), (9.0 / signal, (0.25 + 0.0625) / signal));
        assert_eq!((found.clipped(), found.noise_gain(), found.power()), (1.0 / 3.0, 0.25, signal / 3.0));
        found.add(&OnGrid::of(&[f32::NAN, 1.0], &[1, 2], 2, &grid()).unwrap());
        assert_eq!((found.clipped(), found.codes(), found.rounding()), (0.25, 8, 0.3125 / (signal + 1.0)));
        assert!(
            OnGrid::of(&[1.0], &[1], 0, &QuantParams::per_tensor(Grid { bits: 32, ..grid().grid }, 1.0, 0)).is_none()
        );
    }

    #[test]
    fn codes_that_a_few_values_need_are_not_counted() {
        let mut values = vec![0.0; 700];
        values.extend([1.0; 299]);
        values.push(5.0);
        let found = |values: &[f32]| OnGrid::of(values, &[1, values.len()], 2, &grid()).unwrap().codes_of_most();
        assert_eq!(found(&values), 2);
        values.push(5.0);
        assert_eq!(found(&values), 6, "more than a thousandth");
        assert_eq!((found(&[3.0]), found(&[-2.0, 5.0])), (1, 8));
    }

    #[test]
    fn channels_are_measured_in_steps_of_their_scale() {
        // Channels of two places, in two samples: spans of 7, of 0.75 and of nothing.
        let values = [-2.0, 5.0, 0.0, 0.5, 3.0, 3.0, 0.0, 0.0, -0.25, 0.0, 3.0, 3.0];
        let found = OnGrid::of(&values, &[2, 3, 2], 1, &grid()).unwrap();
        assert_eq!((found.channels(), found.narrow_channels(), found.widest_channel()), (2, 1, 7.0));
        let fine = QuantParams::per_channel(Grid::weights(4), 1, vec![1.0, 0.25, 1.0]);
        let found = OnGrid::of(&values, &[2, 3, 2], 1, &fine).unwrap();
        assert_eq!((found.narrow_channels(), found.widest_channel()), (0, 7.0));
    }
}
