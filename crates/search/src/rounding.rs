//! Weights at other widths, rounded to the nearest codes.

use fewbits_graph::{Granularity, Grid, Grids, Tensor, TensorQuant, exec::rounded_constant};
use fewbits_quant::{QuantError, WeightRule, calibrate::Policy, weights::weight_params};
use std::sync::Arc;

/// How weights get their scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounding {
    /// Range rule.
    pub rule: WeightRule,
    /// One scale per output channel rather than one per tensor.
    pub per_channel: bool,
}

impl Default for Rounding {
    fn default() -> Self {
        Rounding { rule: WeightRule::Mse, per_channel: true }
    }
}

impl From<&Policy> for Rounding {
    fn from(policy: &Policy) -> Self {
        Rounding { rule: policy.weight_rule, per_channel: policy.per_channel }
    }
}

impl Rounding {
    /// `weight` with output channels along `axis`, at `bits` bits.
    pub(crate) fn apply(
        self,
        name: &str,
        weight: &Arc<Tensor>,
        axis: usize,
        bits: u8,
    ) -> Result<Arc<Tensor>, QuantError> {
        let granularity = if self.per_channel { Granularity::Channel { axis } } else { Granularity::Tensor };
        let params = weight_params(name, weight, Grid::weights(bits), granularity, self.rule)?;
        let mut grids = Grids::default();
        grids.0.insert(name.into(), TensorQuant::Quantized(params));
        Ok(rounded_constant(name, weight, &grids))
    }

    /// How many scales a weight of this shape has.
    pub(crate) fn scales(self, dims: &[usize], axis: usize) -> usize {
        if self.per_channel { dims.get(axis).copied().unwrap_or(1) } else { 1 }
    }
}
