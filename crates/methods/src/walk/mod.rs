//! A walk through the network, block by block, the float network and the quantized one side by side.
//!
//! At each block a method has, for every sample, the block's inputs as the float network computes them (`x`), the same as the
//! quantized network computes them with all blocks before already in their final form (`x̂`), and the float outputs to aim at.
//! Nothing is computed twice from the images on: what leads on from one block is kept, in memory up to a limit, else on disk.

mod blocks;
mod store;

use crate::{Draft, Ground, Layer, MethodError, Progress, Samples};
pub use blocks::{Block, blocks};
use fewbits_graph::{
    DType, Graph, Tensor, ValueInfo,
    exec::{Executor, Mode},
};
use fewbits_kernels::Threads;
use std::{ops::Range, sync::Arc, time::Instant};
pub(crate) use store::Store;

/// Lanes among which samples are dealt where results are added up. Results depend on it, and not on the number of threads.
pub const LANES: usize = 4;

/// Multiply-adds that take as long as to read and write an element.
const ELEMENT: f64 = 32.0;

/// Which of the two networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The float network.
    Float,
    /// The quantized network as it is up to this block.
    Quantized,
}

/// A computation from the inputs of a block.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// Whose inputs.
    pub side: Side,
    /// A [`Block::part`].
    pub part: &'a Graph,
    /// How it is computed.
    pub mode: Mode<'a>,
}

/// A walk.
#[derive(Debug)]
pub struct Walk<'a> {
    ground: Ground<'a>,
    threads: &'a Threads,
    blocks: Vec<Block>,
    at: usize,
    samples: usize,
    memory: usize,
    float: Store,
    quantized: Store,
}

impl<'a> Walk<'a> {
    /// Stands before the first block. `memory` bytes at most are kept in memory for samples: a third for each side, and a third for
    /// what a method keeps of a block.
    ///
    /// # Errors
    /// [`MethodError::Sample`], [`MethodError::Spill`], [`MethodError::Graph`].
    pub fn new(
        ground: Ground<'a>,
        samples: &dyn Samples,
        memory: usize,
        threads: &'a Threads,
    ) -> Result<Self, MethodError> {
        let count = samples.count();
        let (mut float, quantized) = (Store::new(count, memory / 3), Store::new(count, memory / 3));
        ground.float.inputs.iter().for_each(|info| float.open(&info.name));
        let read = |i: usize| -> Result<(), MethodError> {
            let inputs = samples.inputs(i).map_err(|source| MethodError::Sample { sample: i, source })?;
            let named = ground.float.inputs.iter().zip(inputs);
            named.into_iter().try_for_each(|(info, tensor)| float.put(&info.name, i, tensor))
        };
        threads.map(count, read).into_iter().collect::<Result<(), _>>()?;
        let blocks = blocks(&ground);
        let mut walk = Walk { ground, threads, blocks, at: 0, samples: count, memory, float, quantized };
        walk.enter()?;
        Ok(walk)
    }

    /// The block that the walk stands before.
    pub fn block(&self) -> Option<&Block> {
        self.blocks.get(self.at)
    }

    /// Its number, and how many there are.
    pub fn position(&self) -> (usize, usize) {
        (self.at, self.blocks.len())
    }

    /// What share of the work from here on the next block is, from 0 to 1: multiply-adds, and elements, which cost as much as [`ELEMENT`].
    pub(crate) fn share(&self) -> f64 {
        let work = |block: &Block| block.layers.iter().map(|layer| self.work(layer)).sum::<f64>();
        let left: f64 = self.blocks[self.at..].iter().map(work).sum();
        self.block().map_or(1.0, |block| work(block) / left.max(1.0))
    }

    fn work(&self, layer: &Layer) -> f64 {
        let node = &self.ground.float.nodes[layer.node];
        let facts = &self.ground.facts;
        let ins: Vec<_> = node.inputs.iter().map(|name| facts.get(name)).collect();
        let outs: Vec<_> = node.outputs.iter().filter_map(|name| facts.get(name).cloned()).collect();
        if outs.is_empty() || ins.iter().flatten().count() < 2 {
            return 1.0;
        }
        node.op.def().macs(&ins, &outs) as f64 + ELEMENT * outs[0].len() as f64
    }

