//! Mixed precision: how many bits each weight gets under a budget.
//!
//! What enters: a prepared float network, its placement, samples by number, and a budgets. What leaves: bits by tensor name. First
//! [`sensitivity`] measures what each layer does to the network at each width, then [`allocate`] spends the budget where it helps
//! most. This room knows no files, no data sets and no command line.

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
