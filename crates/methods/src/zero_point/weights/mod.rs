//! Zero points of weights, by the output error of each layer: what could be won where hardware multiplied such weights.
//!
//! # What it does
//! For the weights that share a scale `s` it looks for a scale and a shift `δ` together, so that rounding adds least to the squared error
//! of the layer's outputs. There are three operations, and each is a method of its own ([`Shift`]). Every scale of a list is tried with
//! every shift, for one channel after the other, on moments ([`crate::moments`]): channels do not enter each other's errors, so one round
//! of this coordinate descent ends at the best there is. It is taken if it is better than what the draft has on samples held back.
//!
//! # When it helps
//! To know what a form is worth, with few bits: a window for weights with one tail longer than the other, a phase for few codes.
//!
//! # When it fails
//! **It is not deployable in integers.** Integer kernels multiply weights whose zero point is 0. So the grid of a weight that was shifted is
//! taken off: the draft, and every file made of it, holds the real numbers that the codes stand for, and the layer is computed in float.
//! Where the mean of the outputs is free ([`WeightShift::bias`]) most of the gain of a shift at dequantization is gone: it adds
//! `−s δ Σ x`, whose mean a bias has as well.
//!
//! # Cost
//! One pass over the samples for each layer, and `O(outputs · K²)` for each of some 350 candidates, of 44 at dequantization.
//!
//! # Config
//! [`WeightShift`].
//!
//! # Source
//! Chen et al., "Post-training quantization by adjusting zero points" (2023), with the operations kept apart.
//!
//! # Departures
//! The error is what rounding adds on the inputs that the quantized network gives. Errors before the layer are not made up for. Without
//! bias correction the mean error counts; with it, the error is the one about the mean.

use crate::{
    BlockMethod, Draft, Layer, MethodError, Walk,
    clipping::{Rounded, Weights, largest},
    moments::{Group, Left, Moments},
};
use fewbits_graph::TensorQuant;
use std::sync::{Mutex, PoisonError};

/// What is done with a zero point; `R` rounds to the nearest integer, `clamp` keeps codes within the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shift {
    /// Codes are made and read with the zero point `δ`, an integer: `s (clamp(R(w/s) + δ) − δ)`. The values stay multiples of `s`; the window
    /// of those that exist moves.
    Window,
    /// Codes stay and are read with `δ`, a real number: `s (clamp(R(w/s)) − δ)`.
    Dequantization,
    /// Codes are made and read with a fraction `δ`: `s (clamp(R(w/s + δ)) − δ)`. Zero is no code any more.
    Phase,
}

/// Scales that are tried, as shares of the one that clips nothing, from 1 down.
const SCALES: usize = 21;
/// Their distance.
const SCALE_STEP: f32 = 0.03;
/// Shifts that are tried to each side of 0.
const SHIFTS: i32 = 8;
/// Part of the largest possible `1 G 1ᵀ` below which the sum of inputs is a constant.
const CONSTANT_SUM: f64 = 1e-6;

/// The method.
#[derive(Debug)]
pub struct WeightShift {
    /// The operation.
    pub shift: Shift,
    /// Whether the mean error is taken off the bias.
    pub bias: bool,
    layers: Mutex<Vec<Outcome>>,
    left: Left,
}

/// What became of a layer.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    shifted: usize,
    /// Whose shift is nearer to another integer than to 0.
    by_codes: usize,
    scales: usize,
    errors: [f64; 3],
}

/// What becomes of weights that share a scale.
struct Choice {
    row: Vec<f32>,
    scale: f32,
    shift: f32,
    /// On samples held back: as the draft has it, with another scale alone, and of the choice.
    errors: [f64; 3],
}

impl WeightShift {
    /// The method for `shift`; with `bias`, mean errors are taken off the biases.
    pub fn new(shift: Shift, bias: bool) -> Self {
        WeightShift { shift, bias, layers: Mutex::default(), left: Left::default() }
    }

