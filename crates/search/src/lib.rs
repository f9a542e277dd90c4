//! Mixed precision: how many bits each weight, and if asked each input of a layer, gets under budgets.
//!
//! What enters: a prepared float network, its placement, samples by number, and budgets. What leaves: bits by tensor name. [`sensitivity`] and
//! [`hessian`] say what each layer does to the network at each width, [`problem`] makes numbers of that and of the budgets, [`allocate`]
//! spends them where it helps most, and [`strategy`] tries assignments that [`whole`] measures. This room knows no files, no data sets and no command line.

pub mod allocate;
pub mod budget;
pub mod cost;
pub mod error;
pub mod hessian;
pub mod latency;
pub mod problem;
mod rounding;
pub mod sensitivity;
pub mod similarity;
pub mod strategy;
mod stretch;
pub mod whole;

pub use budget::Budget;
pub use error::SearchError;
pub use latency::LatencyTable;
pub use problem::{Bits, Given, Item, Kind, Limit, Problem, Term};
pub use rounding::Rounding;
pub use sensitivity::{InputDamage, LayerDamage, Level, Sensitivity};
pub use similarity::Metric;
pub use strategy::{Measure, Settings, Trial};
pub use whole::{Prepared, Whole};

#[cfg(test)]
mod testing;
