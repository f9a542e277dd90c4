//! Quantizers with learned parameters, one method a file.
//!
//! What enters: the elements of a tensor, or of one channel of a weight, and the numbers learned for it. What leaves: the same
//! elements rounded to a grid, gradients, and the grid for deployment. This room knows no graph, no optimizer and no schedule.

mod dorefa;
mod dsq;
mod even_levels;
mod fake_quant;
pub mod init;
pub mod kure;
mod lsq;
mod method;
mod moving_average;
mod pact;
mod qil;
mod sawb;
mod settings;
#[cfg(test)]
mod testing;
mod tqt;

pub use dorefa::{DoReFaActivations, DoReFaWeights};
pub use dsq::{DsqActivations, DsqWeights};
pub use lsq::{Lsq, Offset};
pub use method::{Method, activation_quantizer, weight_quantizer};
pub use moving_average::{MovingAverage, StepRange};
pub use pact::Pact;
pub use qil::Qil;
pub use sawb::Sawb;
pub use settings::{Configuration, PactWeights, Settings, Signs};
pub use tqt::Tqt;

use fewbits_graph::{Grid, tape::Quantizer};
use thiserror::Error;

/// A quantizer that knows where to start and what it becomes.
pub trait Deployable: Quantizer {
    /// The parameters to start from, learned then derived, for a group whose elements are like `x`. Elements that are not
    /// finite are passed over; without any others the parameters are still usable.
    fn initial(&self, x: &[f32]) -> Vec<f32>;

    /// Grid, scale and zero point with which `scale · (code − zero_point)` are the floats that [`Quantizer::forward`] writes.
    ///
    /// Of activations, `code = clamp(round_ties_even(x / scale) + zero_point, qmin, qmax)` of the *input* `x` gives the very
    /// float that was written for `x`. Of weights the same holds of the *written* floats: they are what is exported, as some
    /// methods bend weights before they round them.
    ///
    /// # Errors
    /// If no integer kernel computes this quantizer, and why.
    fn grid(&self, parameters: &[f32]) -> Result<(Grid, f32, i32), NotDeployable>;

    /// The distance between the levels that are written, also where there is no integer form; `None` if nothing is rounded.
    fn scale(&self, parameters: &[f32]) -> Option<f32> {
        self.grid(parameters).ok().map(|(_, scale, _)| scale)
    }

    /// Shortens an optimizer's step from `before` to `learned`, the learned numbers of a group, if it would tear the grid from what it is
    /// laid over.
    fn limit(&self, _before: &[f32], _learned: &mut [f32]) {}

    /// How many of the learned numbers of a group, the last ones, stay as they started.
    fn fixed(&self) -> usize {
        0
    }

    /// Which weight decay its learned numbers have.
    fn decays(&self) -> Decays {
        Decays::Never
    }
}

/// Whether weight decay pulls the learned numbers of a quantizer towards 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decays {
    /// Not at all: some numbers are kept among the learned ones only because they change with time, and some are no sizes.
    Never,
    /// That of scales and offsets.
    AsScales,
    /// That of the network's weights.
    AsWeights,
}

/// Why a quantizer has no grid that integer kernels take.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotDeployable {
    /// The offset is not a multiple of the scale.
    #[error("zero lies between two codes; snap the offset first")]
    FreeOffset,
    /// Codes are those of a transformed input.
    #[error("activations are mapped to [0, 1] before they are rounded")]
    Transformed,
    /// Values still pass unrounded.
    #[error("the range is still being observed: {seen} of {delay} batches")]
    Observing {
        /// Batches so far.
        seen: u32,
        /// Batches before the first that is rounded.
        delay: u32,
    },
}

/// What cannot be asked for.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuantizerError {
    /// No method of that name.
    #[error("unknown training method `{text}`")]
    UnknownMethod {
        /// The name.
        text: String,
    },
    /// No such rule for where scales start.
    #[error("unknown start `{text}`; known are method, lsq, lsq+, lsq+abs, mse and minmax")]
    UnknownStart {
        /// The name.
        text: String,
    },
    /// No LSQ+ configuration of that number.
    #[error("unknown LSQ+ configuration `{text}`")]
    UnknownConfiguration {
        /// The text.
        text: String,
    },
    /// The method's activations have zero points, and the target takes none.
    #[error("activations of {method} have zero points, which {target} does not take")]
    ZeroPoints {
        /// Which method.
        method: &'static str,
        /// Which target.
        target: String,
    },
    /// The method has no rule for this width.
    #[error("{method} does not quantize {tensor} to {bits} bits")]
    Bits {
        /// Which method.
        method: &'static str,
        /// Weights or activations.
        tensor: &'static str,
        /// Asked width.
        bits: u8,
    },
}

/// Least and largest scale that an optimizer's step may leave.
const SCALES: [f32; 2] = [1e-8, 1e30];

/// The nearest number that can be a scale. A step across zero is reflected, as it would otherwise leave everything clipped.
fn scale_after_step(scale: f32) -> f32 {
    if scale.is_nan() { SCALES[0] } else { scale.abs().clamp(SCALES[0], SCALES[1]) }
}

/// `number`, or `otherwise` if it is infinite or NaN.
fn finite(number: f32, otherwise: f32) -> f32 {
    if number.is_finite() { number } else { otherwise }
}

/// Signed grid whose lowest code is left out.
const fn narrow(bits: u8) -> Grid {
    Grid { bits, signed: true, narrow: true }
}

/// All codes of a width.
const fn full(bits: u8, signed: bool) -> Grid {
    Grid { bits, signed, narrow: false }
}
