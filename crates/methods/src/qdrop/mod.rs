//! QDrop: block reconstruction in which activations are rounded at random.
//!
//! # What it does
//! As [`crate::brecq`], but in every step each element of an activation is left unrounded with probability ½, and each element of the
//! block's input is the float network's with probability ½. Weights then suit a neighbourhood of the activations that they were learned
//! on, and do better on images that they were not.
//!
//! # When it helps
//! With four-bit activations and fewer.
//!
//! # When it fails
//! Where BRECQ does. With eight-bit activations there is nothing to drop.
//!
//! # Cost
//! That of BRECQ's steps. With a deadline each block gets its share of the time, and as many steps as fit.
//!
//! # Config
//! [`Config`]: `drop` is the probability.
//!
//! # Source
//! Wei et al., "QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training Quantization" (ICLR 2022), §4.
//!
//! # Departures
//! Those of BRECQ (batches of 16, `λ` = 0.01 also where the authors take 0.1 or 0.2, roundings settled between 30 % and 90 % of the steps,
//! symmetric narrow grids of weights, at most thousands of steps), but for the block's input, of which the paper mixes a half as well.
//! There is no Fisher information, here as in the paper, but positions with far larger activations count less. What is dropped depends on
//! the element's value and the step, not on its place.

pub use crate::reconstruction::Config;
use crate::{BlockMethod, Draft, MethodError, Walk, brecq::learn_block, reconstruction::Tally};

/// The method.
#[derive(Debug)]
pub struct QDrop {
    /// How roundings are learned.
    pub config: Config,
    tally: Tally,
}

impl QDrop {
    /// With another [`Config`] than the default.
    pub fn new(config: Config) -> Self {
        QDrop { config, tally: Tally::default() }
    }
}

impl Default for QDrop {
    fn default() -> Self {
        QDrop::new(Config { scales: true, drop: 0.5, ..Config::default() })
    }
}

impl BlockMethod for QDrop {
    fn name(&self) -> &'static str {
        "qdrop"
    }

    fn improve(&self, walk: &Walk<'_>, draft: &mut Draft) -> Result<(), MethodError> {
        learn_block(walk, draft, &self.config, &self.tally)
    }

    fn findings(&self) -> Vec<String> {
        self.tally.findings("blocks")
    }
}
