//! The forms of a tensor, and the steps that make one of another: memory order, codes or real numbers, leading ones.

use super::{Home, Lowering, Step, Value, ValueId};
use crate::{
    exec::{Mode, constant},
    grid::{Grids, QuantParams},
    op::{Fact, Kernel, Layout, Slice},
    tensor::{DType, Tensor},
};
use fewbits_kernels::{
    Threads,
    int::{self, quantize},
    movement::Transpose,
};
use std::sync::{Arc, Mutex, PoisonError};

impl Lowering<'_> {
    /// The value of tensor `name` in memory order `layout`, as codes or as real numbers, with leading ones up to rank `rank`.
    pub(super) fn need(&mut self, name: &str, layout: Layout, codes: bool, rank: Option<usize>) -> ValueId {
        let fact = &self.facts[name];
        let rank = rank.unwrap_or(0).max(fact.dims.len());
        // One element has the same form in every order.
        let layout = if rank < 3 || fact.len() == 1 { Layout::Plain } else { layout };
        if !self.forms.contains_key(name) {
            let value = fact.value.clone().expect("a tensor without a form is a constant");
            self.add_constant(name, value);
        }
        let matches = |v: &ValueId, codes: Option<bool>, layout: Option<Layout>| {
            let fact = &self.values[*v].fact;
            fact.dims.len() == rank
                && codes.is_none_or(|c| c == fact.grid.is_some())
                && layout.is_none_or(|l| l == fact.layout)
        };
        let forms = &self.forms[name];
        let exact = forms.iter().find(|v| matches(v, Some(codes), Some(layout)));
        if let Some(&id) = exact {
            return id;
        }
        // Quantize before reordering and reorder before dequantizing: bytes are cheaper to move.
        let same_kind = forms.iter().copied().find(|v| matches(v, Some(codes), None));
        let same_order = forms.iter().copied().find(|v| matches(v, None, Some(layout)));
        let id = match (same_kind, same_order) {
            (Some(id), _) => self.reorder(id, layout),
            (None, Some(id)) => self.recode(name, id, codes),
            (None, None) => {
                if let Some(id) = forms.iter().copied().find(|v| matches(v, None, None)) {
                    let first = if codes { self.recode(name, id, codes) } else { self.reorder(id, layout) };
                    self.add_known_form(name, first);
                } else {
                    let own_rank = self.facts[name].dims.len();
                    let plain = self.need(name, Layout::Plain, codes, Some(own_rank));
                    let wide = self.expand(plain, rank);
                    self.add_known_form(name, wide);
                }
                return self.need(name, layout, codes, Some(rank));
            }
        };
        self.add_known_form(name, id);
        id
    }

    pub(super) fn add_value(&mut self, fact: Fact, home: Home) -> ValueId {
        self.values.push(Value { fact, home });
        self.values.len() - 1
    }

    pub(super) fn add_known_form(&mut self, name: &str, id: ValueId) {
        self.forms.entry(name.to_string()).or_default().push(id);
    }

    fn add_form(&mut self, name: &str, fact: Fact, home: Home) -> ValueId {
        let id = self.add_value(fact, home);
        self.add_known_form(name, id);
        id
    }

    /// A graph input; with a grid, every reader sees it rounded.
    pub(super) fn add_input(&mut self, name: &str, fact: Fact, index: usize) {
        let raw = self.add_value(fact.clone(), Home::Input(index));
        let grid = self.mode.grids().and_then(|grids| constant::stored_grid(grids, name));
        let id = match (self.mode, grid) {
            (Mode::Integer(_), Some((params, grid))) if fact.dtype == DType::F32 => {
                self.quantize(raw, params.clone(), grid)
            }
            (Mode::FakeQuant(_), Some((_, grid))) if fact.dtype == DType::F32 => {
                let rounded = self.convert(transpose_kernel(Transpose::new(&[fact.len()], &[0])), raw, fact);
                self.steps.last_mut().expect("a step was just added").fake = vec![Some(grid)];
                rounded
            }
            _ => raw,
        };
        self.add_known_form(name, id);
    }

    /// The constant `name` as the mode sees it: rounded to its grid unless in float mode.
    fn add_constant(&mut self, name: &str, value: Arc<Tensor>) {
        let value = match self.mode.grids() {
            Some(grids) => constant::rounded_constant(name, &value, grids),
            None => value,
        };
        self.add_form(name, Fact::constant(value.clone()), Home::Constant(value));
    }

    /// The constant `name` as it is, with its grid noted in the fact.
    pub(super) fn raw_constant(&mut self, name: &str, grids: &Grids) -> ValueId {
        match self.facts[name].value.clone() {
            Some(value) => {
                let fact = Fact { grid: grids.params(name).cloned(), ..Fact::constant(value.clone()) };
                self.add_value(fact, Home::Constant(value))
            }
            None => self.need(name, Layout::Plain, false, None),
        }
    }

    /// Converts between codes and real numbers.
    fn recode(&mut self, name: &str, id: ValueId, codes: bool) -> ValueId {
        if codes {
            let grids = self.mode.grids().expect("codes exist only with grids");
            let (params, grid) = constant::stored_grid(grids, name).expect("the caller checked the grid");
            let params = params.clone();
            return self.quantize(id, params, grid);
        }
        let from = &self.values[id].fact;
        let params = from.grid.clone().expect("only codes are dequantized");
        let grid = crate::ops::codes::stored(&params).expect("codes have a per-tensor grid");
        let fact = Fact { dtype: DType::F32, grid: None, ..from.clone() };
        let kernel = Kernel::new(move |io| {
            in_chunks(io.threads, io.u8(0), io.out_f32(0), |q, x| quantize::dequantize(q, grid.scale, grid.zero, x));
        });
        self.convert(kernel, id, fact)
    }

    pub(super) fn quantize(&mut self, id: ValueId, params: QuantParams, grid: int::GridParams) -> ValueId {
        let from = &self.values[id].fact;
        let fact = Fact { dtype: DType::U8, grid: Some(params), value: None, ..from.clone() };
        if let (Home::Constant(tensor), Layout::Plain) = (&self.values[id].home, from.layout)
            && let Some(quantized) = constant::quantized(tensor, &grid)
        {
            return self.add_value(fact, Home::Constant(Arc::new(quantized)));
        }
        let kernel = Kernel::new(move |io| {
            in_chunks(io.threads, io.f32(0), io.out_u8(0), |x, q| quantize::quantize(x, &grid, q));
        });
        self.convert(kernel, id, fact)
    }

    /// Converts between memory orders.
    fn reorder(&mut self, id: ValueId, layout: Layout) -> ValueId {
        let from = &self.values[id].fact;
        if from.layout == layout {
            return id;
        }
        let fact = Fact { layout, ..from.clone() };
        if let (Home::Constant(tensor), Layout::ChannelsLast) = (&self.values[id].home, layout) {
            let shaped = Tensor { dims: from.dims.clone(), data: tensor.data.clone() };
            let permuted = constant::channels_last(&shaped);
            return self.add_value(fact, Home::Constant(Arc::new(permuted)));
        }
        let (dims, rank) = (from.physical_dims(), from.dims.len());
        let permutation: Vec<usize> = match layout {
            Layout::ChannelsLast => std::iter::once(0).chain(2..rank).chain([1]).collect(),
            Layout::Plain => [0, rank - 1].into_iter().chain(1..rank - 1).collect(),
        };
        let kernel = transpose_kernel(Transpose::new(&dims, &permutation));
        self.convert(kernel, id, fact)
    }

    /// The same elements under dimensions with leading ones.
    fn expand(&mut self, id: ValueId, rank: usize) -> ValueId {
        let from = &self.values[id].fact;
        let mut dims = vec![1; rank - from.dims.len()];
        dims.extend(&from.dims);
        let reshaped = |t: &Arc<Tensor>| Arc::new(Tensor { dims: dims.clone(), data: t.data.clone() });
        let fact = Fact { value: from.value.as_ref().map(reshaped), dims: dims.clone(), ..from.clone() };
        if let Home::Constant(tensor) = &self.values[id].home {
            let wide = reshaped(tensor);
            return self.add_value(fact, Home::Constant(wide));
        }
        let kernel = transpose_kernel(Transpose::new(&[fact.len()], &[0]));
        self.convert(kernel, id, fact)
    }

    fn convert(&mut self, kernel: Kernel, from: ValueId, fact: Fact) -> ValueId {
        let to = self.add_value(fact, Home::Step);
        self.steps.push(Step { kernel, ins: vec![Some(from)], outs: vec![to], fake: vec![], taps: vec![] });
        to
    }
}

