//! The network in stretches, one behind the other: what an assignment has in common with the one before is not computed again.
//!
//! What enters: the network, and what the samples make of each stretch's inputs with certain widths. What leaves: from which stretch on another
//! assignment has to be computed. Nothing is computed here.

use crate::{Bits, sensitivity::cut};
use fewbits_graph::{Graph, Tensor, ValueInfo};
use fewbits_methods::{Ground, Layer, layers, walk};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

/// How many stretches, of about equal work.
const STRETCHES: usize = 4;
/// Most bytes that are kept in front of all stretches.
const KEPT_BYTES: usize = 256 << 20;

/// Some of the network's nodes, and what the samples bring to them.
#[derive(Debug)]
pub(crate) struct Stretch {
    /// The stretch as a graph of its own, with the weights of the float network.
    pub graph: Graph,
    /// Weights and activations in front of it.
    before: BTreeSet<String>,
    /// The widths in front of it with which `entries` were computed.
    bits: Bits,
    /// By run, as far as they were computed.
    entries: Vec<Vec<Tensor>>,
}

impl Stretch {
    /// `ground`'s network; what `images` times its shapes hold is kept in front of each stretch but the first.
    pub fn all(ground: &Ground<'_>, images: usize) -> Vec<Stretch> {
        let graph = ground.float;
        let mut begins = vec![0];
        begins.extend(seams(ground, images));
        let ends = begins.iter().skip(1).copied().chain([graph.nodes.len()]);
        let stretch = |nodes: Range<usize>| {
            let read = graph.nodes[nodes.start..].iter().flat_map(|node| node.present_inputs());
            let made_behind = made(graph, nodes.start..graph.nodes.len());
            let given: BTreeSet<&str> =
                read.filter(|name| !made_behind.contains(name) && graph.constant(name).is_none()).collect();
            let behind: BTreeSet<&str> =
                graph.nodes[nodes.end..].iter().flat_map(|node| node.present_inputs()).collect();
            let made_here = made(graph, nodes.clone());
            let wanted: Vec<&str> = match nodes.end == graph.nodes.len() {
                true => graph.outputs.iter().map(|info| info.name.as_str()).collect(),
                false => made_here.iter().copied().filter(|name| behind.contains(name)).collect(),
            };
            let mut part = cut::piece(ground, nodes.clone(), wanted);
            part.inputs = match nodes.start {
                0 => graph.inputs.clone(),
                _ => given.iter().map(|name| cut::info(ground, name)).collect(),
            };
            let mut before: BTreeSet<String> =
                graph.nodes[..nodes.start].iter().flat_map(|node| node.present_inputs()).map(String::from).collect();
            before.extend(given.into_iter().map(String::from));
            Stretch { graph: part, before, bits: Bits::default(), entries: vec![] }
        };
        begins.iter().zip(ends).map(|(&begin, end)| stretch(begin..end)).collect()
    }

    /// What was brought to it for `runs`, if that is what `bits` bring.
    pub fn entries(&self, bits: &Bits, runs: &Range<usize>) -> Option<&[Vec<Tensor>]> {
        self.entries.get(runs.clone()).filter(|_| self.bits == self.in_front(bits))
    }

    /// Remembers what `bits` bring to it for `runs`: the first ones, or those behind the ones that it has.
    pub fn keep(&mut self, bits: &Bits, runs: &Range<usize>, entries: &[Vec<Tensor>]) {
        let bits = self.in_front(bits);
        if bits != self.bits || runs.start == 0 {
            (self.bits, self.entries) = (bits, vec![]);
        }
        if runs.start == self.entries.len() {
            self.entries.extend_from_slice(entries);
        }
    }

    /// Forgets what was brought to it.
    pub fn forget(&mut self) {
        self.entries.clear();
    }

    /// What is brought to it where the stretch before was given `given` and made `made`, one run each.
    pub fn entry<'a>(&self, before: &'a Stretch, given: &[Tensor], made: Vec<Tensor>) -> Vec<Tensor> {
        let names = |infos: &'a [ValueInfo]| infos.iter().map(|info| info.name.as_str());
        let mut known: BTreeMap<&str, Tensor> = names(&before.graph.outputs).zip(made).collect();
        for (name, tensor) in names(&before.graph.inputs).zip(given) {
            known.entry(name).or_insert_with(|| tensor.clone());
        }
        self.graph.inputs.iter().filter_map(|info| known.remove(info.name.as_str())).collect()
    }

    /// The part of `bits` that concerns what is in front of it.
    fn in_front(&self, bits: &Bits) -> Bits {
        let part = |bits: &BTreeMap<String, u8>| {
            let there = bits.iter().filter(|(name, _)| self.before.contains(*name));
            there.map(|(name, bits)| (name.clone(), *bits)).collect()
        };
        Bits { weights: part(&bits.weights), inputs: part(&bits.inputs) }
    }
}

/// Where stretches behind the first begin: ends of blocks, as near as there are to equal shares of the multiplications. None if the
/// network puts something out before its end.
fn seams(ground: &Ground<'_>, images: usize) -> BTreeSet<usize> {
    let graph = ground.float;
    let blocks = walk::blocks(ground);
    let layers = layers(graph, ground.placement);
    // A bias goes with its layer's width. One that is read on both sides would change what is kept.
    let shares_bias = |end: usize| {
        let (before, behind): (Vec<&Layer>, Vec<&Layer>) = layers.iter().partition(|layer| layer.node < end);
        behind.iter().any(|b| b.bias.is_some() && before.iter().any(|a| a.bias == b.bias))
    };
    let macs = layers.iter().map(|layer| {
        let dims = ground.facts.get(&layer.output).map_or(&[][..], |fact| &fact.dims);
        let places: usize = dims.iter().skip(2).product();
        (layer.node, graph.constant(&layer.weight).map_or(0, |weight| weight.len() * places))
    });
    let macs: Vec<(usize, usize)> = macs.collect();
    let before = |end: usize| macs.iter().filter(|(node, _)| *node < end).map(|(_, macs)| macs).sum::<usize>();
    let total = before(graph.nodes.len());
    let ends = cut::spans(graph, &blocks).into_iter().map(|span| span.end).filter(|&end| {
        let behind = made(graph, end..graph.nodes.len());
        let read: BTreeSet<&str> = graph.nodes[end..].iter().flat_map(|node| node.present_inputs()).collect();
        let live = made(graph, 0..end).into_iter().filter(|name| read.contains(name));
        let bytes: usize = live.map(|name| ground.facts.get(name).map_or(0, |fact| 4 * fact.len())).sum();
        end < graph.nodes.len()
            && !shares_bias(end)
            && graph.outputs.iter().all(|info| behind.contains(info.name.as_str()))
            && bytes.saturating_mul(images) <= KEPT_BYTES / (STRETCHES - 1)
    });
    let ends: Vec<usize> = ends.collect();
    let distance = |end: usize, share: usize| (before(end) * STRETCHES).abs_diff(share * total);
    (1..STRETCHES).filter_map(|share| ends.iter().copied().min_by_key(|&end| distance(end, share))).collect()
}

/// What `nodes` of `graph` make.
fn made(graph: &Graph, nodes: Range<usize>) -> BTreeSet<&str> {
    graph.nodes[nodes].iter().flat_map(|node| node.outputs.iter().map(String::as_str)).collect()
}
