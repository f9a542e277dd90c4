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
//! One step forward and back through the network for each iteration and batch, all layers together.
//!
//! # Config
//! [`Config`].
//!
//! # Source
//! Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (ICML 2020), equations 20-25.
//!
//! # Departures
//! Biases are learned too. It begins at the codes that the draft has. Hundreds of steps at a higher rate in place of 10,000.

pub use crate::reconstruction::Config;
use crate::{
    BlockMethod, Draft, Layer, MethodError, Walk,
    reconstruction::{Examples, Unit, learn},
    walk::{Run, Side},
};
use fewbits_graph::{DType, Graph, Op, Tensor, ValueInfo, exec::Mode};
use std::sync::Mutex;

/// The method.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaRound {
    /// How roundings are learned.
    pub config: Config,
}

impl Default for AdaRound {
    fn default() -> Self {
        AdaRound { config: Config { iterations: 2000, ..Config::default() } }
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
            let unit =
                Unit { inputs: vec![layer.input.clone()], outputs: vec![output.clone()], layers: vec![layer.clone()] };
            let examples = Ends::of(walk, draft, layer, &output)?;
            learn(walk, draft, &unit, &part, &examples, &self.config)?;
        }
        Ok(())
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

/// What goes into a layer on both sides and what should come out, for all samples.
struct Ends {
    samples: Vec<[Tensor; 3]>,
}

impl Ends {
    fn of(walk: &Walk<'_>, draft: &Draft, layer: &Layer, output: &str) -> Result<Self, MethodError> {
        let Some(block) = walk.block() else { return Ok(Ends { samples: vec![] }) };
        let given = block.inputs.iter().position(|name| *name == layer.input);
        let float = block.part(walk.ground().float, &[output])?;
        let inner = match given {
            Some(_) => None,
            None => {
                Some([block.part(&draft.graph, &[&layer.input])?, block.part(walk.ground().float, &[&layer.input])?])
            }
        };
        let mut runs = vec![Run { side: Side::Float, part: &float, mode: Mode::Float }];
        if let Some([quantized, float]) = &inner {
            runs.push(Run { side: Side::Quantized, part: quantized, mode: Mode::FakeQuant(&draft.grids) });
            runs.push(Run { side: Side::Float, part: float, mode: Mode::Float });
        }
        let slots: Vec<Mutex<Option<[Tensor; 3]>>> = (0..walk.samples()).map(|_| Mutex::new(None)).collect();
        walk.each(
            &runs,
            0..walk.samples(),
            walk.threads().count(),
            || (),
            |(), sample, outputs| {
                let mut tensors: Vec<Tensor> = outputs.into_iter().flatten().collect();
                if let Some(i) = given {
                    tensors.push(walk.inputs(Side::Quantized, sample)?.swap_remove(i));
                    tensors.push(walk.inputs(Side::Float, sample)?.swap_remove(i));
                }
                if let Ok([target, quantized, float]) = <[Tensor; 3]>::try_from(tensors) {
                    *slots[sample].lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                        Some([quantized, float, target]);
                }
                Ok(())
            },
        )?;
        let samples =
            slots.into_iter().filter_map(|s| s.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner));
        Ok(Ends { samples: samples.collect() })
    }
}

impl Examples for Ends {
    fn inputs(&self, side: Side, sample: usize) -> Result<Vec<Tensor>, MethodError> {
        Ok(vec![self.samples[sample][usize::from(side == Side::Float)].clone()])
    }

    fn targets(&self, sample: usize) -> Result<Vec<Tensor>, MethodError> {
        Ok(vec![self.samples[sample][2].clone()])
    }
}
