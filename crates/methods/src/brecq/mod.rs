//! BRECQ: the roundings of a whole residual block learned together, against the block's float output.
//!
//! # What it does
//! Each block of the walk is learned as one: soft roundings of all its weights, biases, and scales of activations of fewer than eight
//! bits ([`crate::reconstruction`]). Layers of a block make up for each other's errors, and an error that a Relu or a later layer hides
//! costs nothing. Squared errors of a block's output are weighted by the diagonal of the Fisher information, so that what the network's
//! outputs depend on counts more.
//!
//! # When it helps
//! Below eight bits, most with four-bit activations and in depthwise networks; after COMQ, whose codes it begins with.
//!
//! # When it fails
//! With fewer than some hundred samples it learns them by heart; a block is then left as it was. Blocks that reshape images into one
//! another are left alone.
//!
//! # Cost
//! One step forward and back through the network for each iteration and batch, all blocks together. For the weights of errors, 32
//! samples twice through what is behind each block, and once back.
//!
//! # Config
//! [`Config`].
//!
//! # Source
//! Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction" (ICLR 2021), §3.2-3.3.
//!
//! # Departures
//! The Fisher information is averaged over samples, not one for each, and that of the float network's own outputs, as no labels are there.
//! Where the rest of the network has no derivative, all elements count the same, but for positions with far larger activations, which
//! count less. Hundreds of steps at a higher rate in place of 20,000, of batches of 16 in place of 32; biases and scales of activations are
//! learned in the same steps, not after the roundings, and scales grow to half as much again at most.
//!
//! Half of the elements of the block's input, drawn anew in each step, are the float network's ([`Config::mix`] = 0.5, as QDrop has it); in
//! the paper all are the quantized network's. `λ` is 0.01 for every network (the authors take 0.1 for MobileNetV2), a quarter
//! of it with each bit beyond four. Roundings are settled for
//! good between 30 % and 90 % of the steps, those nearest to their end first; the paper settles all at the end. Grids of weights are
//! symmetric and narrow, where the authors' have a zero point.

pub use crate::reconstruction::Config;
use crate::{
    BlockMethod, Draft, MethodError, Walk,
    reconstruction::{Tally, Unit, fisher, learn},
};

/// The method.
#[derive(Debug)]
pub struct Brecq {
    /// How roundings are learned.
    pub config: Config,
    tally: Tally,
}

impl Brecq {
    /// With another [`Config`] than the default.
    pub fn new(config: Config) -> Self {
        Brecq { config, tally: Tally::default() }
    }
}

impl Default for Brecq {
    fn default() -> Self {
        Brecq::new(Config { scales: true, fisher: true, ..Config::default() })
    }
}

impl BlockMethod for Brecq {
    fn name(&self) -> &'static str {
        "brecq"
    }

    fn improve(&self, walk: &Walk<'_>, draft: &mut Draft) -> Result<(), MethodError> {
        learn_block(walk, draft, &self.config, &self.tally)
    }

    fn findings(&self) -> Vec<String> {
        self.tally.findings("blocks")
    }
}

/// Learns the block that the walk stands before, and adds to `tally` what became of it.
///
/// # Errors
/// As [`learn`].
pub(crate) fn learn_block(
    walk: &Walk<'_>,
    draft: &mut Draft,
    config: &Config,
    tally: &Tally,
) -> Result<(), MethodError> {
    let Some(block) = walk.block().cloned().filter(|block| !block.layers.is_empty()) else { return Ok(()) };
    let names: Vec<&str> = block.outputs.iter().map(String::as_str).collect();
    let part = block.part(&draft.graph, &names)?;
    let importance = if config.fisher { fisher::importance(walk, config.seed)? } else { None };
    if config.fisher && importance.is_none() {
        tally.add_unweighted();
    }
    let importance = importance.unwrap_or_default();
    let unit =
        Unit { inputs: block.inputs.clone(), outputs: block.outputs.clone(), layers: block.layers.clone(), importance };
    tally.add(learn(walk, draft, &unit, &part, walk, config)?);
    Ok(())
}
