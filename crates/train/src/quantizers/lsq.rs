//! LSQ and LSQ+: learned step size, and offset.
//!
//! *What it does*: `u = (x − β)/s`, `x̂ = s·round(clamp(u, n, p)) + β`, with `s` and, on activations, `β` learned.
//!
//! *Gradients*: where `n < u < p`, `∂x̂/∂x = 1`, `∂x̂/∂s = round(u) − u`, `∂x̂/∂β = 0`; elsewhere `∂x̂/∂x = 0`, `∂x̂/∂s = n` or `p`,
//! `∂x̂/∂β = 1`. Both sums are multiplied with `g = 1/√(N·p)`.
//!
//! *Source*: Esser, McKinstry, Bablani, Appuswamy, Modha, "Learned step size quantization", ICLR 2020, equations 1–5 and section 2.2;
//! Bhalgat, Lee, Nagel, Blankevoort, Kwak, "LSQ+: improving low-bit quantization through learnable offsets and better
//! initialization", CVPRW 2020, equations 3–6.
//!
//! *Departures*: `N` counts the features of one image, so that learning does not depend on the size of a batch; `g` is applied
//! to `β` too, on which LSQ+ is silent. A step changes a scale by a tenth of it at most, and an offset by a tenth of the range: of tensors
//! with few elements, such as those of squeeze-excitation, a few that are clipped would else move both as far as they like. Activations
//! start at the least squared error unless LSQ's rule is asked for: behind a Relu most
//! elements are zeros, from which `2·mean|x|/√p` is far too narrow.

use super::{
    Decays, Deployable, NotDeployable, fake_quant::FakeQuant, finite, full, init, init::Start, scale_after_step,
};
use fewbits_graph::{Grid, tape::Quantizer};
use serde::Serialize;

/// What the offset of activations does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Offset {
    /// There is none.
    None,
    /// It stays the smallest element that was seen at the start. Codes are unsigned.
    FixedAtMinimum,
    /// It is learned.
    #[default]
    Learned,
}

/// A uniform quantizer with learned scale `s` and perhaps offset `β`: parameters `[s]` or `[s, β]`.
#[derive(Clone, Debug)]
pub struct Lsq {
    grid: Grid,
    offset: Offset,
    snapped: bool,
    gradient_scale: f64,
    start: Start,
}

impl Lsq {
    /// No offset: weights, on the full signed range, or activations. `count` is `N`.
    pub fn symmetric(bits: u8, signed: bool, count: usize, start: Start) -> Self {
        let grid = full(bits, signed);
        let gradient_scale = 1.0 / (count.max(1) as f64 * f64::from(grid.qmax())).sqrt();
        // At 8 bits 2·mean|x|/√p reaches some 18σ.
        let start = match start {
            Start::Method if bits < 8 => Start::Lsq,
            Start::Method => Start::Mse,
            start => start,
        };
        Lsq { grid, offset: Offset::None, snapped: false, gradient_scale, start }
    }

    /// Activations with an offset. If `snapped`, `z = clamp(round(−β/s), n, p)` takes the place of `−β/s`:
    /// `x̂ = s·(clamp(round(x/s) + z, n, p) − z)`, and gradients pass straight through this rounding.
    pub fn with_offset(bits: u8, signed: bool, offset: Offset, snapped: bool, count: usize, start: Start) -> Self {
        let signed = signed && offset != Offset::FixedAtMinimum;
        Lsq { offset, snapped, ..Lsq::symmetric(bits, signed, count, start) }
    }

    fn zero_point(&self, parameters: &[f32]) -> i32 {
        let zero_point = (-parameters[1] / parameters[0]).round_ties_even() as i32;
        zero_point.clamp(self.grid.qmin(), self.grid.qmax())
    }

    /// The kernel, and the zero point if it is snapped: codes are then counted from zero, so that results are exact multiples.
    fn kernel(&self, parameters: &[f32]) -> (FakeQuant, Option<i32>) {
        let (low, high) = (self.grid.qmin(), self.grid.qmax());
        match self.offset {
            Offset::None => (FakeQuant::symmetric(parameters[0], low, high), None),
            _ if self.snapped => {
                let z = self.zero_point(parameters);
                (FakeQuant::symmetric(parameters[0], low - z, high - z), Some(z))
            }
            _ => (FakeQuant { offset: parameters[1], ..FakeQuant::symmetric(parameters[0], low, high) }, None),
        }
    }
}

impl Quantizer for Lsq {
    fn learned(&self) -> usize {
        if self.offset == Offset::None { 1 } else { 2 }
    }