/// Moves elements of any type.
fn transpose_kernel(plan: Transpose) -> Kernel {
    Kernel::new(move |io| match io.ins[0] {
        Slice::F32(x) => plan.run(io.threads, x, io.out_f32(0)),
        Slice::I64(x) => plan.run(io.threads, x, io.out_i64(0)),
        Slice::I32(x) => plan.run(io.threads, x, io.out_i32(0)),
        Slice::U8(x) => plan.run(io.threads, x, io.out_u8(0)),
        Slice::I8(x) => plan.run(io.threads, x, io.out_i8(0)),
        Slice::Bool(x) => plan.run(io.threads, x, io.out_bool(0)),
        Slice::Absent => {}
    })
}

/// Calls `map` on matching chunks of `x` and `y`, on all threads.
fn in_chunks<X: Sync, Y: Send>(threads: &Threads, x: &[X], y: &mut [Y], map: impl Fn(&[X], &mut [Y]) + Sync + Send) {
    const CHUNK: usize = 1 << 16;
    let chunks: Vec<_> = x.chunks(CHUNK).zip(y.chunks_mut(CHUNK).map(Mutex::new)).collect();
    threads.run(chunks.len(), |i| {
        let (x, y) = &chunks[i];
        map(x, &mut y.lock().unwrap_or_else(PoisonError::into_inner));
    });
}