    /// How many samples there are (runs, if the network's batch size is fixed).
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// A place for tensors of a block by `count` numbers, in memory as far as the walk's limit goes.
    pub(crate) fn store(&self, count: usize) -> Store {
        Store::new(count, self.memory / 3)
    }

    /// The network that the walk is through.
    pub fn ground(&self) -> Ground<'a> {
        self.ground
    }

    /// Worker threads.
    pub fn threads(&self) -> &'a Threads {
        self.threads
    }

    /// Inputs of the block for a sample, in the order of [`Block::inputs`].
    ///
    /// # Errors
    /// [`MethodError::Spill`].
    pub fn inputs(&self, side: Side, sample: usize) -> Result<Vec<Arc<Tensor>>, MethodError> {
        let Some(block) = self.block() else { return Ok(vec![]) };
        let get = |name: &String| match side {
            Side::Quantized if self.quantized.contains(name) => self.quantized.get(name, sample),
            // The images are the same on both sides.
            _ => self.float.get(name, sample),
        };
        block.inputs.iter().map(get).collect()
    }

    /// Float outputs of the block for a sample, in the order of [`Block::outputs`].
    ///
    /// # Errors
    /// [`MethodError::Spill`].
    pub fn targets(&self, sample: usize) -> Result<Vec<Arc<Tensor>>, MethodError> {
        let Some(block) = self.block() else { return Ok(vec![]) };
        block.outputs.iter().map(|name| self.float.get(name, sample)).collect()
    }

    /// Whether the network puts out `name`, float numbers.
    pub(crate) fn is_float_output(&self, name: &str) -> bool {
        let is_float = self.ground.facts.get(name).is_some_and(|fact| fact.dtype == DType::F32);
        is_float && self.ground.float.is_output(name)
    }

    /// The float network behind the block: from what leads on from it, by name, to the graph outputs of float numbers made there.
    ///
    /// # Errors
    /// [`MethodError::Graph`].
    pub(crate) fn rest(&self) -> Result<Graph, MethodError> {
        let float = self.ground.float;
        let info = |name: &String| ValueInfo { name: name.clone(), dtype: DType::F32, dims: None };
        let inputs: Vec<ValueInfo> = self.block().iter().flat_map(|block| &block.live).map(info).collect();
        let behind = self.blocks.iter().skip(self.at + 1).flat_map(|block| &block.outputs);
        let outputs: Vec<&str> = behind.filter(|name| self.is_float_output(name)).map(String::as_str).collect();
        let mut rest = float.slice(&inputs, &outputs)?;
        rest.inputs = inputs;
        Ok(rest)
    }

    /// The inputs of [`Walk::rest`] for a sample.
    ///
    /// # Errors
    /// [`MethodError::Spill`].
    pub(crate) fn leading_on(&self, sample: usize) -> Result<Vec<Arc<Tensor>>, MethodError> {
        let names = self.block().into_iter().flat_map(|block| &block.live);
        names.map(|name| self.float.get(name, sample)).collect()
    }

    /// Computes `runs` for each of `samples` and calls `look` with the outputs of each. Sample `i` is looked at by lane `i % lanes`, each
    /// lane in order with a state of its own; the states come back in order.
    ///
    /// # Errors
    /// [`MethodError::Graph`], [`MethodError::Spill`].
    pub fn each<S: Send>(
        &self,
        runs: &[Run<'_>],
        samples: Range<usize>,
        lanes: usize,
        start: impl Fn() -> S + Sync,
        look: impl Fn(&mut S, usize, Vec<Vec<Tensor>>) -> Result<(), MethodError> + Sync,
    ) -> Result<Vec<S>, MethodError> {
        let of_lane = |lane: usize| {
            let one = Threads::new(1);
            let mut executors: Vec<Executor> = runs.iter().map(|r| Executor::new(r.part, r.mode, &one)).collect();
            let mut state = start();
            for sample in samples.clone().skip(lane).step_by(lanes) {
                let compute = |(run, executor): (&Run<'_>, &mut Executor<'_>)| -> Result<Vec<Tensor>, MethodError> {
                    let inputs = self.inputs(run.side, sample)?.into_iter().map(Arc::unwrap_or_clone);
                    Ok(executor.run(&inputs.collect::<Vec<_>>())?)
                };
                let outputs = runs.iter().zip(&mut executors).map(compute).collect::<Result<_, _>>()?;
                look(&mut state, sample, outputs)?;
            }
            Ok(state)
        };
        self.threads.map(lanes, of_lane).into_iter().collect()
    }

    /// Goes on to the next block, with this one as `draft` has it.
    ///
    /// # Errors
    /// [`MethodError::Graph`], [`MethodError::Spill`].
    pub fn advance(&mut self, draft: &Draft) -> Result<(), MethodError> {
        let Some(block) = self.block().cloned() else { return Ok(()) };
        if self.at + 1 < self.blocks.len() {
            block.outputs.iter().for_each(|name| self.quantized.open(name));
            self.fill(&block, Side::Quantized, &draft.graph, Mode::FakeQuant(&draft.grids))?;
        }
        self.quantized.retain(|name| block.live.contains(name));
        self.float.retain(|name| block.live.contains(name));
        self.at += 1;
        self.enter()
    }

    /// Computes what the float network makes of the block.
    fn enter(&mut self) -> Result<(), MethodError> {
        let Some(block) = self.block().cloned() else { return Ok(()) };
        block.outputs.iter().for_each(|name| self.float.open(name));
        self.fill(&block, Side::Float, self.ground.float, Mode::Float)
    }

    /// Computes and keeps the outputs of `block` on one side.
    fn fill(&self, block: &Block, side: Side, graph: &Graph, mode: Mode<'_>) -> Result<(), MethodError> {
        let names: Vec<&str> = block.outputs.iter().map(String::as_str).collect();
        let part = block.part(graph, &names)?;
        let store = if side == Side::Float { &self.float } else { &self.quantized };
        // Nothing is added up here, so every thread may be a lane.
        let run = Run { side, part: &part, mode };
        self.each(
            &[run],
            0..self.samples,
            self.threads.count(),
            || (),
            |(), sample, outputs| {
                let mut named = names.iter().zip(outputs.into_iter().flatten());
                named.try_for_each(|(name, tensor)| store.put(name, sample, tensor))
            },
        )?;
        Ok(())
    }
}

