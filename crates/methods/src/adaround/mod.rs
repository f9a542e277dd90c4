//! AdaRound: up or down for each weight, learned layer by layer.
//!
//! # What it does
//! For one layer after the other it learns which of two neighbouring codes each weight takes, so that the layer's output behind its
//! activation is that of the float network, given what the quantized network puts into the layer ([`crate::reconstruction`]).
//!
//! # When it helps
//! Four-bit weights with eight-bit activations.
//!
//! # When it fails
//! With fewer than some hundred samples; a layer is then left as it was.
//!
//! # Cost
//! One step forward and back through the layer for each iteration, on windows of at most 64 positions of each sample of the batch.
//!
//! # Config
//! [`Config`].
//!
//! # Source
//! Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (ICML 2020), equations 20-25.
//!
//! # Departures
//! Biases are learned too; positions with far larger outputs count less. Layers see windows of their outputs (of 8 by 8 positions, four of
//! each sample) in place of whole ones. It begins at the codes that the draft has. Thousands of steps at a higher rate in place of 10,000, of batches of 16 in place of 32.
//!
//! Half of the elements of the layer's input, drawn anew in each step, are the float network's ([`Config::mix`] = 0.5, as QDrop has it); in
//! the paper all are the quantized network's. The push of roundings towards 0 and 1 has the paper's factor `λ = 0.01` up to four bits, a quarter of it with each
//! bit more, where steps are finer; but they are settled
//! for good one after the other between 30 % and 90 % of the steps, those nearest to their end first, and what is left goes on learning; the
//! paper settles all at the end. Grids of weights are symmetric and narrow, with a scale for each output channel unless asked otherwise.

mod windows;

pub use crate::reconstruction::Config;
use crate::{
    BlockMethod, Draft, MethodError, Walk,
    reconstruction::{Tally, Unit, learn},
};
use fewbits_graph::{DType, Graph, Op, ValueInfo};
use windows::Windows;

/// The method.
#[derive(Debug)]
pub struct AdaRound {
    /// How roundings are learned.
    pub config: Config,
    tally: Tally,
}

impl AdaRound {
    /// With another [`Config`] than the default.
    pub fn new(config: Config) -> Self {
        AdaRound { config, tally: Tally::default() }
    }
}

impl Default for AdaRound {
    fn default() -> Self {
        AdaRound::new(Config { iterations: 2000, ..Config::default() })
    }
}

impl BlockMethod for AdaRound {
    fn name(&self) -> &'static str {
        "adaround"
    }

    fn improve(&self, walk: &Walk<'_>, draft: &mut Draft) -> Result<(), MethodError> {
        let Some(block) = walk.block().cloned() else { return Ok(()) };
        for layer in &block.layers {
            let output = activated(&walk.ground().float.nodes[layer.node].outputs[0], walk.ground().float);
            let input = ValueInfo { name: layer.input.clone(), dtype: DType::F32, dims: None };
            let part = draft.graph.slice(&[input], &[&output])?;
            let unit = Unit {
                inputs: vec![layer.input.clone()],
                outputs: vec![output.clone()],
                layers: vec![layer.clone()],
                importance: vec![],
            };
            let (windows, part) = Windows::of(walk, draft, layer, (part, &output), self.config.seed)?;
            self.tally.add(learn(walk, draft, &unit, &part, &windows, &self.config)?);
        }
        Ok(())
    }

    fn findings(&self) -> Vec<String> {
        self.tally.findings("layers")
    }
}

/// What a Relu or Clip that alone reads `tensor` writes, else `tensor`.
fn activated(tensor: &str, graph: &Graph) -> String {
    let mut readers = graph.nodes.iter().filter(|n| n.inputs.iter().any(|i| i == tensor));
    match (readers.next(), readers.next()) {
        (Some(node), None) if matches!(node.op, Op::Relu(_) | Op::Clip(_)) && !graph.is_output(tensor) => {
            node.output().to_string()
        }
        _ => tensor.to_string(),
    }
}
