//! Mixed precision: how many bits each weight gets under a budget.
//!
//! What enters: a prepared float network, its placement, samples by number, and a budget. What leaves: bits by weight name. First
//! [`sensitivity`] measures what each layer does to the network at each width, then [`allocate`] spends the budget where it helps
//! most. This room knows no files, no data sets and no command line.

pub mod allocate;
pub mod budget;
pub mod cost;
pub mod error;
pub mod problem;
mod rounding;
pub mod sensitivity;
pub mod similarity;
pub mod whole;

pub use budget::Budget;
pub use error::SearchError;
pub use problem::{Item, Problem};
pub use rounding::Rounding;
pub use sensitivity::{LayerDamage, Level, Sensitivity};
pub use similarity::Metric;
pub use whole::Whole;

#[cfg(test)]
mod testing;
