//! Errors of this crate.

use crate::plan::FORMAT;
use fewbits_graph::{DType, Granularity, Grid};
use std::path::PathBuf;
use thiserror::Error;

/// What can go wrong when a quantization is chosen, written or read.
#[derive(Debug, Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields hold")]
pub enum QuantError {
    /// A placed tensor without statistics.
    #[error("tensor `{tensor}` was not seen during calibration")]
    NoStats {
        /// Its name.
        tensor: String,
    },
    /// A rule for activations that does not exist.
    #[error("unknown range rule `{text}`")]
    UnknownRangeRule { text: String },
    /// A rule for weights that does not exist.
    #[error("unknown weight rule `{text}`")]
    UnknownWeightRule { text: String },
    /// A runtime that is not known.
    #[error("unknown target `{name}`")]
    UnknownTarget { name: String },
    /// A weight of another type.
    #[error("weight `{tensor}` is {dtype}, expected float32")]
    NotFloat { tensor: String, dtype: DType },
    /// A weight that is infinite or NaN.
    #[error("weight `{tensor}` has {value} at element {index}")]
    NotFinite { tensor: String, index: usize, value: f32 },
    /// Scales along an axis that the tensor does not have, or in blocks.
    #[error("tensor `{tensor}` of shape {dims:?} cannot have scales by {granularity:?}")]
    Granularity { tensor: String, granularity: Granularity, dims: Vec<usize> },
    /// A file that cannot be read or written.
    #[error("cannot {action} `{path}`")]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    /// A plan that is not JSON, or not that of a plan.
    #[error("`{path}` is not a plan")]
    NotAPlan { path: PathBuf, source: serde_json::Error },
    /// A plan written by a newer program.
    #[error("`{path}` has plan format {found}, expected {FORMAT}")]
    PlanFormat { path: PathBuf, found: u64 },
    /// Changed weights that cannot be read.
    #[error("`{path}` is not the file of changed weights that the plan was saved with: {reason}")]
    Patches { path: PathBuf, reason: String },
    /// A plan made for another model.
    #[error("the plan was made for the model {expected}, this model is {found}")]
    OtherModel { expected: String, found: String },
    /// A plan that names a tensor the model does not have.
    #[error("the plan names tensor `{tensor}`, which the model does not have")]
    UnknownTensor { tensor: String },
    /// A tensor whose scales or zero points do not fit its shape.
    #[error("tensor `{tensor}` needs {expected} {what}, the plan has {found}")]
    Length { tensor: String, what: &'static str, expected: usize, found: usize },
    /// A scale that is zero, negative, subnormal, infinite or NaN.
    #[error("tensor `{tensor}` has the scale {scale} at {index}; scales are positive normal numbers")]
    Scale { tensor: String, index: usize, scale: f32 },
    /// A zero point that is no code.
    #[error("tensor `{tensor}` has the zero point {zero_point} at {index}, outside its grid {grid:?}")]
    ZeroPoint { tensor: String, index: usize, zero_point: i32, grid: Grid },
    /// A grid of a width that does not exist.
    #[error("tensor `{tensor}` has {bits} bits; widths are 1 to 8")]
    Bits { tensor: String, bits: u8 },
    /// A tensor that shares a grid nobody has.
    #[error("tensor `{tensor}` shares the grid of `{of}`, which has none")]
    NoGrid { tensor: String, of: String },
    /// A changed weight of another shape or type.
    #[error("the plan replaces `{tensor}` of {expected} by {found}")]
    PatchShape { tensor: String, expected: String, found: String },
}

impl QuantError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            QuantError::UnknownRangeRule { .. } => {
                "rules are minmax, mean-minmax, moving-average, percentile:P (50 < P <= 100, e.g. percentile:99.99), mse, output-mse, kl, \
                 aciq, aciq-laplace and aciq-gauss"
            }
            QuantError::UnknownWeightRule { .. } => "rules are minmax and mse",
            QuantError::UnknownTarget { .. } => "targets are ort, tensorrt and generic",
            QuantError::NotFinite { .. } => "the model is broken: `fewbits inspect` lists such weights",
            QuantError::File { .. } => "check the path",
            QuantError::NotAPlan { .. } => "plans are the `*.plan.json` files that `fewbits quantize --plan` writes",
            QuantError::PlanFormat { .. } => "make the plan again with this version of fewbits",
            QuantError::Patches { .. } => "keep the plan and the `.safetensors` file whose name begins like its own together, from the same run",
            QuantError::OtherModel { .. } => "give the model that the plan was made for, or make a new plan with `fewbits quantize`",
            QuantError::UnknownTensor { .. } | QuantError::Length { .. } | QuantError::PatchShape { .. } => {
                "the plan was edited or is of another model: make a new one with `fewbits quantize`"
            }
            _ => return None,
        }.into())
    }
}
