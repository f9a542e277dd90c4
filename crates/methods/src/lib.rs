//! Post-training methods: one folder each.
//!
//! What enters: a float network, a [`Draft`] of the quantized one, and samples by number. What leaves: the draft with other
//! constants and other grids. This room knows no files but temporary ones, no data sets and no command line.

pub mod aciq;
pub mod adaround;
pub mod bias_absorption;
pub mod bias_correction;
pub mod bn_tune;
pub mod brecq;
pub mod clipping;
pub mod comq;
pub mod draft;
pub mod e2e_qp;
pub mod equalization;
pub mod error;
pub mod expectation;
pub mod lapq;
pub mod mixed_clipping;
pub mod moments;
pub mod omse;
pub mod output_scaling;
pub mod progress;
pub mod qdrop;
pub mod reconstruction;
pub mod samples;
pub mod seq_mse;
pub mod walk;
pub mod weighting;
pub mod zero_point;
pub mod zeroq_data;

pub use draft::{Draft, Ground, Layer, layers};
pub use error::MethodError;
pub use progress::Progress;
pub use samples::{Mirrored, Part, Samples};
pub use walk::{BlockMethod, Walk};
pub use weighting::{Outputs, Weighting, classes};

#[cfg(test)]
mod testing;