    fn forward(&self, parameters: &[f32], x: &[f32], y: &mut [f32]) {
        self.kernel(parameters).0.forward(x, y);
    }

    fn backward(&self, parameters: &[f32], x: &[f32], dy: &[f32], dx: &mut [f32], sums: &mut [f64]) {
        let (kernel, zero_point) = self.kernel(parameters);
        let gradients = kernel.backward(x, dy, dx);
        // Clipped elements of a snapped kernel count n − z; the −z belongs to the offset.
        let scale = gradients.scale + f64::from(zero_point.unwrap_or(0)) * gradients.offset;
        sums[0] += self.gradient_scale * scale;
        if self.offset == Offset::Learned {
            sums[1] += self.gradient_scale * gradients.offset;
        }
    }

    fn project(&self, parameters: &mut [f32]) {
        parameters[0] = scale_after_step(parameters[0]);
        if let Some(offset) = parameters.get_mut(1) {
            *offset = finite(*offset, 0.0);
        }
    }
}

/// The nearest number to `number` that is no further than `reach` from `middle`.
fn within(number: f32, middle: f32, reach: f32) -> f32 {
    number.max(middle - reach).min(middle + reach)
}

/// Largest step of a scale as a share of it, and of an offset as a share of the range.
const LARGEST_STEP: f32 = 0.1;

impl Deployable for Lsq {
    fn limit(&self, before: &[f32], learned: &mut [f32]) {
        let reach = LARGEST_STEP * before[0];
        learned[0] = within(learned[0], before[0], reach);
        if let (Some(before), Some(offset)) = (before.get(1), learned.get_mut(1)) {
            let reach = reach * (self.grid.qmax() - self.grid.qmin()) as f32;
            *offset = within(*offset, *before, reach);
        }
    }

    fn initial(&self, x: &[f32]) -> Vec<f32> {
        let (low, high) = (self.grid.qmin(), self.grid.qmax());
        match self.offset {
            Offset::None => vec![init::scale(self.start, x, low, high)],
            Offset::Learned => {
                let (scale, offset) = init::scale_and_offset(self.start, x, low, high);
                vec![scale, offset]
            }
            Offset::FixedAtMinimum => {
                let least = init::extremes(x).0 as f32;
                let above: Vec<f32> = x.iter().map(|x| x - least).collect();
                vec![init::scale(self.start, &above, low, high), least]
            }
        }
    }

    fn grid(&self, parameters: &[f32]) -> Result<(Grid, f32, i32), NotDeployable> {
        match self.offset {
            Offset::None => Ok((self.grid, parameters[0], 0)),
            _ if self.snapped => Ok((self.grid, parameters[0], self.zero_point(parameters))),
            _ => Err(NotDeployable::FreeOffset),
        }
    }

    fn scale(&self, parameters: &[f32]) -> Option<f32> {
        Some(parameters[0])
    }

    fn fixed(&self) -> usize {
        usize::from(self.offset == Offset::FixedAtMinimum)
    }

