//! What a search for bits measured and found, as a report shows it.

use crate::numbers::{percent, significant};
use serde::{Deserialize, Serialize};

/// The damage that each width does to each layer, alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sensitivity {
    /// What damage is, such as `noise by signal`; 0 is none.
    pub damage: String,
    /// Widths, ascending.
    pub widths: Vec<u8>,
    /// Layers in the order of the graph.
    pub layers: Vec<LayerDamage>,
}

/// The damage done to one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerDamage {
    /// Name of the layer.
    pub name: String,
    /// Damage at each width.
    pub damage: Vec<f64>,
    /// The width that was chosen, if one was.
    pub bits: Option<u8>,
}

/// A search and what it found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Search {
    /// How bits were searched for.
    pub strategy: String,
    /// What the network was allowed to cost, such as `size=1.67MiB`.
    pub budget: String,
    /// Whether the network that was found keeps it.
    pub kept: bool,
    /// Bytes to deploy that network.
    pub bytes: u64,
    /// Mean bits of the weights whose bits were searched.
    pub average_bits: f64,
    /// Bit operations for one image.
    pub bops: u64,
    /// Bits of every layer in the order of the graph.
    pub layers: Vec<LayerBits>,
    /// What [`Candidate::values`] are.
    pub qualities: Vec<Quality>,
    /// The networks that were evaluated, the one that was found among them.
    pub candidates: Vec<Candidate>,
    /// Reward of each episode, in order.
    pub rewards: Vec<f64>,
}

/// Bits of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerBits {
    /// Name of the layer.
    pub name: String,
    /// Bits of its weight.
    pub weights: Option<u8>,
    /// Bits of what it multiplies the weight with.
    pub activations: Option<u8>,
    /// Bytes of its weight.
    pub bytes: u64,
}

/// What says how good a network is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quality {
    /// A share between 0 and 1, more is better, under this name.
    Accuracy(String),
    /// A positive number, less is better, under this name.
    Damage(String),
}

impl Quality {
    pub(crate) fn name(&self) -> &str {
        match self {
            Quality::Accuracy(name) | Quality::Damage(name) => name,
        }
    }

    /// A value of it in words.
    pub(crate) fn show(&self, value: Option<f64>) -> String {
        match (self, value) {
            (_, None) => "–".into(),
            (Quality::Accuracy(_), Some(share)) => percent(share),
            (Quality::Damage(_), Some(damage)) => significant(damage, 3),
        }
    }
}

impl Candidate {
    /// By quality number `quality`, if it was measured.
    pub(crate) fn value(&self, quality: usize) -> Option<f64> {
        self.values.get(quality).copied().flatten()
    }
}

/// A network that a search looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// What it is to the search.
    pub kind: CandidateKind,
    /// Bytes to deploy it.
    pub bytes: u64,
    /// How good it is, by each of [`Search::qualities`]; `None` where that was not measured.
    pub values: Vec<Option<f64>>,
}

/// What a network is to a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CandidateKind {
    /// One of many that were tried.
    Tried,
    /// All weights whose bits are searched have these bits.
    Uniform(u8),
    /// The one that was found.
    Found,
}
