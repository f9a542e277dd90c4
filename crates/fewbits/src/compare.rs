//! Where two networks part: the same samples through both, every tensor that both have measured by name.
//!
//! Passes keep tensor names (a folded convolution writes what the BatchNormalization wrote), and lifting a quantized file gives
//! the names of the float network back. So the tensors to compare are those that both graphs compute under one name, and no graph
//! has to be rewritten first. Memory is one set of tensors per worker, however many samples there are.

mod ablation;
mod explain;
mod on_grid;
mod pairs;
mod rescaling;

pub use ablation::{Ablation, Without, ablations};
pub use explain::{Cause, Explanation};

use crate::{
    Error, Model,
    progress::Progress,
    sqnr::{BalancedSqnr, Sqnr},
    stream::{Run, Seen, Source, stream},
};
use explain::{Evidence, explanations};
use fewbits_data::metrics::top1;
use fewbits_graph::{
    Graph, Tensor,
    exec::{Executor, Mode, Tapped},
    op::Layout,
};
use fewbits_kernels::Threads;
use fewbits_methods::classes;
use on_grid::OnGrid;
use pairs::{GridsByValues, check_inputs, common_tensors, grids, grids_by_values, mismatch, output_pairs};
use rescaling::Channels;
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::{Mutex, PoisonError},
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

/// Two networks, and what of them belongs together.
struct Pair<'a> {
    sides: [Side<'a>; 2],
    /// Positions of outputs.
    outputs: Vec<(usize, usize)>,
    /// Tensors that both compute.
    names: Vec<String>,
    held: GridsByValues<'a>,
    /// By what channels of the first network are multiplied in the second one, where they are.
    factors: BTreeMap<String, Vec<f32>>,
}

/// Runs both networks on the samples of `source`.
fn run(pair: &Pair<'_>, source: &Source<'_>, threads: usize, progress: &dyn Progress) -> Result<Sums, Error> {
    let [a, b] = pair.sides;
    let one = Threads::new(1);
    // As many as there are workers: whoever finishes a chunk takes one and puts it back.
    let idle: Mutex<Vec<Executor<'_>>> = Mutex::default();
    let run = Run { graph: a.graph, mode: a.mode, observed: pair.names.clone() };
    let count = pair.outputs.len();
    let (outputs, balanced) = (vec![Sqnr::default(); count], vec![BalancedSqnr::default(); count]);
    let mut total = Sums { outputs, balanced, ..Sums::default() };
    progress.begin("comparing", source.indices.len().div_ceil(Model::fixed_batch(a.graph).unwrap_or(1)));
    stream(
        &run,
        source,
        threads,
        progress,
        |first| (first, BTreeMap::new()),
        |(_, seen): &mut (usize, BTreeMap<String, Observed>), tensor| {
            seen.insert(tensor.name.into(), Observed::of(tensor));
        },
        |seen_a, chunk| {
            let take = || idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let new = || Executor::new(b.graph, b.mode, &one).observing(pair.names.iter().cloned());
            let mut executor = take().unwrap_or_else(new);
            let sums = chunk_sums(&mut executor, pair, source, seen_a, &chunk)?;
            idle.lock().unwrap_or_else(PoisonError::into_inner).push(executor);
            Ok(sums)
        },
        |sums| {
            total.add(sums);
            Ok(())
        },
    )?;
    progress.end();
    Ok(total)
}

/// A tensor of the first network, kept until the second one has computed its own.
struct Observed {
    dims: Vec<usize>,
    /// In plain order; empty for tensors that are neither floats nor codes.
    values: Vec<f32>,
}

impl Observed {
    fn of(tensor: Tapped<'_>) -> Self {
        let values = tensor.to_f32();
        let values = match tensor.fact.layout {
            Layout::Plain => values,
            Layout::ChannelsLast => plain(&values, &tensor.fact.dims),
        };
        Observed { dims: tensor.fact.dims.clone(), values }
    }
}

