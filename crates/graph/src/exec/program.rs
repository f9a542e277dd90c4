//! A compiled graph: steps over buffers that were planned ahead.

use super::{
    Mode, Tap, images,
    lower::{self, Home, Lowered, Step, ValueId},
    memory::{self, Lifetime},
};
use crate::{
    error::GraphError,
    graph::Graph,
    op::{Fact, Io, Slice, SliceMut},
    ops::codes,
    tensor::{Data, Tensor},
};
use fewbits_kernels::{
    Threads,
    int::{self, quantize},
};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

/// Where a value is found during a run.
#[derive(Debug)]
enum Place {
    Input(usize),
    Constant(Arc<Tensor>),
    Slot(usize),
}

/// A graph made ready for one mode and one set of input shapes.
///
/// Where images do not depend on each other, a batch is computed in parts: side by side on the threads, each with memory of its
/// own.
#[derive(Debug)]
pub struct Program {
    plan: Plan,
    /// How many parts the inputs are cut into.
    parts: usize,
    /// The first serves runs on all threads, and all of them runs of several parts, one for each thread.
    memory: Vec<Mutex<Memory>>,
}

/// Steps and where they find their values.
#[derive(Debug)]
struct Plan {
    steps: Vec<Step>,
    places: Vec<Place>,
    facts: Vec<Fact>,
    slots: Vec<memory::Slot>,
    scratch: usize,
    /// Observed graph inputs.
    observed_inputs: Vec<(ValueId, String)>,
    outputs: Vec<ValueId>,
}

/// What a run writes to.
#[derive(Debug)]
struct Memory {
    buffers: Vec<Data>,
    scratch: Vec<f32>,
}

/// An observed tensor.
#[derive(Clone, Copy, Debug)]
pub struct Tapped<'a> {
    /// Tensor name.
    pub name: &'a str,
    /// Shape, memory order, and in integer mode the grid of the codes.
    pub fact: &'a Fact,
    /// The elements in memory order; `u8` codes if `fact.grid` is set.
    pub values: Slice<'a>,
}

impl Tapped<'_> {
    /// The real values in memory order; empty for tensors that are neither floats nor codes.
    pub fn to_f32(&self) -> Vec<f32> {
        match (self.values, self.fact.grid.as_ref().and_then(codes::stored)) {
            (Slice::F32(values), _) => values.to_vec(),
            (Slice::U8(q), Some(grid)) => {
                let mut real = vec![0.0; q.len()];
                quantize::dequantize(q, grid.scale, grid.zero, &mut real);
                real
            }
            _ => Vec::new(),
        }
    }
}

impl Program {
    /// Plans steps and buffers for `graph` in `mode`, to be run on about `threads` threads; tensors named in `observed` stay
    /// visible to taps.
    ///
    /// # Errors
    /// [`GraphError::Node`] if an operator refuses its inputs or is unknown.
    pub fn compile(
        graph: &Graph,
        mode: Mode,
        shapes: &[Vec<usize>],
        observed: &BTreeSet<String>,
        threads: usize,
    ) -> Result<Self, GraphError> {
        // Taps see whole tensors.
        let split = if observed.is_empty() { images::split(graph, shapes, threads) } else { None };
        let (plan, parts) = match split {
            Some((part, parts)) => (Plan::new(graph, mode, &part, observed)?, parts),
            None => (Plan::new(graph, mode, shapes, observed)?, 1),
        };
        Ok(Program { memory: vec![Mutex::new(plan.allocate())], plan, parts })
    }

    /// Bytes of the planned buffers, scratch included.
    pub fn buffer_bytes(&self) -> usize {
        self.memory.len() * self.plan.bytes()
    }

