//! BRECQ: the roundings of a whole residual block learned together, against the block's float output.
//!
//! # What it does
//! Each block of the walk is learned as one: soft roundings of all its weights, biases, and scales of activations of fewer than eight
//! bits ([`crate::reconstruction`]). Layers of a block make up for each other's errors, and an error that a Relu or a later layer hides
//! costs nothing.
//!
//! # When it helps
//! Below eight bits, most with four-bit activations and in depthwise networks; behind COMQ, whose codes it begins with.
//!
//! # When it fails
//! With fewer than some hundred samples it learns them by heart; a block is then left as it was. Blocks that reshape images into one
//! another are left alone.
//!
//! # Cost
//! One step forward and back through the network for each iteration and batch, all blocks together.
//!
//! # Config
//! [`Config`].
//!
//! # Source
//! Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction" (ICLR 2021), §3.2-3.3.
//!
//! # Departures
//! Squared error, with less of it at positions with far larger activations, in place of the Fisher-weighted one; hundreds of steps at a
//! higher rate in place of 20,000, of batches of 16 in place of 32; biases and scales of activations are learned in the same steps, not after the roundings.
//!
//! Half of the elements of the block's input, drawn anew in each step, are the float network's ([`Config::mix`] = 0.5, as QDrop has it); in
//! the paper all are the quantized network's. `λ` is 0.01 for every network (the authors take 0.1 for MobileNetV2), a quarter
//! of it with each bit beyond four. Roundings are settled for
//! good between 30 % and 90 % of the steps, those nearest to their end first; the paper settles all at the end. Grids of weights are
//! symmetric and narrow, where the authors' have a zero point.

pub use crate::reconstruction::Config;
use crate::{
    BlockMethod, Draft, MethodError, Walk,
    reconstruction::{Unit, learn},
};

/// The method.
#[derive(Clone, Debug, PartialEq)]
pub struct Brecq {
    /// How roundings are learned.
    pub config: Config,
}

impl Default for Brecq {
    fn default() -> Self {
        Brecq { config: Config { scales: true, ..Config::default() } }
    }
}

impl BlockMethod for Brecq {
    fn name(&self) -> &'static str {
        "brecq"
    }

    fn improve(&self, walk: &Walk<'_>, draft: &mut Draft) -> Result<(), MethodError> {
        learn_block(walk, draft, &self.config)
    }
}

/// Learns the block that the walk stands before.
///
/// # Errors
/// As [`learn`].
pub(crate) fn learn_block(walk: &Walk<'_>, draft: &mut Draft, config: &Config) -> Result<(), MethodError> {
    let Some(block) = walk.block().cloned().filter(|block| !block.layers.is_empty()) else { return Ok(()) };
    let names: Vec<&str> = block.outputs.iter().map(String::as_str).collect();
    let part = block.part(&draft.graph, &names)?;
    let unit = Unit { inputs: block.inputs.clone(), outputs: block.outputs.clone(), layers: block.layers.clone() };
    learn(walk, draft, &unit, &part, walk, config)
}
