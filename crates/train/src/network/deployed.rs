//! The form that ships: quantizers and what they have learned enter, the prepared graph with its grids leaves.

use super::{Layer, Network, Quantizers, group_of, scale_rows};
use crate::{TrainError, quantizers::Deployable};
use fewbits_graph::{
    Granularity, Graph, Grid, Grids, QuantParams, Tensor, TensorQuant,
    tape::{Leaves, quantizer_leaf},
};
use fewbits_quant::{WeightRule, placement::Site, weights::weight_params};
use std::{collections::BTreeMap, sync::Arc};

impl Network {
    /// The graph that ships, and its grids.
    ///
    /// # Errors
    /// [`TrainError::NotDeployable`] if a quantizer has no grid.
    pub fn deploy(&self, quantizers: &Quantizers, leaves: &Leaves) -> Result<(Graph, Grids), TrainError> {
        let mut base = leaves.apply(&self.base);
        let mut weights: BTreeMap<String, QuantParams> = BTreeMap::new();
        for layer in &self.layers {
            let Some(quantizer) = quantizers.deployable.get(&layer.trained) else { continue };
            let laid = &quantizers.all[&layer.trained];
            let leaf =
                leaves.parameter(&layer.trained).ok_or_else(|| TrainError::Lost { tensor: layer.trained.clone() })?;
            let factors = self.factors(layer, leaves);
            let mut weight = leaves.values[leaf.range.clone()].to_vec();
            if let (true, Some(factors)) = (layer.folds, &factors) {
                scale_rows(&mut weight, factors);
            }
            let numbers = leaves.get(&quantizer_leaf(&layer.trained)).unwrap_or_default();
            let mut rounded = laid.apply(numbers, &leaf.dims, &weight);
            let (grid, scales) =
                layer.deployed_grid(quantizer.as_ref(), laid.groups, numbers, (&weight, &leaf.dims), &factors)?;
            if let (true, Some(factors)) = (layer.folds, &factors) {
                let inverse: Vec<f32> = factors.iter().map(|f| if f.is_normal() { 1.0 / f } else { 0.0 }).collect();
                scale_rows(&mut rounded, &inverse);
            }
            base.constants.insert(layer.trained.clone(), Arc::new(Tensor::f32(&leaf.dims, rounded)));
            let params = match &scales[..] {
                [one] => QuantParams::per_tensor(grid, *one, 0),
                _ => QuantParams::per_channel(grid, layer.axis, scales),
            };
            weights.insert(layer.deployed.clone(), params);
        }
        let graph = self.folded(&base)?;
        let mut grids = Grids::default();
        for (name, site) in &self.placement.sites {
            let quant = match site {
                Site::SameAs(other) => TensorQuant::SameAs(other.clone()),
                Site::Bias { input, weight } => TensorQuant::BiasOf { input: input.clone(), weight: weight.clone() },
                Site::Weight { axis, .. } => {
                    let own = || {
                        let by_channel = Granularity::Channel { axis: *axis };
                        weight_params(name, graph.constant(name)?, Grid::weights(8), by_channel, WeightRule::MinMax)
                            .ok()
                    };
                    match weights.remove(name).or_else(own) {
                        Some(params) => TensorQuant::Quantized(params),
                        None => continue,
                    }
                }
                Site::Activation { .. } => {
                    let Some(quantizer) = quantizers.deployable.get(name) else { continue };
                    let numbers = leaves.get(&quantizer_leaf(name)).unwrap_or_default();
                    let refuse = |source| TrainError::NotDeployable { tensor: name.clone(), source };
                    let (grid, scale, zero_point) = quantizer.grid(numbers).map_err(refuse)?;
                    TensorQuant::Quantized(self.activation(grid, scale, zero_point))
                }
            };
            grids.0.insert(name.clone(), quant);
        }
        Ok((graph, grids))
    }

    /// The same grid with the target's signs.
    fn activation(&self, grid: Grid, scale: f32, zero_point: i32) -> QuantParams {
        let half = 1 << (grid.bits - 1);
        let (signed, shift) = match (grid.signed, self.target.signed_activations) {
            (true, false) => (false, half),
            (false, true) => (true, -half),
            (signed, _) => (signed, 0),
        };
        QuantParams::per_tensor(Grid { signed, ..grid }, scale, zero_point + shift)
    }
}

impl Layer {
    /// Grid and scales of the weight that ships, from the quantizer's `numbers`. `weight`, and its dimensions, is what is rounded:
    /// folded with `factors` already where the layer is. A quantizer that derives nothing from it does not look at it.
    pub(super) fn deployed_grid(
        &self,
        quantizer: &dyn Deployable,
        groups: usize,
        numbers: &[f32],
        (weight, dims): (&[f32], &[usize]),
        factors: &Option<Vec<f32>>,
    ) -> Result<(Grid, Vec<f32>), TrainError> {
        let (mut grid, mut scales) = (Grid::weights(8), Vec::new());
        for g in 0..groups {
            let mut own = numbers[g * quantizer.learned()..][..quantizer.learned()].to_vec();
            let mut derived = vec![0.0; quantizer.derived()];
            if !derived.is_empty() {
                quantizer.derive(&group_of(weight, dims, self.axis, groups, g), &mut derived);
            }
            own.extend(derived);
            let refuse = |source| TrainError::NotDeployable { tensor: self.trained.clone(), source };
            let (own_grid, scale, _) = quantizer.grid(&own).map_err(refuse)?;
            grid = own_grid;
            scales.push(scale);
        }
        if let (false, Some(factors)) = (self.folds, factors) {
            let scale = |(c, f): (usize, &f32)| scales[if scales.len() == 1 { 0 } else { c }] * f.abs();
            scales = factors.iter().enumerate().map(scale).collect();
            // A channel that is switched off has any scale.
            let usual = scales.iter().fold(f32::MIN_POSITIVE, |m, s| m.max(*s));
            scales.iter_mut().filter(|s| **s <= usual * 1e-6).for_each(|s| *s = usual);
        }
        Ok((grid, scales))
    }
}
