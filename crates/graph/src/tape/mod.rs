//! Training steps over a static graph: forward in topological order, then each operator's vector-Jacobian product in reverse.
//!
//! What enters: a graph, quantizers laid over its tensors by name, and a batch's shape. What leaves: outputs, and the gradients
//! of the [`Leaves`]. It knows no loss and no optimizer.
//!
//! `record` turns nodes into items on values, forwards; `reverse` adds the items of the backward pass; `schedule` cuts the items into
//! segments and plans memory; `run` runs segments. A segment is a run of items between two sums over the whole batch. It is
//! computed a few images at a time, so that what one item writes is still in the cache when the next one reads it. Images are
//! dealt to a fixed number of lanes; sums over images are made lane by lane and joined in a fixed order, so that results do not
//! depend on the number of threads.

mod item;
mod laid;
mod leaves;
mod normalization;
mod quantizer;
mod record;
mod reverse;
mod run;
mod schedule;

use crate::{error::GraphError, graph::Graph};
use fewbits_kernels::Threads;
pub use leaves::{Kind, Leaf, Leaves, quantizer_leaf};
pub use quantizer::Quantizer;
use run::Memory;
use schedule::Schedule;
use std::{collections::BTreeMap, sync::Arc};

/// A quantizer laid over a tensor: an activation, or the weight of a layer.
#[derive(Clone, Debug)]
pub struct Laid {
    /// The function.
    pub quantizer: Arc<dyn Quantizer>,
    /// How many groups of elements have parameters of their own: 1, or the channels of a weight.
    pub groups: usize,
    /// The axis of the channels.
    pub axis: usize,
}

/// Where BatchNormalization takes mean and variance from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Statistics {
    /// From the batch; the running averages follow.
    #[default]
    Batch,
    /// From the running averages, which stay.
    Running,
}

/// What a step computes.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Quantizers by tensor name.
    pub quantizers: BTreeMap<String, Laid>,
    /// Where normalizations take their statistics from.
    pub statistics: Statistics,
    /// Quantize weights as they are once the BatchNormalization behind them is folded, `w · γ / σ` with the running `σ`; the
    /// normalization behind the layer undoes that factor. Statistics of a batch are those of the layer with float weights, found in a first
    /// pass, as rounding by one coarse scale would amplify its own noise (LSQ-BN; Krishnamoorthi 2018, corrected folding). Gradients go
    /// through them by way of the rounded layer.
    pub fold: bool,
    /// With [`Config::fold`] and statistics of the batch: fold with those too (Jacob et al. 2018, section 3.2).
    pub fold_batch: bool,
    /// Stop before each quantizer of an activation, for [`Tape::forward_initializing`].
    pub stops: bool,
    /// Compute gradients of the graph's inputs, for [`Tape::input_gradient`], and none of the leaves.
    pub input_gradients: bool,
    /// Leave the backward pass out.
    pub forward_only: bool,
    /// Keep the results of one layer in three, or where little is made of much, and compute the others again in the backward pass
    /// (Chen et al. 2016): less memory, more time, the same numbers.
    pub recompute: bool,
}

/// Sets the numbers of a tensor's quantizer from the tensor's elements: name, elements in memory order, numbers.
pub type Initialize<'a> = dyn FnMut(&str, &[f32], &mut [f32]) + 'a;

/// A training step made ready for one batch shape.
#[derive(Debug)]
pub struct Tape {
    schedule: Schedule,
    memory: Memory,
}

impl Tape {
    /// Plans a step for `graph` on inputs of `shapes`, the first axis being the images of the batch.
    ///
    /// # Errors
    /// [`GraphError::Node`] if an operator refuses its inputs, is unknown, or has no derivative where one is needed.
    pub fn compile(graph: &Graph, leaves: &Leaves, shapes: &[Vec<usize>], config: &Config) -> Result<Self, GraphError> {
        let mut record = record::record(graph, leaves, shapes, config)?;
        if !config.forward_only {
            reverse::reverse(graph, &mut record, config)?;
        }
        let schedule = Schedule::new(graph, record)?;
        let memory = Memory::new(&schedule);
        Ok(Tape { schedule, memory })
    }

    /// Computes the outputs for `inputs`, each in plain order. Running statistics in `leaves` follow the batch.
    pub fn forward(&mut self, leaves: &mut Leaves, inputs: &[&[f32]], threads: &Threads) {
        self.forward_initializing(leaves, inputs, threads, &mut |_, _, _| {});
    }

    /// As [`Tape::forward`]; if planned with [`Config::stops`], `initialize` is called before each quantizer of an activation
    /// runs, with the tensor's name, its elements (in memory order) and the quantizer's parameters to set.
    pub fn forward_initializing(
        &mut self,
        leaves: &mut Leaves,
        inputs: &[&[f32]],
        threads: &Threads,
        initialize: &mut Initialize<'_>,
    ) {
        self.memory.forward(&self.schedule, leaves, inputs, threads, initialize);
    }

    /// Output `i`, in plain order.
    pub fn output(&self, i: usize) -> &[f32] {
        self.memory.value(&self.schedule, self.schedule.outputs[i])
    }

    /// The gradients of all leaves, in the order of [`Leaves::values`], from those of the outputs (plain order); to be called
    /// after [`Tape::forward`] with the same inputs. With [`Config::input_gradients`] those of the leaves are zeros.
    pub fn backward(
        &mut self,
        leaves: &Leaves,
        inputs: &[&[f32]],
        outputs: &[&[f32]],
        gradients: &mut [f32],
        threads: &Threads,
    ) {
        self.memory.backward(&self.schedule, leaves, inputs, outputs, gradients, threads);
    }

    /// The gradient of input `i`, in plain order, after [`Tape::backward`]; empty if not planned with [`Config::input_gradients`] or if
    /// no output depends on the input.
    pub fn input_gradient(&self, i: usize) -> &[f32] {
        match self.schedule.input_gradients.get(i) {
            Some(&Some(v)) => self.memory.value(&self.schedule, v),
            _ => &[],
        }
    }

    /// Smallest and largest element that each range-following quantizer saw in the last batch.
    pub fn ranges(&self) -> impl Iterator<Item = (&str, [f32; 2])> {
        self.schedule.ranges.iter().map(|(name, value)| {
            let seen = self.memory.value(&self.schedule, *value);
            (name.as_str(), [-seen[0], seen[1]])
        })
    }

    /// Bytes of the planned buffers.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }
}