    /// Runs the program on inputs of the types and shapes that it was compiled for.
    pub(super) fn run(&mut self, inputs: &[Tensor], threads: &Threads, tap: &mut dyn Tap) -> Vec<Tensor> {
        let workers = threads.count();
        // Part by part on all threads where parts side by side would leave threads idle for long.
        let even = self.parts.is_multiple_of(workers) || self.parts >= images::PARTS_PER_THREAD * workers;
        let side_by_side = workers > 1 && self.parts > 1 && even;
        while side_by_side && self.memory.len() < workers {
            self.memory.push(Mutex::new(self.plan.allocate()));
        }
        let part = |i: usize| -> Vec<Slice> { inputs.iter().map(|input| part_of(input, i, self.parts)).collect() };
        let memory = |worker: usize| self.memory[worker].lock().unwrap_or_else(PoisonError::into_inner);
        if !side_by_side {
            let run = |i| self.plan.run(&mut memory(0), &part(i), threads, tap);
            return join((0..self.parts).map(run).collect());
        }
        let one = Threads::new(1);
        let outputs: Vec<Mutex<Vec<Tensor>>> = (0..self.parts).map(|_| Mutex::default()).collect();
        threads.run_with_worker(self.parts, |worker, i| {
            let found = self.plan.run(&mut memory(worker), &part(i), &one, &mut |_: Tapped<'_>| {});
            *outputs[i].lock().unwrap_or_else(PoisonError::into_inner) = found;
        });
        join(outputs.into_iter().map(|o| o.into_inner().unwrap_or_else(PoisonError::into_inner)).collect())
    }
}

impl Plan {
    fn new(graph: &Graph, mode: Mode, shapes: &[Vec<usize>], observed: &BTreeSet<String>) -> Result<Self, GraphError> {
        let Lowered { steps, values, outputs } = lower::lower(graph, mode, shapes, observed)?;
        let end = steps.len();
        let mut last_use = vec![0; values.len()];
        for (i, step) in steps.iter().enumerate() {
            for &value in step.ins.iter().flatten().chain(&step.outs) {
                last_use[value] = i;
            }
        }
        for &value in &outputs {
            last_use[value] = end;
        }
        let made: Vec<(ValueId, usize)> =
            steps.iter().enumerate().flat_map(|(i, step)| step.outs.iter().map(move |&v| (v, i))).collect();
        let lifetimes: Vec<Lifetime> = made
            .iter()
            .map(|&(v, first)| {
                let fact = &values[v].fact;
                Lifetime { dtype: fact.dtype, len: fact.len(), first, last: last_use[v] }
            })
            .collect();
        let (slots, homes) = memory::assign(&lifetimes);
        let (homes_of_values, facts): (Vec<Home>, Vec<Fact>) = values.into_iter().map(|v| (v.home, v.fact)).unzip();
        let mut places: Vec<Place> = homes_of_values
            .into_iter()
            .map(|home| match home {
                Home::Input(i) => Place::Input(i),
                Home::Constant(tensor) => Place::Constant(tensor),
                Home::Step => Place::Slot(usize::MAX),
            })
            .collect();
        for (&(v, _), &home) in made.iter().zip(&homes) {
            places[v] = Place::Slot(home);
        }
        let scratch = steps.iter().map(|s| s.kernel.scratch).max().unwrap_or(0);
        let observed_input = |(v, place): (ValueId, &Place)| match place {
            Place::Input(i) => Some((v, graph.inputs[*i].name.clone())).filter(|(_, name)| observed.contains(name)),
            _ => None,
        };
        let observed_inputs = places.iter().enumerate().filter_map(observed_input).collect();
        Ok(Plan { observed_inputs, slots, scratch, steps, places, facts, outputs })
    }

    fn allocate(&self) -> Memory {
        Memory { buffers: self.slots.iter().map(memory::Slot::allocate).collect(), scratch: vec![0.0; self.scratch] }
    }

    /// Bytes of what [`Plan::allocate`] makes.
    fn bytes(&self) -> usize {
        self.slots.iter().map(memory::Slot::bytes).sum::<usize>() + self.scratch * size_of::<f32>()
    }

    /// The outputs for `inputs`.
    fn run(&self, memory: &mut Memory, inputs: &[Slice], threads: &Threads, tap: &mut dyn Tap) -> Vec<Tensor> {
        let Plan { steps, places, facts, .. } = self;
        let Memory { buffers, scratch } = memory;
        for (v, name) in &self.observed_inputs {
            tap.observe(Tapped { name, fact: &facts[*v], values: view(*v, places, facts, buffers, inputs) });
        }
        for step in steps.iter() {
            let slot = |v: &ValueId| match places[*v] {
                Place::Slot(s) => s,
                _ => unreachable!("a step writes to a slot"),
            };
            let mut written: Vec<Data> =
                step.outs.iter().map(|v| std::mem::replace(&mut buffers[slot(v)], Data::U8(Vec::new()))).collect();
            {
                let read = |v: &Option<ValueId>| v.map_or(Slice::Absent, |v| view(v, places, facts, buffers, inputs));
                let ins: Vec<Slice> = step.ins.iter().map(read).collect();
                let mut outs: Vec<SliceMut> =
                    step.outs.iter().zip(&mut written).map(|(&v, data)| slice_mut(data, facts[v].len())).collect();
                step.kernel.run(&mut Io { threads, ins: &ins, outs: &mut outs, scratch });
            }
            for (i, (v, mut data)) in step.outs.iter().zip(written).enumerate() {
                if let (Data::F32(values), Some(Some(grid))) = (&mut data, step.fake.get(i)) {
                    fake_quantize(&mut values[..facts[*v].len()], grid, threads);
                }
                buffers[slot(v)] = data;
            }
            for (name, v) in &step.taps {
                tap.observe(Tapped { name, fact: &facts[*v], values: view(*v, places, facts, buffers, inputs) });
            }
        }
        let read = |&v: &ValueId| owned(&facts[v], view(v, places, facts, buffers, inputs));
        self.outputs.iter().map(read).collect()
    }
}

fn fake_quantize(values: &mut [f32], grid: &int::GridParams, threads: &Threads) {
    const CHUNK: usize = 1 << 16;
    let chunks: Vec<_> = values.chunks_mut(CHUNK).map(std::sync::Mutex::new).collect();
    threads.run(chunks.len(), |i| {
        if let Ok(mut chunk) = chunks[i].lock() {
            quantize::fake_quantize_in_place(&mut chunk, grid);
        }
    });
}

fn view<'a>(v: ValueId, places: &'a [Place], facts: &[Fact], buffers: &'a [Data], inputs: &[Slice<'a>]) -> Slice<'a> {
    match &places[v] {
        Place::Input(i) => inputs[*i],
        Place::Constant(tensor) => slice(&tensor.data, facts[v].len()),
        Place::Slot(s) => slice(&buffers[*s], facts[v].len()),
    }
}