    fn decays(&self) -> Decays {
        Decays::AsScales
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{normal, run, snapped_values_are_deployed_values};
    use super::*;

    const CODES: [f32; 8] = [-9.0, -0.7, -0.5, 0.5, 0.6, 1.5, 2.5, 9.0];

    #[test]
    fn values_and_gradients_are_those_of_the_equations() {
        // 2 bits signed: codes −2…1. Inside is strict, and halves go to even.
        let lsq = Lsq::symmetric(2, true, 4, Start::Lsq);
        let x = [-9.0, -4.0, -2.9, -1.0, 1.0, 1.2, 2.0, 3.0];
        let (y, dx, sums) = run(&lsq, &[2.0], &x, &[1.0; 8]);
        assert_eq!(y, [-4.0, -4.0, -2.0, 0.0, 0.0, 2.0, 2.0, 2.0]);
        assert_eq!(dx, [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
        // Codes of the clipped, then round(u) − u; N·p = 4.
        let slopes = (-2.0 - 2.0 + 1.0 + 1.0) + (0.45 + 0.5 - 0.5 + 0.4);
        assert!((sums[0] - slopes / 2.0).abs() < 1e-6, "{sums:?}");
    }

    #[test]
    fn a_step_does_not_tear_the_grid_from_its_tensor() {
        let lsq = Lsq::with_offset(8, false, Offset::Learned, false, 9, Start::Mse);
        // A scale of 0.01 may move by 0.001, an offset by a tenth of 2.55.
        for (step, expected) in [
            ([0.0105, -1.1], [0.0105, -1.1]),
            ([27.0, 5.0], [0.011, -0.745]),
            ([-0.3, -9.0], [0.009, -1.255]),
            ([f32::INFINITY, f32::NEG_INFINITY], [0.011, -1.255]),
        ] {
            let mut learned = step;
            lsq.limit(&[0.01, -1.0], &mut learned);
            assert!(learned.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{step:?}: {learned:?}");
        }
    }

    #[test]
    fn an_offset_learns_from_what_is_clipped() {
        let lsq = Lsq::with_offset(2, false, Offset::Learned, false, 3, Start::Mse);
        let x: Vec<f32> = CODES.iter().map(|u| 0.5 * u - 1.0).collect();
        let dy = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];
        let (y, dx, sums) = run(&lsq, &[0.5, -1.0], &x, &dy);
        assert_eq!(y, [-1.0, -1.0, -1.0, -1.0, -0.5, 0.0, 0.0, 0.5]);
        assert_eq!(dx, [0.0, 0.0, 0.0, 8.0, 16.0, 32.0, 64.0, 0.0]);
        let scale = 8.0 * -0.5 + 16.0 * 0.4 + 32.0 * 0.5 + 64.0 * -0.5 + 128.0 * 3.0;
        assert!((sums[0] - scale / 3.0).abs() < 1e-4, "{sums:?}");
        assert!((sums[1] - 135.0 / 3.0).abs() < 1e-9, "{sums:?}");
        let fixed = Lsq::with_offset(2, true, Offset::FixedAtMinimum, false, 3, Start::Mse);
        assert_eq!(run(&fixed, &[0.5, -1.0], &x, &dy).2, [sums[0], 0.0]);
    }

    #[test]
    fn a_snapped_offset_keeps_zero_and_the_gradients() {
        // β/s an even number: snapping changes nothing, in value or gradient. (An odd one turns ties around.)
        let dy = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];
        for signed in [false, true] {
            let [free, snapped] = [false, true].map(|s| Lsq::with_offset(3, signed, Offset::Learned, s, 3, Start::Mse));
            for x in [CODES, CODES.map(|u| 0.5 * u - 1.0)] {
                assert_eq!(run(&free, &[0.5, -1.0], &x, &dy), run(&snapped, &[0.5, -1.0], &x, &dy));
            }
        }
        let snapped = Lsq::with_offset(4, false, Offset::Learned, true, 3, Start::Mse);
        assert_eq!(run(&snapped, &[0.5, -0.9], &[0.0], &[1.0]).0, [0.0], "zero stays zero");
        assert_eq!(snapped.grid(&[0.5, -0.9]), Ok((full(4, false), 0.5, 2)));
        assert_eq!(snapped.grid(&[0.5, 3.0]), Ok((full(4, false), 0.5, 0)), "a zero point is a code");
        let free = Lsq::with_offset(4, false, Offset::Learned, false, 3, Start::Mse);
        assert_eq!(free.grid(&[0.5, -0.9]), Err(NotDeployable::FreeOffset));
    }

    #[test]
    fn sums_of_millions_of_alternating_terms_keep_their_digits() {
        let lsq = Lsq::symmetric(8, true, 1, Start::Lsq);
        let x: Vec<f32> = (0..1 << 20).map(|i| if i % 2 == 0 { 1000.0 } else { -0.25 }).collect();
        let dy: Vec<f32> = (0..1 << 20)
            .map(|i| {
                if i % 4 == 0 {
                    1.0
                } else if i % 4 == 2 {
                    -1.0
                } else {
                    1e-3
                }
            })
            .collect();
        let (_, _, sums) = run(&lsq, &[1.0], &x, &dy);
        let expected = f64::from(1 << 19) * f64::from(1e-3f32) * 0.25 / 127f64.sqrt();
        assert!((sums[0] / expected - 1.0).abs() < 1e-6, "{} for {expected}", sums[0]);
    }

    #[test]
    fn training_and_deployment_give_the_same_floats() {
        let x = normal(4000, 1.7);
        for bits in [2, 3, 4, 5, 8] {
            for signed in [false, true] {
                snapped_values_are_deployed_values(&Lsq::symmetric(bits, signed, 9, Start::Mse), &[0.0371], &x);
                for beta in [-2.03, -0.278, 0.0, 0.4] {
                    for offset in [Offset::Learned, Offset::FixedAtMinimum] {
                        let lsq = Lsq::with_offset(bits, signed, offset, true, 9, Start::Mse);
                        snapped_values_are_deployed_values(&lsq, &[0.0371, beta], &x);
                    }
                }
            }
        }
    }
}
