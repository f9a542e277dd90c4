//! What the backward pass computes again instead of keeping.

use super::Reverse;
use crate::{
    graph::Graph,
    op::{Fact, Role},
    tape::{
        Laid,
        item::{Home, Item, ValueId},
        laid::activation_forward,
        normalization::Normalization,
        record::{Entry, Record, item},
    },
};
use std::collections::{HashMap, HashSet};

/// How a value follows from one that is kept.
#[derive(Clone)]
pub(super) enum Cheap {
    Normalize { spec: Normalization, x: ValueId, all: ValueId },
    Quantize { laid: Laid, x: ValueId, parameters: ValueId },
    Node(Item),
}

/// Layers between two whose results are kept, if others are computed again.
const MOST_IN_A_ROW: usize = 2;

/// Values that the backward pass computes again, image by image, beside their reader. Always: results of normalizations and
/// quantizers that no later segment of the forward pass reads; kept, they would cost more memory traffic than that. With
/// `recompute`: all of them, and two layers in three.
pub(super) fn cheap(graph: &Graph, record: &Record, entries: &[Entry], recompute: bool) -> HashMap<ValueId, Cheap> {
    let mut made: HashMap<ValueId, usize> = HashMap::new();
    let outputs: HashSet<ValueId> = record.outputs.iter().map(|&v| record.resolve(v)).collect();
    let mut late = outputs.clone();
    let mut segment = 0;
    for item in record.forward.iter().filter(|_| !recompute) {
        segment += usize::from(item.whole || item.stop.is_some());
        let read = item.ins.iter().flatten().map(|&v| record.resolve(v));
        late.extend(read.filter(|v| made.get(v).is_some_and(|&at| at != segment)));
        made.extend(item.outs.iter().flatten().map(|&v| (record.resolve(v), segment)));
        segment += usize::from(item.whole);
    }
    let mut items: HashMap<ValueId, &Item> = HashMap::new();
    for item in record.forward.iter().filter(|item| recompute && !item.whole) {
        if let [Some(out)] = item.outs[..] {
            items.insert(out, item);
        }
    }
    let mut found: HashMap<ValueId, Cheap> = HashMap::new();
    // How many layers lie between a value and one that is kept.
    let mut depths: HashMap<ValueId, usize> = HashMap::new();
    for entry in entries {
        let (ins, outs) = entry.ends();
        let [y] = outs[..] else { continue };
        let depth = ins.iter().flatten().filter_map(|&v| depths.get(&record.resolve(v))).max().copied().unwrap_or(0);
        let recipe = match entry {
            Entry::Normalize { spec, x, all, .. } => Some((depth, Cheap::Normalize { spec: *spec, x: *x, all: *all })),
            Entry::Quantize { laid, x, parameters, .. } if record.values[*x].rows => {
                Some((depth, Cheap::Quantize { laid: laid.clone(), x: *x, parameters: *parameters }))
            }
            Entry::Node { node, .. } => {
                let layer = matches!(graph.nodes[*node].op.def().quant_rule().role(1), Role::Weight { .. });
                let depth = depth + usize::from(layer);
                let size = |v: ValueId| record.values[v].fact.len();
                // A layer that makes little of much, as the end of a bottleneck, is a good place to begin again.
                let shrinks = ins.iter().flatten().any(|&v| record.values[v].rows && 2 * size(y) <= size(v));
                let again = items.get(&y).filter(|_| depth <= MOST_IN_A_ROW && !shrinks);
                again.map(|item| (depth, Cheap::Node((*item).clone())))
            }
            _ => None,
        };
        if let Some((depth, recipe)) = recipe.filter(|_| !late.contains(&y)) {
            found.insert(y, recipe);
            depths.insert(y, depth);
        }
    }
    found
}

impl Reverse<'_> {
    /// `v`, or the same computed again.
    pub(super) fn again(&mut self, v: ValueId) -> ValueId {
        let of = self.record.resolve(v);
        let Some(recipe) = self.cheap.get(&of).cloned() else { return v };
        if let Some(&(copy, barrier)) = self.copies.get(&of)
            && barrier == self.barriers
        {
            return copy;
        }
        let fact = Fact { value: None, ..self.record.values[of].fact.clone() };
        let copy = self.record.add(fact, true, Home::Made);
        let item = match recipe {
            Cheap::Normalize { spec, x, all } => {
                let x = self.again(x);
                item(None, false, move || spec.normalize(), vec![Some(x), Some(all)], vec![Some(copy)])
            }
            Cheap::Quantize { laid, x, parameters } => {
                let x = self.again(x);
                let ins = vec![Some(x), Some(parameters)];
                item(None, false, move || activation_forward(&laid), ins, vec![Some(copy)])
            }
            Cheap::Node(forward) => {
                let ins = forward.ins.iter().map(|v| v.map(|v| self.again(v))).collect();
                Item { ins, outs: vec![Some(copy)], ..forward }
            }
        };
        self.record.backward.push(item);
        self.copies.insert(of, (copy, self.barriers));
        copy
    }
}