/// From channels-last to plain order; `dims` are `[N, C, spatial…]`.
fn plain(values: &[f32], dims: &[usize]) -> Vec<f32> {
    let (channels, places) = (dims[1], dims[2..].iter().product::<usize>());
    let mut out = Vec::with_capacity(values.len());
    for sample in values.chunks_exact((channels * places).max(1)) {
        out.extend((0..channels).flat_map(|c| sample.iter().skip(c).step_by(channels)));
    }
    out
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

/// What one chunk of samples, or all of them, came to.
#[derive(Debug, Default)]
struct Sums {
    samples: usize,
    /// Samples whose largest score is at the same place, if there are scores.
    agreeing: Option<usize>,
    outputs: Vec<Sqnr>,
    /// The same outputs, all channels alike.
    balanced: Vec<BalancedSqnr>,
    tensors: BTreeMap<String, Channels>,
    /// The first network's values on grids of the second.
    on_grids: BTreeMap<String, OnGrid>,
}

impl Sums {
    fn add(&mut self, chunk: Sums) {
        self.agreeing = match (self.samples, self.agreeing, chunk.agreeing) {
            (0, _, first) => first,
            (_, Some(before), Some(more)) => Some(before + more),
            _ => None,
        };
        self.samples += chunk.samples;
        self.outputs.iter_mut().zip(&chunk.outputs).for_each(|(sum, more)| sum.add(more));
        self.balanced.iter_mut().zip(&chunk.balanced).for_each(|(sum, more)| sum.merge(more));
        for (name, more) in chunk.tensors {
            match self.tensors.get_mut(&name) {
                Some(sum) => sum.add(&more),
                None => _ = self.tensors.insert(name, more),
            }
        }
        for (name, more) in chunk.on_grids {
            match self.on_grids.get_mut(&name) {
                Some(sum) => sum.add(&more),
                None => _ = self.on_grids.insert(name, more),
            }
        }
    }
}

/// Runs the second network on the chunk that the first one has seen.
fn chunk_sums(
    executor: &mut Executor<'_>,
    pair: &Pair<'_>,
    source: &Source<'_>,
    (first, mut seen_a): (usize, BTreeMap<String, Observed>),
    chunk: &Seen,
) -> Result<Sums, Error> {
    let (samples, [a, b]) = (chunk.batch.indices.len(), pair.sides);
    let mut shape = chunk.batch.shape.clone();
    let mut data = chunk.batch.data.clone();
    let size = Model::fixed_batch(a.graph).unwrap_or(1);
    if let Some(n) = shape.first_mut() {
        data.resize(data.len() / *n * size, 0.0);
        *n = size;
    }
    let mut sums = Sums { samples, ..Sums::default() };
    sums.on_grids.extend(on_grids(&pair.held, &Model::input(a.graph)?.name, &chunk.batch.data, &chunk.batch.shape));
    let mut misfit = None;
    let mut tap = |tensor: Tapped<'_>| {
        let Some(mut own) = seen_a.remove(tensor.name) else { return };
        let (name, other) = (tensor.name, Observed::of(tensor));
        if own.dims != other.dims {
            misfit.get_or_insert_with(|| format!("tensor `{name}`: {:?} and {:?}", own.dims, other.dims));
        } else if !own.values.is_empty() && !other.values.is_empty() {
            let real = |t: &Observed| rows(&t.dims, t.values.len(), size, samples);
            if let Some(factors) = pair.factors.get(name) {
                rescaling::scale(&mut own.values, &own.dims, factors);
            }
            let (values, others) = (&own.values[..real(&own)], &other.values[..real(&other)]);
            sums.tensors.insert(name.into(), Channels::of(values, others, &own.dims, first));
            sums.on_grids.extend(on_grids(&pair.held, name, values, &own.dims));
        }
    };
    let sample_error =
        |source_error| Error::Sample { sample: source.dataset.name(chunk.batch.indices[0]), source: source_error };
    let outputs = executor.run_tapped(&[Tensor::f32(&shape, data)], &mut tap).map_err(sample_error)?;
    if let Some(what) = misfit {
        return Err(mismatch(a, b, what));
    }
    for &(i, j) in &pair.outputs {
        let (first, second) = (&chunk.outputs[i], &outputs[j]);
        if first.dims != second.dims {
            let name = &a.graph.outputs[i].name;
            return Err(mismatch(a, b, format!("output `{name}`: {:?} and {:?}", first.dims, second.dims)));
        }
        let (first, second) = (floats(first), floats(second));
        let count = rows(&outputs[j].dims, first.len(), size, samples);
        let (first, second) = (&first[..count], &second[..count.min(second.len())]);
        sums.outputs.push(Sqnr::of(first, second));
        let mut balanced = BalancedSqnr::default();
        balanced.add(&outputs[j].dims, first, second);
        sums.balanced.push(balanced);
    }
    sums.agreeing = pair.outputs.first().and_then(|&(i, j)| agreeing(&chunk.outputs[i], &outputs[j], samples));
    Ok(sums)
}

/// The grids that hold the values of tensor `name`, and what they make of them.
fn on_grids(
    held: &GridsByValues<'_>,
    name: &str,
    values: &[f32],
    dims: &[usize],
) -> impl Iterator<Item = (String, OnGrid)> {
    let grids = held.get(name).into_iter().flatten();
    grids.filter_map(move |(grid, params)| Some((grid.to_string(), OnGrid::of(values, dims, 1, params)?)))
}

/// How many of `len` elements belong to the first `samples` of a batch of `size`. Where axis 0 is not the batch, all do.
fn rows(dims: &[usize], len: usize, size: usize, samples: usize) -> usize {
    if dims.first() == Some(&size) { len / size * samples } else { len }
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    match (tensor.as_f32(), tensor.to_i64()) {
        (Some(values), _) => values.to_vec(),
        (None, integers) => integers.unwrap_or_default().iter().map(|&i| i as f32).collect(),
    }
}

/// Samples of which both networks score the same class highest; a network for one image may leave out the batch axis.
fn agreeing(a: &Tensor, b: &Tensor, samples: usize) -> Option<usize> {
    let classes = match a.dims[..] {
        [scores] if samples == 1 && scores > 1 => scores,
        _ => classes(&a.dims)?,
    };
    let pairs = a.as_f32()?.chunks(classes).zip(b.as_f32()?.chunks(classes)).take(samples);
    let scored = |row: &[f32]| row.iter().any(|score| !score.is_nan());
    Some(pairs.filter(|(a, b)| scored(a) == scored(b) && top1(a) == top1(b)).count())
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
