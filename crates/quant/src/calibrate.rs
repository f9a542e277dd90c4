//! From statistics to grids: one decision for each site of a placement.

use crate::{
    Mapping, QuantError, Range, RangeRule, Stats, WeightRule,
    placement::{Placement, Site},
    target::Target,
    weights::{guard_bias, weight_params},
};
use fewbits_graph::{Granularity, Graph, Grid, Grids, QuantParams, TensorQuant, op::Fact};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Bits of activations that no layer multiplies.
pub const REST_BITS: u8 = 8;

/// How many bits, and by which rules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Bits of weights.
    pub weight_bits: u8,
    /// Bits of the activations that layers multiply; others have [`REST_BITS`].
    pub activation_bits: u8,
    /// Bits of the weights of first and last layers and of the activations they multiply; at least the above.
    pub edge_bits: u8,
    /// Range rule of weights.
    pub weight_rule: WeightRule,
    /// One scale per output channel rather than one per weight tensor.
    pub per_channel: bool,
    /// Of weights with few bits and scales by channel, bits by channel too: as many on average.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub channel_bits: bool,
    /// Bits of single weights, by name, in place of the above.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weight_bits_of: BTreeMap<String, u8>,
    /// Bits of single activations that layers multiply, by name, likewise.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub activation_bits_of: BTreeMap<String, u8>,
}

impl Policy {
    /// These bits, scales per channel by least squared error.
    pub fn new(weight_bits: u8, activation_bits: u8, edge_bits: u8) -> Self {
        Policy {
            weight_bits,
            activation_bits,
            edge_bits,
            weight_rule: WeightRule::Mse,
            per_channel: true,
            channel_bits: false,
            weight_bits_of: BTreeMap::new(),
            activation_bits_of: BTreeMap::new(),
        }
    }

    /// Whether anything but first and last layers has fewer than eight bits.
    pub fn is_low(&self) -> bool {
        let single = self.weight_bits_of.values().chain(self.activation_bits_of.values());
        [self.weight_bits, self.activation_bits].iter().chain(single).any(|&bits| bits < 8)
    }

    /// The fewest bits of any weight but those of first and last layers.
    pub fn least_weight_bits(&self) -> u8 {
        self.weight_bits_of.values().copied().fold(self.weight_bits, u8::min)
    }

    /// Whether any activation but the inputs of first and last layers has fewer than eight bits.
    pub fn has_low_activations(&self) -> bool {
        self.activation_bits < 8 || self.activation_bits_of.values().any(|bits| *bits < 8)
    }

    /// The same with no weight below `bits`.
    pub fn with_weights_from(&self, bits: u8) -> Self {
        let raised = |old: &u8| (*old).max(bits);
        let weight_bits_of = self.weight_bits_of.iter().map(|(name, old)| (name.clone(), raised(old))).collect();
        Policy { weight_bits: raised(&self.weight_bits), weight_bits_of, ..self.clone() }
    }

    /// The same with no weight, and no activation that layers multiply, below `bits`.
    pub fn from_bits(&self, bits: u8) -> Self {
        let of = self.activation_bits_of.iter().map(|(name, &own)| (name.clone(), own.max(bits)));
        let activation_bits = self.activation_bits.max(bits);
        Policy { activation_bits, activation_bits_of: of.collect(), ..self.with_weights_from(bits) }
    }

    /// Bits of the weight `name`, of a first or last layer if `edge`.
    pub fn weight_bits(&self, name: &str, edge: bool) -> u8 {
        let usual = if edge { self.edge_bits.max(self.weight_bits) } else { self.weight_bits };
        self.weight_bits_of.get(name).copied().unwrap_or(usual)
    }

    /// Bits of the activation `name` at `site`.
    pub fn activation_bits(&self, name: &str, site: &Site) -> u8 {
        let usual = match site {
            Site::Activation { feeds_layer: true, edge: false, .. } => self.activation_bits,
            Site::Activation { feeds_layer: true, edge: true, .. } => self.edge_bits.max(self.activation_bits),
            _ => return REST_BITS,
        };
        self.activation_bits_of.get(name).copied().unwrap_or(usual)
    }
}

/// `given` ranges, and those of placed tensors whose elements follow from shapes alone: no run of the network shows them.
pub fn with_known(
    given: &BTreeMap<String, Range>,
    graph: &Graph,
    placement: &Placement,
    facts: &BTreeMap<String, Fact>,
) -> BTreeMap<String, Range> {
    let known = |(name, site): (&String, &Site)| {
        let values = facts.get(name)?.value.as_ref()?.as_f32()?;
        let computed = matches!(site, Site::Activation { .. }) && graph.constant(name).is_none();
        computed.then(|| (name.clone(), constant_range(values)))
    };
    placement.sites.iter().filter_map(known).chain(given.iter().map(|(name, range)| (name.clone(), *range))).collect()
}