    fn layer(&self, walk: &Walk<'_>, draft: &mut Draft, layer: &Layer, moments: &Moments) {
        let shape = &moments.shape;
        let (Some(weights), Some(current)) =
            (Weights::of(walk.ground(), draft, layer, shape), draft.rounded(&layer.weight))
        else {
            return;
        };
        let Some(current) = current.as_f32().map(|values| shape.rows(values)) else { return };
        let seen = |groups: &[Group]| match self.bias {
            true => groups.to_vec(),
            false => groups.iter().map(Group::about_zero).collect(),
        };
        let (fit, held) = (seen(&moments.fit), seen(moments.judge()));
        let sums: Vec<Vec<f32>> = fit.iter().map(Group::sums).collect();
        let choices = weights.each_group(walk.threads(), |group| {
            let candidates = Candidates::new(&weights, &fit, &sums, group, self.shift);
            candidates.choose(weights.part(&current, group), &held)
        });
        let outcome = choices.iter().fold(Outcome { scales: choices.len(), ..Outcome::default() }, |sum, choice| {
            let errors = [0, 1, 2].map(|i| sum.errors[i] + choice.errors[i]);
            let shifted = sum.shifted + usize::from(choice.shift != 0.0);
            Outcome { errors, shifted, by_codes: sum.by_codes + usize::from(choice.shift.abs() >= 0.5), ..sum }
        });
        self.layers.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
        let rows: Vec<f32> = choices.iter().flat_map(|choice| choice.row.iter().copied()).collect();
        let shifts = if self.bias { weights.shifts(moments, &rows) } else { vec![] };
        let scale = choices.iter().map(|choice| choice.scale).collect();
        weights.write(walk.ground(), draft, Rounded { rows, scale }, &shifts);
        if outcome.shifted > 0 {
            draft.grids.0.insert(layer.weight.clone(), TensorQuant::Float);
        }
    }
}

impl BlockMethod for WeightShift {
    fn name(&self) -> &'static str {
        match self.shift {
            Shift::Window => "zero-point-window",
            Shift::Dequantization => "zero-point-dequant",
            Shift::Phase => "zero-point-phase",
        }
    }

    fn improve(&self, walk: &Walk<'_>, draft: &mut Draft) -> Result<(), MethodError> {
        let Some(block) = walk.block() else { return Ok(()) };
        for layer in &block.layers {
            if let Some(moments) = self.left.moments(walk, draft, layer)? {
                self.layer(walk, draft, layer, &moments);
            }
        }
        Ok(())
    }

    fn findings(&self) -> Vec<String> {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        if layers.is_empty() {
            return self.left.findings();
        }
        let sum = |count: fn(&Outcome) -> usize| layers.iter().map(count).sum::<usize>();
        let off = layers.iter().filter(|layer| layer.shifted > 0).count();
        // Geometric means: layers differ in size.
        let with_error: Vec<&Outcome> = layers.iter().filter(|layer| layer.errors.iter().all(|e| *e > 0.0)).collect();
        let ratio = |i: usize| {
            let logs = with_error.iter().map(|layer| (layer.errors[i] / layer.errors[0]).ln()).sum::<f64>();
            100.0 * (logs / with_error.len().max(1) as f64).exp()
        };
        let lines = [
            format!(
                "{} of {} scales shifted, {} by half a code or more; error of rounding {:.1} % with scales alone, {:.1} % with shifts",
                sum(|layer| layer.shifted),
                sum(|layer| layer.scales),
                sum(|layer| layer.by_codes),
                ratio(1),
                ratio(2),
            ),
            format!(
                "not deployable in integers: {off} layers have shifted weights, which the file holds as float numbers"
            ),
        ];
        lines.into_iter().chain(self.left.findings()).collect()
    }
}

/// The candidates for weights that share a scale.
struct Candidates<'a> {
    weights: &'a Weights<'a>,
    moments: &'a [Group],
    /// `G 1` of each of the moments.
    sums: &'a [Vec<f32>],
    group: usize,
    shift: Shift,
    scales: Vec<f32>,
    shifts: Vec<f32>,
}

impl<'a> Candidates<'a> {
    fn new(weights: &'a Weights<'a>, moments: &'a [Group], sums: &'a [Vec<f32>], group: usize, shift: Shift) -> Self {
        let most = largest(weights.group(group));
        let share = |i: usize| weights.scale(group, Some(most * (1.0 - SCALE_STEP * i as f32)));
        let scales = std::iter::once(weights.params.scale[group]).chain((0..SCALES).map(share)).collect();
        let step = match shift {
            // All windows that hold zero up to four bits, a quarter of the codes beyond.
            Shift::Window => ((1i32 << weights.bits()) / if weights.bits() > 4 { 32 } else { 16 }).max(1) as f32,
            Shift::Phase => 0.5 / SHIFTS as f32,
            Shift::Dequantization => 0.0,
        };
        let most = weights.params.grid.qmax() as f32;
        let both = (1..=SHIFTS).flat_map(|i| [i as f32 * step, -i as f32 * step]);
        let shifts = match shift {
            Shift::Window => std::iter::once(0.0).chain(both.filter(|d| d.abs() <= most)).collect(),
            Shift::Phase => std::iter::once(0.0).chain(both).collect(),
            // The best one of each scale.
            Shift::Dequantization => vec![0.0, f32::NAN],
        };
        Candidates { weights, moments, sums, group, shift, scales, shifts }
    }

