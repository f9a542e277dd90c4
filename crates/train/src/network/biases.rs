//! Biases while training: targets hold them as integers of the scale `s_x·s_w`, which is coarse where both have few bits, so that what is
//! trained has to compute with rounded ones too.
//!
//! The bias that ships is `b = β − (μ − b₀)·γ/√(σ² + ε)`, or `b₀` without a BatchNormalization. While a step is made `β` (or `b₀`) is
//! moved by `round(b) − b`; its gradient passes straight through. Statistics are the running ones: with those of a batch the bias itself
//! moves from batch to batch, but its rounding is as large.

use super::{Layer, Network, Quantizers, scale_rows};
use fewbits_graph::{
    Op,
    tape::{Leaves, quantizer_leaf},
};
use std::ops::Range;

/// What biases were before they were rounded.
#[derive(Debug, Default)]
#[must_use]
pub struct Unrounded(Vec<(Range<usize>, Vec<f32>)>);

impl Unrounded {
    /// Brings them back.
    pub fn restore(self, leaves: &mut Leaves) {
        for (range, values) in self.0 {
            leaves.values[range].copy_from_slice(&values);
        }
    }
}

impl Network {
    /// Moves biases to where they round to. Layers whose quantizers have no grid yet are left alone.
    pub fn round_biases(&self, quantizers: &Quantizers, leaves: &mut Leaves) -> Unrounded {
        let mut before = Vec::new();
        for layer in &self.layers {
            let Some((range, moved)) = self.rounded_bias(layer, quantizers, leaves) else { continue };
            before.push((range.clone(), leaves.values[range.clone()].to_vec()));
            leaves.values[range].copy_from_slice(&moved);
        }
        Unrounded(before)
    }

    /// Where a layer's `β` or `b₀` is, and to what it is moved.
    fn rounded_bias(
        &self,
        layer: &Layer,
        quantizers: &Quantizers,
        leaves: &Leaves,
    ) -> Option<(Range<usize>, Vec<f32>)> {
        let input = layer.bias_input.as_deref()?;
        let (_, input_scale, _) = quantizers.get(input)?.grid(leaves.get(&quantizer_leaf(input))?).ok()?;
        let quantizer = quantizers.get(&layer.trained)?;
        let factors = self.factors(layer, leaves);
        let leaf = leaves.parameter(&layer.trained)?;
        let mut weight = Vec::new();
        if quantizer.derived() > 0 {
            weight.extend_from_slice(&leaves.values[leaf.range.clone()]);
            if let (true, Some(factors)) = (layer.folds, &factors) {
                scale_rows(&mut weight, factors);
            }
        }
        let numbers = leaves.get(&quantizer_leaf(&layer.trained))?;
        let groups = quantizers.all.get(&layer.trained)?.groups;
        let (_, scales) =
            layer.deployed_grid(quantizer.as_ref(), groups, numbers, (&weight, &leaf.dims), &factors).ok()?;
        let own = layer.bias.as_ref().and_then(|name| leaves.get(name));
        let (name, shift) = match &layer.norm {
            None => (layer.bias.as_ref()?, vec![0.0; layer.channels]),
            Some(norm) => (&norm.inputs[2], self.shift(norm, own, leaves)?),
        };
        let range = leaves.parameter(name)?.range.clone();
        let values = &leaves.values[range.clone()];
        if values.len() != layer.channels {
            return None;
        }
        let moved = values.iter().zip(&shift).enumerate().map(|(c, (&value, shift))| {
            let scale = f64::from(input_scale * scales[if scales.len() == 1 { 0 } else { c }]);
            let bias = f64::from(value) + shift;
            let error = (bias / scale).round_ties_even() * scale - bias;
            if error.is_finite() { (f64::from(value) + error) as f32 } else { value }
        });
        Some((range, moved.collect()))
    }

    /// `b − β` of each channel: `(b₀ − μ)·γ/√(σ² + ε)`.
    fn shift(&self, norm: &fewbits_graph::Node, own: Option<&[f32]>, leaves: &Leaves) -> Option<Vec<f64>> {
        let Op::BatchNormalization(op) = &norm.op else { return None };
        let gamma = leaves.get(norm.input(1)?)?;
        let statistic = |i: usize| {
            let leaf = leaves.running.iter().find(|leaf| Some(&*leaf.name) == norm.input(i))?;
            Some(&leaves.statistics[leaf.range.clone()])
        };
        let (mean, variance) = (statistic(3)?, statistic(4)?);
        let shift = |c: usize| {
            let own = own.and_then(|own| own.get(c)).map_or(0.0, |b| f64::from(*b));
            let factor = f64::from(gamma[c]) / (f64::from(variance[c]) + f64::from(op.epsilon)).sqrt();
            (own - f64::from(mean[c])) * factor
        };
        Some((0..gamma.len()).map(shift).collect())
    }
}