/// Grids of activations under one range rule; tensors in `given` have their range already.
///
/// # Errors
/// [`QuantError::NoStats`] if a placed tensor was never observed, is no constant, and has no range given.
pub fn activations(
    graph: &Graph,
    placement: &Placement,
    stats: &Stats,
    policy: &Policy,
    target: &Target,
    rule: RangeRule,
    given: &BTreeMap<String, Range>,
) -> Result<Grids, QuantError> {
    let mapping = if target.symmetric_activations { Mapping::Symmetric } else { Mapping::Affine };
    let mut grids = Grids::default();
    for (name, site) in &placement.sites {
        let quant = match site {
            Site::Activation { bounds, reader, .. } => {
                let grid = target.activation_grid(policy.activation_bits(name, site));
                let constant = graph.constant(name).and_then(|t| t.as_f32());
                let params = match (constant, stats.0.get(name)) {
                    _ if given.contains_key(name) => given[name].params(grid, mapping),
                    (Some(values), _) => constant_range(values).params(grid, mapping),
                    (None, Some(stats)) => rule.range_behind(stats, grid, mapping, *reader).params(grid, mapping),
                    (None, None) => return Err(QuantError::NoStats { tensor: name.clone() }),
                };
                TensorQuant::Quantized(within(params, *bounds))
            }
            Site::SameAs(other) => TensorQuant::SameAs(other.clone()),
            Site::Weight { .. } | Site::Bias { .. } => continue,
        };
        grids.0.insert(name.clone(), quant);
    }
    Ok(grids)
}

fn constant_range(values: &[f32]) -> Range {
    let (lo, hi) = values.iter().fold((0f32, 0f32), |(lo, hi), &v| (lo.min(v), hi.max(v)));
    Range::of(lo.into(), hi.into())
}

/// The same grid, its scale lowered by the few units in the last place that keep it inside `bounds`: a runtime absorbs a Clip only
/// if the grid does not reach beyond it.
fn within(mut params: QuantParams, bounds: Option<(f32, f32)>) -> QuantParams {
    let Some((lo, hi)) = bounds else { return params };
    for _ in 0..8 {
        let (qlo, qhi) = params.range(0);
        if qlo >= lo && qhi <= hi {
            break;
        }
        params.scale[0] = params.scale[0].next_down();
    }
    params
}

/// Grids of all placed weights; they do not depend on the activations.
///
/// # Errors
/// [`QuantError`] if a weight holds numbers that are not finite.
pub fn weights(
    graph: &Graph,
    placement: &Placement,
    policy: &Policy,
) -> Result<BTreeMap<String, QuantParams>, QuantError> {
    let mut found = BTreeMap::new();
    for (name, site) in &placement.sites {
        let Site::Weight { axis, edge, .. } = site else { continue };
        let Some(tensor) = graph.constant(name) else { continue };
        let grid = Grid::weights(policy.weight_bits(name, *edge));
        let granularity = if policy.per_channel { Granularity::Channel { axis: *axis } } else { Granularity::Tensor };
        found.insert(name.clone(), weight_params(name, tensor, grid, granularity, policy.weight_rule)?);
    }
    Ok(found)
}

/// Adds the grids of weights and biases to those of the activations. A channel whose bias would need more than 23 bits gets a
/// larger scale. Returns the names of the weights where that was so.
pub fn add_weights(
    graph: &Graph,
    placement: &Placement,
    weights: &BTreeMap<String, QuantParams>,
    grids: &mut Grids,
) -> Vec<String> {
    let mut guarded = Vec::new();
    for (name, params) in weights {
        let Some(Site::Weight { input, bias, .. }) = placement.sites.get(name) else { continue };
        let mut params = params.clone();
        let input_scale = grids.params(input).and_then(QuantParams::tensor_params);
        let bias_values = bias.as_ref().and_then(|b| graph.constant(b)).and_then(|t| t.as_f32());
        if let (Some((scale, _)), Some(values)) = (input_scale, bias_values)
            && !guard_bias(&mut params.scale, scale, values).is_empty()
        {
            guarded.push(name.clone());
        }
        grids.0.insert(name.clone(), TensorQuant::Quantized(params));
    }
    for (name, site) in &placement.sites {
        if let Site::Bias { input, weight } = site {
            let quant = TensorQuant::BiasOf { input: input.clone(), weight: weight.clone() };
            grids.0.insert(name.clone(), quant);
        }
    }
    guarded
}
