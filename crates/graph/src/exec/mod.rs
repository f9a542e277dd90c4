//! The executor: makes a [`Program`] of a graph, the grids laid over it and concrete input shapes, and runs it.
//!
//! One graph runs in three [`Mode`]s. `group` finds what one kernel computes together, `lower` turns nodes into steps and
//! inserts conversions (memory order, codes ↔ floats), `memory` assigns buffers once, `program` runs the steps and feeds taps.

pub(crate) mod constant;
mod group;
pub(crate) mod images;
mod lower;
pub(crate) mod memory;
mod program;

use crate::{
    error::GraphError,
    graph::{Dim, Graph},
    grid::Grids,
    op::Fact,
    tensor::Tensor,
};
pub use constant::rounded_constant;
use fewbits_kernels::Threads;
pub(crate) use program::slice;
pub use program::{Program, Tapped};
use std::collections::{BTreeMap, BTreeSet};

/// How tensors with a grid are computed.
#[derive(Clone, Copy, Debug)]
pub enum Mode<'a> {
    /// Grids are ignored.
    Float,
    /// Float arithmetic on values rounded to their grids.
    FakeQuant(&'a Grids),
    /// Integer arithmetic on codes wherever ONNX Runtime computes in integers, float elsewhere.
    Integer(&'a Grids),
}

impl<'a> Mode<'a> {
    /// The grids that apply.
    pub fn grids(self) -> Option<&'a Grids> {
        match self {
            Mode::Float => None,
            Mode::FakeQuant(grids) | Mode::Integer(grids) => Some(grids),
        }
    }
}

/// Receives tensors while a program runs.
pub trait Tap {
    /// Called once per run for each observed tensor, as soon as it is computed.
    fn observe(&mut self, tensor: Tapped<'_>);
}

impl<F: FnMut(Tapped<'_>)> Tap for F {
    fn observe(&mut self, tensor: Tapped<'_>) {
        self(tensor);
    }
}

/// Runs one graph in one mode for any input shapes; keeps the programs made for the last two sets of shapes.
#[derive(Debug)]
pub struct Executor<'a> {
    graph: &'a Graph,
    mode: Mode<'a>,
    threads: &'a Threads,
    observed: BTreeSet<String>,
    programs: Vec<(Vec<Vec<usize>>, Program)>,
}

impl<'a> Executor<'a> {
    /// An executor that has compiled nothing yet.
    pub fn new(graph: &'a Graph, mode: Mode<'a>, threads: &'a Threads) -> Self {
        Executor { graph, mode, threads, observed: BTreeSet::new(), programs: Vec::new() }
    }

    /// Shows the tensors `names` to the tap of [`Executor::run_tapped`]; they are then not fused away.
    pub fn observing(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.observed.extend(names);
        self
    }

    /// Bytes of activations and scratch memory of the program that ran last.
    pub fn buffer_bytes(&self) -> usize {
        self.programs.first().map_or(0, |(_, program)| program.buffer_bytes())
    }

    /// The graph's outputs for `inputs`, both in the graph's order.
    ///
    /// # Errors
    /// [`GraphError::Input`] if an input does not fit its declaration, [`GraphError::Node`] if an operator refuses.
    pub fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, GraphError> {
        self.run_tapped(inputs, &mut |_: Tapped<'_>| {})
    }

    /// As [`Executor::run`], and shows the observed tensors to `tap`.
    ///
    /// # Errors
    /// As [`Executor::run`].
    pub fn run_tapped(&mut self, inputs: &[Tensor], tap: &mut dyn Tap) -> Result<Vec<Tensor>, GraphError> {
        check_inputs(self.graph, inputs)?;
        let shapes: Vec<Vec<usize>> = inputs.iter().map(|t| t.dims.clone()).collect();
        let position = match self.programs.iter().position(|(key, _)| *key == shapes) {
            Some(position) => position,
            None => {
                let program = Program::compile(self.graph, self.mode, &shapes, &self.observed, self.threads.count())?;
                self.programs.truncate(1);
                self.programs.insert(0, (shapes, program));
                0
            }
        };
        Ok(self.programs[position].1.run(inputs, self.threads, tap))
    }
}

/// Types and shapes of every tensor for the given input shapes, in float mode.
///
/// # Errors
/// As [`Executor::run`].
pub fn infer(graph: &Graph, shapes: &[Vec<usize>]) -> Result<BTreeMap<String, Fact>, GraphError> {
    lower::infer(graph, shapes)
}

fn check_inputs(graph: &Graph, inputs: &[Tensor]) -> Result<(), GraphError> {
    let describe = |dtype, dims: String| format!("{dtype} [{dims}]");
    let list = |dims: &[usize]| dims.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    for (i, info) in graph.inputs.iter().enumerate() {
        let declared = info.dims.as_ref().map(|d| d.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
        let expected = describe(info.dtype, declared.unwrap_or_else(|| "any shape".into()));
        let error = |found: String| GraphError::Input { name: info.name.clone(), expected: expected.clone(), found };
        let Some(given) = inputs.get(i) else { return Err(error("nothing".into())) };
        let fits = info.dims.as_ref().is_none_or(|dims| {
            let same = |(d, &n): (&Dim, &usize)| matches!(d, Dim::Symbol(_)) || *d == Dim::Fixed(n);
            dims.len() == given.dims.len() && dims.iter().zip(&given.dims).all(same)
        });
        if !fits || given.dtype() != info.dtype {
            return Err(error(describe(given.dtype(), list(&given.dims))));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
