//! A compiled graph: steps over buffers that were planned ahead.

use super::{
    Mode, Tap,
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
use std::{collections::BTreeSet, sync::Arc};

/// Where a value is found during a run.
#[derive(Debug)]
enum Place {
    Input(usize),
    Constant(Arc<Tensor>),
    Slot(usize),
}

/// A graph made ready for one mode and one set of input shapes.
#[derive(Debug)]
pub struct Program {
    steps: Vec<Step>,
    places: Vec<Place>,
    facts: Vec<Fact>,
    buffers: Vec<Data>,
    scratch: Vec<f32>,
    /// Observed graph inputs: input index and name.
    observed_inputs: Vec<(usize, String)>,
    outputs: Vec<ValueId>,
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
    /// Plans steps and buffers for `graph` in `mode`; tensors named in `observed` stay visible to taps.
    ///
    /// # Errors
    /// [`GraphError::Node`] if an operator refuses its inputs or is unknown.
    pub fn compile(
        graph: &Graph,
        mode: Mode,
        shapes: &[Vec<usize>],
        observed: &BTreeSet<String>,
    ) -> Result<Self, GraphError> {
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
        let observed_inputs = graph.inputs.iter().enumerate().filter(|(_, v)| observed.contains(&v.name));
        Ok(Program {
            observed_inputs: observed_inputs.map(|(i, v)| (i, v.name.clone())).collect(),
            buffers: slots.iter().map(memory::Slot::allocate).collect(),
            scratch: vec![0.0; scratch],
            steps,
            places,
            facts,
            outputs,
        })
    }

    /// Bytes of the planned buffers, scratch included.
    pub fn buffer_bytes(&self) -> usize {
        let bytes = |data: &Data| match data {
            Data::F32(v) => v.len() * 4,
            Data::I64(v) => v.len() * 8,
            Data::I32(v) => v.len() * 4,
            Data::U8(v) => v.len(),
            Data::I8(v) => v.len(),
            Data::Bool(v) => v.len(),
            Data::Raw { bytes, .. } => bytes.len(),
        };
        self.buffers.iter().map(bytes).sum::<usize>() + self.scratch.len() * 4
    }

    /// Runs the program on inputs of the types and shapes that it was compiled for.
    pub(super) fn run(&mut self, inputs: &[Tensor], threads: &Threads, tap: &mut dyn Tap) -> Vec<Tensor> {
        for (i, name) in &self.observed_inputs {
            let fact = Fact::new(inputs[*i].dtype(), &inputs[*i].dims);
            tap.observe(Tapped { name, fact: &fact, values: slice(&inputs[*i].data, inputs[*i].len()) });
        }
        let Program { steps, places, facts, buffers, scratch, .. } = self;
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

fn view<'a>(v: ValueId, places: &'a [Place], facts: &[Fact], buffers: &'a [Data], inputs: &'a [Tensor]) -> Slice<'a> {
    let data = match &places[v] {
        Place::Input(i) => &inputs[*i].data,
        Place::Constant(tensor) => &tensor.data,
        Place::Slot(s) => &buffers[*s],
    };
    slice(data, facts[v].len())
}

pub(super) fn slice(data: &Data, len: usize) -> Slice<'_> {
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
