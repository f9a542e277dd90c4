//! The table: what each layer is and what each width does to the network.

use crate::{Metric, SearchError, cost::weight_bytes};
use serde::Serialize;
use std::{fmt, str::FromStr};

/// Where the damage is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The output of the layer itself. Cheapest; layers cannot be compared with each other.
    Local,
    /// The outputs of the block ([`fewbits_methods::walk::blocks`]) that the layer is in.
    Block,
    /// The outputs of the network.
    Network,
    /// Local damage, times what the layer's local damage at 4 bits comes to at the outputs: `D(b) = D_local(b) · D_network(4) / D_local(4)`.
    #[default]
    Weighted,
}

const LEVELS: [(Level, &str); 4] =
    [(Level::Local, "local"), (Level::Block, "block"), (Level::Network, "network"), (Level::Weighted, "weighted")];

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(LEVELS.iter().find(|(level, _)| level == self).map_or("", |(_, name)| name))
    }
}

impl FromStr for Level {
    type Err = SearchError;

    fn from_str(text: &str) -> Result<Self, SearchError> {
        let known = "local, block, network, weighted";
        let unknown = || SearchError::Unknown { what: "level", text: text.into(), known };
        LEVELS.iter().find(|(_, name)| *name == text).map(|(level, _)| *level).ok_or_else(unknown)
    }
}

/// One weight. Layers that share it count as one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerDamage {
    /// Name of the (first) node.
    pub layer: String,
    /// Name of the weight.
    pub weight: String,
    /// The tensor that it multiplies (in the first node), or the one whose grid that has.
    pub input: String,
    /// Of the first or last layers.
    pub edge: bool,
    /// Elements of the weight.
    pub elements: u64,
    /// Output channels.
    pub rows: u64,
    /// Scales of the weight.
    pub scales: u64,
    /// Multiply-accumulates for one image.
    pub macs: u64,
    /// Bits of the activation that it multiplies.
    pub input_bits: u8,
    /// Damage at each of [`Sensitivity::widths`].
    pub damage: Vec<f64>,
}

impl LayerDamage {
    /// Bytes to deploy at `bits` bits, by the convention of [`crate::cost`].
    pub fn bytes_at(&self, bits: u8) -> u64 {
        let columns = self.elements / self.rows.max(1);
        weight_bytes(&[self.rows as usize, columns as usize], Some(0), bits, self.scales as usize)
    }

    /// The damage at `bits` bits, or at the nearest of `widths` if that was not measured.
    pub fn damage_at(&self, widths: &[u8], bits: u8) -> f64 {
        let nearest = widths.iter().zip(&self.damage).min_by_key(|(width, _)| width.abs_diff(bits));
        nearest.map_or(0.0, |(_, damage)| *damage)
    }
}

/// One tensor that layers multiply.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InputDamage {
    /// Its name.
    pub tensor: String,
    /// Read by first or last layers.
    pub edge: bool,
    /// Damage at each of [`Sensitivity::input_widths`].
    pub damage: Vec<f64>,
}

/// Damage by layer and width.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sensitivity {
    /// What damage is; `None` if it is `Tr(H)/n · ‖ΔW‖²` ([`crate::hessian::Traces::sensitivity`]).
    pub metric: Option<Metric>,
    /// Where it was looked at.
    pub level: Level,
    /// Widths of weights, ascending.
    pub widths: Vec<u8>,
    /// Every weight with a grid, in graph order.
    pub layers: Vec<LayerDamage>,
    /// Widths of inputs of layers, ascending; empty if they are not searched.
    pub input_widths: Vec<u8>,
    /// Inputs of layers ([`crate::Whole::input_damages`]), in graph order.
    pub inputs: Vec<InputDamage>,
}

/// Adds a layer to `layers`. Errors of the uses of a shared weight add up as those of layers do.
pub(crate) fn add(layers: &mut Vec<LayerDamage>, found: LayerDamage) {
    match layers.iter_mut().find(|other| other.weight == found.weight) {
        Some(other) => {
            other.macs += found.macs;
            other.edge |= found.edge;
            other.damage.iter_mut().zip(found.damage).for_each(|(sum, damage)| *sum += damage);
        }
        None => layers.push(found),
    }
}