    /// The weights with the scale and the shift of these numbers, and the shift itself.
    fn candidate(&self, scale: usize, shift: usize) -> (Vec<f32>, f32) {
        let (row, bits) = (self.weights.group(self.group), self.weights.bits());
        let (scale, shift) = (self.scales[scale], self.shifts[shift]);
        if shift.is_nan() {
            let codes = shifted(row, self.shift, scale, 0.0, bits);
            let shift = self.best_shift(&codes, scale);
            return (shifted(row, self.shift, scale, shift, bits), shift);
        }
        (shifted(row, self.shift, scale, shift, bits), shift)
    }

    /// `δ* = ⟨r, t⟩ / ⟨t, t⟩` with `r = Σ (ŵ − w) x` and `t = s Σ x` over rows of inputs: in moments, `(ŵ − w) G 1ᵀ / s 1 G 1ᵀ`.
    fn best_shift(&self, rounded: &[f32], scale: f32) -> f32 {
        let (k, outputs) = (self.weights.shape.inputs, self.weights.shape.outputs);
        let first = self.group * self.weights.width() / k;
        let (mut product, mut square, mut most) = (0.0, 0.0, 0.0);
        for (i, (old, new)) in self.weights.group(self.group).chunks(k).zip(rounded.chunks(k)).enumerate() {
            let group = (first + i) / outputs;
            let (gram, sums) = (&self.moments[group].gram, &self.sums[group]);
            let differences = old.iter().zip(new).map(|(old, new)| f64::from(new - old));
            product += differences.zip(sums).map(|(v, sum)| v * f64::from(*sum)).sum::<f64>();
            square += sums.iter().map(|sum| f64::from(*sum)).sum::<f64>();
            // 1 G 1ᵀ is at most K times the trace.
            most += k as f64 * (0..k).map(|j| f64::from(gram[j * k + j])).sum::<f64>();
        }
        if square > CONSTANT_SUM * most { (product / square) as f32 / scale } else { 0.0 }
    }

    /// The best scale without a shift, and the best of all scales with all shifts.
    fn search(&self) -> [(usize, usize); 2] {
        let best_of = |shift: usize| {
            let rows: Vec<Vec<f32>> = (0..self.scales.len()).map(|scale| self.candidate(scale, shift).0).collect();
            let errors = self.weights.output_errors(self.moments, self.group, &rows);
            let best = (0..errors.len()).min_by(|&a, &b| errors[a].total_cmp(&errors[b])).unwrap_or(0);
            (errors[best], (best, shift))
        };
        let alone = best_of(0);
        // Of equals the first, which has no shift.
        let better = |best: (f64, (usize, usize)), new: (f64, (usize, usize))| if new.0 < best.0 { new } else { best };
        [alone.1, (1..self.shifts.len()).map(best_of).fold(alone, better).1]
    }

    /// The best there is, or `current` if the moments `held` say so.
    fn choose(&self, current: &[f32], held: &[Group]) -> Choice {
        let [alone, best] = self.search();
        let (row, shift) = self.candidate(best.0, best.1);
        let rows = [current, &self.candidate(alone.0, alone.1).0, &row];
        let errors = self.weights.output_errors(held, self.group, &rows);
        let errors = [errors[0], errors[1].min(errors[0]), errors[2].min(errors[0])];
        if errors[2] < errors[0] {
            return Choice { row, scale: self.scales[best.0], shift, errors };
        }
        Choice { row: current.to_vec(), scale: self.weights.params.scale[self.group], shift: 0.0, errors }
    }
}

/// `row` on the symmetric grid of `bits` bits, with `shift` as [`Shift`] says.
fn shifted(row: &[f32], kind: Shift, scale: f32, shift: f32, bits: u8) -> Vec<f32> {
    let top = fewbits_graph::Grid::weights(bits).qmax() as f32;
    let real = |w: &f32| {
        let code = match kind {
            Shift::Window => (w / scale).round_ties_even() + shift,
            Shift::Dequantization => (w / scale).round_ties_even(),
            Shift::Phase => (w / scale + shift).round_ties_even(),
        };
        (code.clamp(-top, top) - shift) * scale
    };
    row.iter().map(real).collect()
}

#[cfg(test)]
mod tests;
