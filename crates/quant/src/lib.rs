//! How a network is quantized: statistics of its tensors, rules that turn them into grids, and the plan that records the result.
//!
//! What enters: tensor elements during calibration, weights, and choices. What leaves: [`Stats`], `QuantParams` and a [`Plan`].
//! This room does not know training or search.

pub mod calibrate;
pub mod error;
pub mod importance;
pub mod normal;
pub mod placement;
pub mod plan;
pub mod ranges;
pub mod stats;
pub mod target;
#[cfg(test)]
mod testing;
pub mod weights;

pub use error::QuantError;
pub use plan::{Plan, Step};
pub use ranges::{Mapping, Range, RangeRule, Reader};
pub use stats::{Stats, TensorStats};
pub use weights::WeightRule;
