//! What the outputs would be like without the grids of one kind of activation. A quantized network and its grids enter, decibels leave.
//!
//! Noise of single tensors says where it arises, not what it does to the outputs: a kind whose every tensor looks harmless may be most of what
//! goes wrong behind them.

use super::{
    Side,
    pairs::{check_inputs, grids, output_pairs},
    pass::{Pair, run},
};
use crate::{Error, progress::Progress, sqnr::BalancedSqnr, stream::Source};
use fewbits_graph::{Graph, Grids, exec::Mode, passes::is_layer_input_slot};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Activations that stay float.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Without {
    /// None: the network as it is.
    Nothing,
    /// What enters the network.
    Input,
    /// What is rounded in front of layers alone.
    LayerInputs,
    /// All: what is left is the noise of weights.
    Activations,
    /// What operators of this type write.
    #[serde(untagged)]
    Op(String),
}

/// The network with fewer grids.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ablation {
    /// Activations that are float now. Biases of layers that read them are not rounded any more than the file has them.
    pub without: Without,
    /// How many grids that are.
    pub grids: usize,
    /// How close the outputs come to the first network's, all channels alike, in dB: of class scores by the Kullback-Leibler divergence.
    pub sqnr_db: f64,
}

/// `b` by fake quantization with all of its grids, without those of each kind of activation, and without any.
///
/// # Errors
/// [`Error::Usage`] if `b` has no grids or inputs or outputs do not fit each other; errors of the data and of the networks.
pub fn ablations(
    a: Side<'_>,
    b: Side<'_>,
    source: &Source<'_>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Vec<Ablation>, Error> {
    let Some(all) = b.mode.grids() else {
        return Err(Error::Usage {
            what: format!("`{}` is compared in float: there are no grids to leave out", b.path.display()),
            hint: "--ablate needs a quantized model, or a float one with its --plan".into(),
        });
    };
    check_inputs(a, b)?;
    let mut kinds = kinds(b);
    let every: BTreeSet<&str> = kinds.values().flatten().copied().collect();
    kinds.extend([(Without::Nothing, BTreeSet::new()), (Without::Activations, every)]);
    let ablation = |(without, tensors): (Without, BTreeSet<&str>)| {
        let left = all.0.iter().filter(|(name, _)| !tensors.contains(all.owner(name)));
        let left = Grids(left.map(|(name, quant)| (name.clone(), quant.clone())).collect());
        let pair = Pair {
            sides: [a, Side { mode: Mode::FakeQuant(&left), ..b }],
            outputs: output_pairs(a, b)?,
            names: vec![],
            held: BTreeMap::new(),
            factors: BTreeMap::new(),
        };
        let sqnr_db = BalancedSqnr::db(&run(&pair, source, threads, progress)?.balanced);
        Ok(Ablation { without, grids: tensors.len(), sqnr_db })
    };
    kinds.into_iter().map(ablation).collect()
}

/// Activations that have a grid of their own, by what writes them.
fn kinds<'a>(side: Side<'a>) -> BTreeMap<Without, BTreeSet<&'a str>> {
    let producers = side.graph.producers();
    let mut kinds: BTreeMap<Without, BTreeSet<&str>> = BTreeMap::new();
    for (name, _) in grids(side).filter(|(name, _)| side.graph.constant(name).is_none()) {
        let without = producers.get(name).map_or(Without::Input, |&i| written_by(side.graph, i));
        kinds.entry(without).or_default().insert(name);
    }
    kinds
}

fn written_by(graph: &Graph, node: usize) -> Without {
    match &graph.nodes[node] {
        node if is_layer_input_slot(node) => Without::LayerInputs,
        node => Without::Op(node.op.name().into()),
    }
}
