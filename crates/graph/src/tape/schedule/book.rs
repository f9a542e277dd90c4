//! Who reads and writes what, and when: items cut where segments end, the spans in which values are alive, and the slots of those that
//! outlive their segment.

use crate::{
    exec::memory::{self, Lifetime},
    tape::item::{Home, Item, Value, ValueId},
    tensor::DType,
};
use std::collections::HashMap;

/// Items before they have kernels.
pub(super) enum Cut {
    ByImages(Vec<Item>),
    Once(Vec<Item>),
}

/// First and last segment of a value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    first: usize,
    last: usize,
}

/// The values of a step: which items read and write them, and from when to when they are alive.
pub(super) struct Book {
    pub values: Vec<Value>,
    pub images: usize,
}

impl Book {
    pub fn resolve(&self, mut v: ValueId) -> ValueId {
        while let Home::Alias(of) = self.values[v].home {
            v = of;
        }
        v
    }

    pub fn reads<'a>(&'a self, item: &'a Item) -> impl Iterator<Item = ValueId> + 'a {
        item.ins.iter().flatten().map(|&v| self.resolve(v))
    }

    pub fn writes<'a>(&'a self, item: &'a Item) -> impl Iterator<Item = ValueId> + 'a {
        item.outs.iter().flatten().map(|&v| self.resolve(v))
    }

    /// Items that run once, in waves: those of a wave do not depend on each other.
    pub fn waves(&self, items: Vec<Item>) -> Vec<Cut> {
        let mut level: HashMap<ValueId, usize> = HashMap::new();
        let mut waves: Vec<Vec<Item>> = Vec::new();
        for item in items {
            // A value that is written twice (added to) orders its writers.
            let before = self.reads(&item).chain(self.writes(&item)).filter_map(|v| level.get(&v).copied());
            let wave = before.max().map_or(0, |l| l + 1);
            for v in self.writes(&item) {
                level.insert(v, wave);
            }
            if waves.len() <= wave {
                waves.resize_with(wave + 1, Vec::new);
            }
            waves[wave].push(item);
        }
        waves.into_iter().map(Cut::Once).collect()
    }

    /// Cuts items at those that run once, and where an item stops.
    pub fn cut(&self, items: Vec<Item>) -> Vec<Cut> {
        let mut cuts: Vec<Cut> = Vec::new();
        for item in items {
            match (cuts.last_mut(), item.whole) {
                (Some(Cut::ByImages(run)), false) if item.stop.is_none() => run.push(item),
                (_, false) => cuts.push(Cut::ByImages(vec![item])),
                (_, true) => cuts.push(Cut::Once(vec![item])),
            }
        }
        cuts
    }

    pub fn spans(&self, cuts: &[Cut], kept: &[ValueId]) -> HashMap<ValueId, Span> {
        let mut spans: HashMap<ValueId, Span> = HashMap::new();
        for (at, cut) in cuts.iter().enumerate() {
            let (Cut::ByImages(items) | Cut::Once(items)) = cut;
            for item in items {
                for v in self.reads(item).chain(self.writes(item)) {
                    spans.entry(v).or_insert(Span { first: at, last: at }).last = at;
                }
            }
            // A quantizer is set from the whole of its input.
            if let Cut::ByImages(items) = cut
                && items[0].stop.is_some()
            {
                let v = self.resolve(items[0].ins[0].expect("a quantizer has an input"));
                let first = spans[&v].first.min(at.saturating_sub(1));
                spans.insert(v, Span { first, last: at });
            }
        }
        for v in kept {
            if let Some(span) = spans.get_mut(v) {
                span.last = cuts.len();
            }
        }
        spans
    }

    pub fn is_local(&self, v: ValueId, spans: &HashMap<ValueId, Span>) -> bool {
        let value = &self.values[v];
        matches!(value.home, Home::Made) && value.rows && spans.get(&v).is_some_and(|s| s.first == s.last)
    }

    /// Lengths of the slots, and the slot of each value that outlives its segment.
    pub fn assign(&self, spans: &HashMap<ValueId, Span>) -> (Vec<usize>, HashMap<ValueId, usize>) {
        let mut made: Vec<(ValueId, Span)> = spans
            .iter()
            .map(|(&v, &span)| (v, span))
            .filter(|&(v, _)| matches!(self.values[v].home, Home::Made | Home::Joined(_)) && !self.is_local(v, spans))
            .collect();
        made.sort_by_key(|&(v, span)| (span.first, v));
        let lifetime = |&(v, span): &(ValueId, Span)| Lifetime {
            dtype: DType::F32,
            len: self.values[v].fact.len(),
            first: span.first,
            last: span.last,
        };
        let (slots, homes) = memory::assign(&made.iter().map(lifetime).collect::<Vec<_>>());
        let homes = made.iter().zip(homes).map(|(&(v, _), home)| (v, home)).collect();
        (slots.iter().map(|slot| slot.len).collect(), homes)
    }

    /// Numbers that one image has of `v`.
    pub fn row_len(&self, v: ValueId) -> usize {
        self.values[v].fact.len() / self.images.max(1)
    }
}
