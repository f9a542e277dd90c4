//! The memory orders of a tensor while recording, and the items that make one of another.

use super::{Entry, Recorder};
use crate::{
    op::{Fact, Kernel, Layout},
    tape::{
        item::{Home, Item, Rowed, Value, ValueId},
        leaves::Kind,
    },
    tensor::Tensor,
};
use fewbits_kernels::{Threads, movement::Transpose};
use std::{rc::Rc, sync::Arc};

impl Recorder<'_> {
    /// The value of tensor `name` in memory order `layout`, with leading ones up to `rank`.
    pub(super) fn need(&mut self, name: &str, layout: Layout, rank: Option<usize>) -> ValueId {
        if !self.forms.contains_key(name) {
            let v = match (self.leaves.parameter(name).cloned(), self.facts[name].value.clone()) {
                (Some(leaf), _) if leaf.kind != Kind::Running => self.parameter(leaf),
                (_, Some(value)) => self.record.add(Fact::constant(value.clone()), false, Home::Constant(value)),
                (_, None) => unreachable!("a tensor without a form is a constant"),
            };
            self.forms.insert(name.into(), vec![v]);
        }
        let own = self.facts[name].dims.len();
        let rank = rank.unwrap_or(0).max(own);
        let layout = if rank < 3 { Layout::Plain } else { layout };
        let forms = &self.forms[name];
        let fits = |v: &&ValueId| self.fact(**v).dims.len() == rank && self.fact(**v).layout == layout;
        if let Some(&v) = forms.iter().find(fits) {
            return v;
        }
        let source = forms[0];
        let Value { mut fact, rows, .. } = self.record.values[source].clone();
        fact.dims.splice(0..0, vec![1; rank - fact.dims.len()]);
        let from = if fact.dims.len() == rank && rank > own { Layout::Plain } else { fact.layout };
        fact.layout = from;
        let moved = Fact { layout, ..fact.clone() };
        let stays = from == layout || same_memory(&fact.dims);
        let v = match (&self.record.values[source].home, stays) {
            (_, true) => self.record.add(moved, rows, Home::Alias(source)),
            (Home::Constant(value), false) => {
                let value = Arc::new(reordered(value, &fact, layout));
                let known = Fact { value: fact.value.clone(), ..moved };
                self.record.add(known, false, Home::Constant(value))
            }
            (_, false) => self.reorder(source, fact, moved, rows),
        };
        self.forms.entry(name.into()).or_default().push(v);
        v
    }

    fn reorder(&mut self, x: ValueId, from: Fact, to: Fact, rows: bool) -> ValueId {
        let y = self.record.add(to.clone(), rows, Home::Made);
        let item = reorder_item(Some(self.next), Rowed { fact: from, rows }, to.layout, x, y);
        if rows {
            self.record.forward.push(item)
        } else {
            self.record.prologue.push(item)
        }
        self.record.entries.push(Entry::Reorder { x, y });
        y
    }
}

/// An item that moves `x`, described by `fact`, into another memory order.
pub(in crate::tape) fn reorder_item(node: Option<usize>, fact: Rowed, to: Layout, x: ValueId, y: ValueId) -> Item {
    let whole = !fact.rows;
    let build = move |images: usize| {
        let fact = fact.at(images);
        let rank = fact.dims.len();
        let mut perm = vec![0; rank];
        for axis in 0..rank {
            perm[to.physical_axis(axis, rank)] = fact.layout.physical_axis(axis, rank);
        }
        let transpose = Transpose::new(&fact.physical_dims(), &perm);
        Ok(Kernel::new(move |io| {
            let (threads, x) = (io.threads, io.f32(0));
            transpose.run(threads, x, io.out_f32(0));
        }))
    };
    Item { node, build: Rc::new(build), whole, ins: vec![Some(x)], outs: vec![Some(y)], stop: None }
}

fn reordered(value: &Tensor, fact: &Fact, to: Layout) -> Tensor {
    let Some(x) = value.as_f32() else { return value.clone() };
    let rank = fact.dims.len();
    let mut perm = vec![0; rank];
    for axis in 0..rank {
        perm[to.physical_axis(axis, rank)] = axis;
    }
    let mut y = vec![0.0; x.len()];
    Transpose::new(&fact.dims, &perm).run(&Threads::new(1), x, &mut y);
    Tensor::f32(&value.dims, y)
}

/// Whether both memory orders are the same: no more than one of channels and places counts more than one.
fn same_memory(dims: &[usize]) -> bool {
    dims.len() < 3 || dims[1] == 1 || dims[2..].iter().all(|&d| d == 1)
}