/// Part `i` of `parts` equal parts of a tensor, along its first axis.
fn part_of(tensor: &Tensor, i: usize, parts: usize) -> Slice<'_> {
    let len = tensor.len() / parts;
    let range = i * len..(i + 1) * len;
    match &tensor.data {
        Data::F32(v) => Slice::F32(&v[range]),
        Data::I64(v) => Slice::I64(&v[range]),
        Data::I32(v) => Slice::I32(&v[range]),
        Data::U8(v) => Slice::U8(&v[range]),
        Data::I8(v) => Slice::I8(&v[range]),
        Data::Bool(v) => Slice::Bool(&v[range]),
        Data::Raw { .. } => Slice::Absent,
    }
}

/// The outputs of all parts, one after the other along the first axis.
fn join(mut parts: Vec<Vec<Tensor>>) -> Vec<Tensor> {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    let count = parts.len();
    let mut joined = parts.remove(0);
    for (i, whole) in joined.iter_mut().enumerate() {
        whole.dims[0] *= count;
        for part in &mut parts {
            match (&mut whole.data, &part[i].data) {
                (Data::F32(to), Data::F32(from)) => to.extend_from_slice(from),
                (Data::I64(to), Data::I64(from)) => to.extend_from_slice(from),
                (Data::I32(to), Data::I32(from)) => to.extend_from_slice(from),
                (Data::U8(to), Data::U8(from)) => to.extend_from_slice(from),
                (Data::I8(to), Data::I8(from)) => to.extend_from_slice(from),
                (Data::Bool(to), Data::Bool(from)) => to.extend_from_slice(from),
                _ => {}
            }
        }
    }
    joined
}

pub(crate) fn slice(data: &Data, len: usize) -> Slice<'_> {
    match data {
        Data::F32(v) => Slice::F32(&v[..len]),
        Data::I64(v) => Slice::I64(&v[..len]),
        Data::I32(v) => Slice::I32(&v[..len]),
        Data::U8(v) => Slice::U8(&v[..len]),
        Data::I8(v) => Slice::I8(&v[..len]),
        Data::Bool(v) => Slice::Bool(&v[..len]),
        Data::Raw { .. } => Slice::Absent,
    }
}

pub(super) fn slice_mut(data: &mut Data, len: usize) -> SliceMut<'_> {
    match data {
        Data::F32(v) => SliceMut::F32(&mut v[..len]),
        Data::I64(v) => SliceMut::I64(&mut v[..len]),
        Data::I32(v) => SliceMut::I32(&mut v[..len]),
        Data::U8(v) => SliceMut::U8(&mut v[..len]),
        Data::I8(v) => SliceMut::I8(&mut v[..len]),
        Data::Bool(v) => SliceMut::Bool(&mut v[..len]),
        Data::Raw { bytes, .. } => SliceMut::U8(bytes),
    }
}

fn owned(fact: &Fact, values: Slice) -> Tensor {
    let data = match values {
        Slice::F32(v) => Data::F32(v.to_vec()),
        Slice::I64(v) => Data::I64(v.to_vec()),
        Slice::I32(v) => Data::I32(v.to_vec()),
        Slice::U8(v) => Data::U8(v.to_vec()),
        Slice::I8(v) => Data::I8(v.to_vec()),
        Slice::Bool(v) => Data::Bool(v.to_vec()),
        Slice::Absent => Data::U8(Vec::new()),
    };
    Tensor { dims: fact.dims.clone(), data }
}
