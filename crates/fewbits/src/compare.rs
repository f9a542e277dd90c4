//! Where two networks part: the same samples through both, every tensor that both have measured by name.
//!
//! Passes keep tensor names (a folded convolution writes what the BatchNormalization wrote), and lifting a quantized file gives
//! the names of the float network back. So the tensors to compare are those that both graphs compute under one name, and no graph
//! has to be rewritten first. Memory is one set of tensors per worker, however many samples there are.

mod ablation;
mod explain;
mod on_grid;
mod pairs;
mod pass;
mod rescaling;

pub use ablation::{Ablation, Without, ablations};
pub use explain::{Cause, Explanation};

use crate::{Error, progress::Progress, sqnr::Sqnr, stream::Source};
use explain::{Evidence, explanations};
use fewbits_graph::{Graph, exec::Mode};
use pairs::{check_inputs, common_tensors, grids, grids_by_values, output_pairs};
use pass::{Pair, Sums, run};
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

/// SQNR below which two float tensors are called different: an error of one part in 100,000.
pub const FLOAT_THRESHOLD_DB: f64 = 100.0;

/// SQNR below which a tensor of a quantized network is called wrong: an error of a tenth.
pub const QUANTIZED_THRESHOLD_DB: f64 = 20.0;

/// One network of a comparison.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// Its file, for messages.
    pub path: &'a Path,
    /// The network.
    pub graph: &'a Graph,
    /// How it is computed.
    pub mode: Mode<'a>,
}

/// Two signals compared: `10·log10(Σ a² / Σ (a − b)²)` and the like, sums in f64.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorDifference {
    /// Tensor name.
    pub name: String,
    /// Operator that writes it in the second network.
    pub op: String,
    /// Whether its channels have other scales in the second network, as equalization leaves them. The rest is then about the first one's
    /// values on those scales.
    pub rescaled: bool,
    /// Signal-to-noise ratio of the second network against the first, dB; 200 means identical.
    pub sqnr_db: f64,
    /// Cosine of the angle between the two.
    pub cosine: f64,
    /// Largest difference of two elements.
    pub max_abs_diff: f64,
    /// Noise power relative to the signal that is not there in the tensors it is computed from.
    pub noise_added: f64,
}

/// What a comparison found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Samples compared.
    pub samples: usize,
    /// Largest difference of two output elements.
    pub max_abs_diff: f64,
    /// SQNR of all outputs together, dB.
    pub sqnr_db: f64,
    /// Cosine of all outputs together.
    pub cosine: f64,
    /// Share of the samples whose largest class score agrees; for networks whose first output is `[samples, classes]`.
    pub top1_agreement: Option<f64>,
    /// SQNR below which tensors are called different, dB.
    pub threshold_db: f64,
    /// First tensor, in graph order, below the threshold.
    pub first_divergence: Option<String>,
    /// Tensor that adds most noise to what it is computed from.
    pub most_noise_added: Option<String>,
    /// Outputs, in graph order, under the first network's names.
    pub outputs: Vec<TensorDifference>,
    /// Every tensor that both networks compute, in the second network's order.
    pub tensors: Vec<TensorDifference>,
    /// Why the worst of them are as they are.
    pub explanations: Vec<Explanation>,
}

