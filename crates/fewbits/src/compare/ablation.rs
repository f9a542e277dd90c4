//! What the outputs would be like without the grids of one kind of activation. A quantized network and its grids enter, decibels leave.
//!
//! Noise of single tensors says where it arises, not what it does to the outputs: a kind whose every tensor looks harmless may be most of what
//! goes wrong behind them.

use super::{Side, pairs::grids};
use crate::{
    Error,
    progress::Progress,
    quantize::output_sqnr,
    stream::{Source, outputs},
};
use fewbits_graph::{Graph, Grids, Op, exec::Mode};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// The network with fewer grids.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ablation {
    /// Operator that writes the activations that are float now; `input` for what enters the network, `layer inputs` for what is rounded in
    /// front of layers alone; `none` and `all` for the network as it is and with float activations everywhere.
    pub without: String,
    /// How many grids that are.
    pub grids: usize,
    /// How close the outputs come to the first network's, all channels alike, in dB: of class scores by the Kullback-Leibler divergence.
    pub sqnr_db: f64,
}

/// `b` by fake quantization with all of its grids, without those of each kind of activation, and with those of weights and biases alone.
///
/// # Errors
/// Errors of the data and of the networks.
pub fn ablations(
    a: Side<'_>,
    b: Side<'_>,
    source: &Source<'_>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Vec<Ablation>, Error> {
    let Some(all) = b.mode.grids() else { return Ok(vec![]) };
    let mut references = Vec::new();
    outputs(a.graph, a.mode, source, threads, progress, |seen| {
        references.push(seen.outputs);
        Ok(())
    })?;
    let kinds = kinds(b);
    let everything = kinds.values().flatten().copied().collect();
    let nothing = BTreeSet::new();
    let named = [("none", &nothing)].into_iter();
    let named = named.chain(kinds.iter().map(|(kind, tensors)| (*kind, tensors))).chain([("all", &everything)]);
    let ablation = |(kind, tensors): (&str, &BTreeSet<&str>)| {
        let left = Grids(all.0.iter().filter(|(name, _)| !tensors.contains(all.owner(name))).map(owned).collect());
        let sqnr_db = output_sqnr(b.graph, Mode::FakeQuant(&left), source, &references, threads, progress)?;
        Ok(Ablation { without: kind.into(), grids: tensors.len(), sqnr_db })
    };
    named.map(ablation).collect()
}

fn owned<K: Clone, V: Clone>((name, quant): (&K, &V)) -> (K, V) {
    (name.clone(), quant.clone())
}

/// Activations that have a grid of their own, by what writes them.
fn kinds<'a>(side: Side<'a>) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
    let producers = side.graph.producers();
    let mut kinds: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, _) in grids(side).filter(|(name, _)| side.graph.constant(name).is_none()) {
        let kind = producers.get(name).map_or("input", |&i| kind(side.graph, i));
        kinds.entry(kind).or_default().insert(name);
    }
    kinds
}

fn kind(graph: &Graph, node: usize) -> &str {
    match &graph.nodes[node].op {
        Op::Identity(_) => "layer inputs",
        op => op.name(),
    }
}
