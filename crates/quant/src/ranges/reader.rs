//! What becomes of a tensor next, as far as its range should know.

use serde::{Deserialize, Serialize};

/// The only function through which a tensor is read. A range is judged by the error behind it: what the function flattens may be
/// clipped for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reader {
    /// Anything: errors count as they are.
    #[default]
    Identity,
    /// `x < 0 ? alpha·x : x`
    LeakyRelu {
        /// Slope of the negative part.
        alpha: f32,
    },
    /// `1 / (1 + e^−x)`
    Sigmoid,
    /// `x / (1 + e^−x)`
    Silu,
    /// `x · min(max(x/6 + 1/2, 0), 1)`
    HardSwish,
}

impl Reader {
    /// The function's value.
    pub fn value(self, x: f64) -> f64 {
        match self {
            Reader::Identity => x,
            Reader::LeakyRelu { alpha } => x.max(0.0) + f64::from(alpha) * x.min(0.0),
            Reader::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Reader::Silu => x / (1.0 + (-x).exp()),
            Reader::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
        }
    }
}