/// A method that works on one block after the other.
pub trait BlockMethod {
    /// What it is called.
    fn name(&self) -> &'static str;

    /// Improves the layers of [`Walk::block`] in `draft`.
    ///
    /// # Errors
    /// As the method says.
    fn improve(&self, walk: &Walk<'_>, draft: &mut Draft) -> Result<(), MethodError>;

    /// What it decided so far, a line each.
    fn findings(&self) -> Vec<String> {
        vec![]
    }
}

/// Takes `draft` through the rest of the walk, each block by `methods` one after the other, until `deadline`; blocks behind it stay as they
/// are. `done` is told the draft after each block.
///
/// # Errors
/// Those of the methods, of the walk, and of `done`.
pub fn walk_through<E: From<MethodError>>(
    walk: &mut Walk<'_>,
    draft: &mut Draft,
    methods: &[&dyn BlockMethod],
    deadline: Option<Instant>,
    progress: &dyn Progress,
    mut done: impl FnMut(usize, &Draft) -> Result<(), E>,
) -> Result<(), E> {
    let (at, blocks) = walk.position();
    let names: Vec<&str> = methods.iter().map(|m| m.name()).collect();
    progress.begin(&names.join(", "), blocks - at);
    while walk.block().is_some() && deadline.is_none_or(|deadline| Instant::now() < deadline) {
        methods.iter().try_for_each(|method| method.improve(walk, draft))?;
        walk.advance(draft)?;
        done(walk.position().0, draft)?;
        progress.step();
    }
    progress.end();
    Ok(())
}

#[cfg(test)]
mod tests;
