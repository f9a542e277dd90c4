//! Choices within the methods; the defaults are those of the papers unless a field says otherwise.

use super::{Offset, QuantizerError, init::Start};
use serde::Serialize;
use std::{fmt, str::FromStr};

/// Which signs the elements of a tensor have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Signs {
    /// None is negative, as after a ReLU.
    #[default]
    Positive,
    /// A bounded part is negative, as after SiLU or HardSwish.
    Lobe,
    /// Both signs alike, as of normalised images and linear bottlenecks.
    Both,
}

/// The four ways in which LSQ+ quantizes activations (table 1 of the paper).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Configuration {
    /// 1: codes from 0, no offset; what LSQ does. Negative lobes become 0. Tensors of [`Signs::Both`] are signed all the same.
    UnsignedSymmetric,
    /// 2: signed codes, no offset.
    SignedSymmetric,
    /// 3: signed codes and an offset.
    SignedAsymmetric,
    /// 4: codes from 0 and an offset.
    #[default]
    UnsignedAsymmetric,
}

impl FromStr for Configuration {
    type Err = QuantizerError;

    fn from_str(text: &str) -> Result<Self, QuantizerError> {
        Ok(match text {
            "1" => Configuration::UnsignedSymmetric,
            "2" => Configuration::SignedSymmetric,
            "3" => Configuration::SignedAsymmetric,
            "4" => Configuration::UnsignedAsymmetric,
            _ => return Err(QuantizerError::UnknownConfiguration { text: text.into() }),
        })
    }
}

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", *self as u8 + 1)
    }
}

/// Which weights go with PACT's activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PactWeights {
    /// As in the paper.
    #[default]
    #[serde(rename = "dorefa")]
    DoReFa,
    /// As in its successor.
    Sawb,
}

/// Choices within the methods.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// LSQ+: how activations are quantized.
    pub configuration: Configuration,
    /// LSQ+ configurations 3 and 4: what the offset does.
    pub offset: Offset,
    /// LSQ+ and DSQ activations: the offset is rounded to a whole number of steps, so that zero is exact.
    pub snapped: bool,
    /// LSQ and LSQ+: images of a batch that count as features in the gradient scale; 1 counts those of one image.
    pub counted_images: usize,
    /// Where weight scales start.
    pub weight_start: Start,
    /// Where activation ranges start.
    pub activation_start: Start,
    /// PACT: which weights go with it.
    pub pact_weights: PactWeights,
    /// PACT: where α starts. `None`, the default, asks `activation_start`; the paper has 8 to 10.
    pub pact_alpha: Option<f32>,
    /// DSQ: where its α, the distance from hard rounding, starts.
    pub dsq_alpha: f32,
    /// DSQ: whether α is learned.
    pub learn_dsq_alpha: bool,
    /// QIL: whether the exponent γ of weights is learned; it is 1 otherwise.
    pub learn_gamma: bool,
    /// DoReFa weights and QIL: results keep the magnitude of what enters. The papers normalise to 1, which only a
    /// normalisation behind each layer undoes.
    pub keep_magnitude: bool,
    /// Moving averages: batches that activations are only watched.
    pub delay: u32,
    /// Moving averages: weight of the past.
    pub decay: f32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            configuration: Configuration::default(),
            offset: Offset::Learned,
            snapped: false,
            counted_images: 1,
            weight_start: Start::Method,
            activation_start: Start::Method,
            pact_weights: PactWeights::default(),
            pact_alpha: None,
            dsq_alpha: 0.2,
            learn_dsq_alpha: true,
            learn_gamma: false,
            keep_magnitude: true,
            delay: 100,
            decay: 0.99,
        }
    }
}