/// Runs both networks on the samples of `source`; `b` is measured against `a`. The result does not depend on `threads`.
///
/// # Errors
/// [`Error::Usage`] if inputs, outputs or tensors of one name do not fit each other; errors of the data and of the networks.
pub fn compare(
    a: Side<'_>,
    b: Side<'_>,
    source: &Source<'_>,
    threshold_db: f64,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Comparison, Error> {
    check_inputs(a, b)?;
    let pair = Pair {
        sides: [a, b],
        outputs: output_pairs(a, b)?,
        names: common_tensors(a, b),
        held: grids_by_values(b),
        factors: BTreeMap::new(),
    };
    // Evenly spread: files are often sorted by class.
    let every = source.indices.len().div_ceil(rescaling::SAMPLES).max(1);
    let indices = source.indices.iter().copied().step_by(every).collect();
    let look = run(&pair, &Source { indices, ..*source }, threads, progress)?;
    let pair = Pair { factors: rescaling::factors(b.graph, &look.tensors), ..pair };
    let total = if every == 1 && pair.factors.is_empty() { look } else { run(&pair, source, threads, progress)? };
    let found = conclude(&pair, &total, threshold_db);
    let evidence = Evidence {
        graphs: [a.graph, b.graph],
        grids: grids(b).collect(),
        on_grids: &total.on_grids,
        tensors: &found.tensors,
        threshold_db,
    };
    let explanations = explanations(&evidence);
    Ok(Comparison { explanations, ..found })
}

fn named(sqnr: &Sqnr, name: &str, op: &str, noise_added: f64) -> TensorDifference {
    TensorDifference {
        name: name.into(),
        op: op.into(),
        rescaled: false,
        sqnr_db: sqnr.db(),
        cosine: sqnr.cosine(),
        max_abs_diff: sqnr.max_abs_diff(),
        noise_added,
    }
}

fn conclude(pair: &Pair<'_>, total: &Sums, threshold_db: f64) -> Comparison {
    let [a, b] = pair.sides.map(|side| side.graph);
    let all: Sqnr = total.outputs.iter().copied().sum();
    let measured = total.tensors.iter().map(|(name, channels)| (name.as_str(), channels.total())).collect();
    let mut tensors = in_order(b, &measured);
    tensors.iter_mut().for_each(|t| t.rescaled = pair.factors.contains_key(&t.name));
    let producers = b.producers();
    let op_of = |name: &str| producers.get(name).map_or("", |&i| b.nodes[i].op.name());
    let output =
        |(&(i, j), sqnr): (&(usize, usize), &Sqnr)| named(sqnr, &a.outputs[i].name, op_of(&b.outputs[j].name), 0.0);
    let outputs: Vec<TensorDifference> = pair.outputs.iter().zip(&total.outputs).map(output).collect();
    let below = |t: &&TensorDifference| t.sqnr_db < threshold_db;
    let noisiest =
        tensors.iter().filter(|t| t.noise_added > 0.0).max_by(|x, y| x.noise_added.total_cmp(&y.noise_added));
    Comparison {
        samples: total.samples,
        max_abs_diff: all.max_abs_diff(),
        sqnr_db: all.db(),
        cosine: all.cosine(),
        top1_agreement: total.agreeing.map(|n| n as f64 / total.samples.max(1) as f64),
        threshold_db,
        // An output may be the only tensor that both have, under two names.
        first_divergence: tensors.iter().find(below).or_else(|| outputs.iter().find(below)).map(|t| t.name.clone()),
        most_noise_added: noisiest.map(|t| t.name.clone()),
        outputs,
        tensors,
        explanations: vec![],
    }
}

/// The measured tensors in graph order, each with the noise that its operator added to that of what it is computed from.
fn in_order(graph: &Graph, measured: &BTreeMap<&str, Sqnr>) -> Vec<TensorDifference> {
    let mut found = Vec::new();
    // Relative noise of every tensor; of one that was not measured, that of what it is computed from.
    let mut noise: HashMap<&str, f64> = HashMap::new();
    for node in &graph.nodes {
        let before = node.present_inputs().filter_map(|name| noise.get(name)).fold(0.0, |m: f64, &x| m.max(x));
        for output in node.outputs.iter().filter(|o| !o.is_empty()) {
            let own = measured.get(output.as_str()).map_or(before, Sqnr::relative_noise);
            noise.insert(output, own);
            if let Some(difference) = measured.get(output.as_str()) {
                // The ceiling of 200 dB stands for no noise at all.
                let added = if difference.is_exact() { 0.0 } else { (own - before).max(0.0) };
                found.push(named(difference, output, node.op.name(), added));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests;
