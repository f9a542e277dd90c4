//! Both networks on the same samples, side by side: a pair of them enters, sums over all samples leave. Memory is one set of tensors per
//! worker.

use super::{
    Side,
    on_grid::OnGrid,
    pairs::{GridsByValues, mismatch},
    rescaling::{self, Channels},
};
use crate::{
    Error, Model,
    progress::Progress,
    sqnr::{BalancedSqnr, Sqnr},
    stream::{Run, Seen, Source, stream},
};
use fewbits_data::metrics::top1;
use fewbits_graph::{
    Tensor,
    exec::{Executor, Tapped},
    op::Layout,
};
use fewbits_kernels::Threads;
use fewbits_methods::classes;
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// Two networks, and what of them belongs together.
pub(super) struct Pair<'a> {
    pub(super) sides: [Side<'a>; 2],
    /// Positions of outputs.
    pub(super) outputs: Vec<(usize, usize)>,
    /// Tensors that both compute.
    pub(super) names: Vec<String>,
    pub(super) held: GridsByValues<'a>,
    /// By what channels of the first network are multiplied in the second one, where they are.
    pub(super) factors: BTreeMap<String, Vec<f32>>,
}

/// Runs both networks on the samples of `source`.
pub(super) fn run(
    pair: &Pair<'_>,
    source: &Source<'_>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Sums, Error> {
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
pub(super) fn plain(values: &[f32], dims: &[usize]) -> Vec<f32> {
    let (channels, places) = (dims[1], dims[2..].iter().product::<usize>());
    let mut out = Vec::with_capacity(values.len());
    for sample in values.chunks_exact((channels * places).max(1)) {
        out.extend((0..channels).flat_map(|c| sample.iter().skip(c).step_by(channels)));
    }
    out
}

/// What one chunk of samples, or all of them, came to.
#[derive(Debug, Default)]
pub(super) struct Sums {
    pub(super) samples: usize,
    /// Samples whose largest score is at the same place, if there are scores.
    pub(super) agreeing: Option<usize>,
    pub(super) outputs: Vec<Sqnr>,
    /// The same outputs, all channels alike.
    pub(super) balanced: Vec<BalancedSqnr>,
    pub(super) tensors: BTreeMap<String, Channels>,
    /// The first network's values on grids of the second.
    pub(super) on_grids: BTreeMap<String, OnGrid>,
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
pub(super) fn rows(dims: &[usize], len: usize, size: usize, samples: usize) -> usize {
    if dims.first() == Some(&size) { len / size * samples } else { len }
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    match (tensor.as_f32(), tensor.to_i64()) {
        (Some(values), _) => values.to_vec(),
        (None, integers) => integers.unwrap_or_default().iter().map(|&i| i as f32).collect(),
    }
}

/// Samples of which both networks score the same class highest; a network for one image may leave out the batch axis.
pub(super) fn agreeing(a: &Tensor, b: &Tensor, samples: usize) -> Option<usize> {
    let classes = match a.dims[..] {
        [scores] if samples == 1 && scores > 1 => scores,
        _ => classes(&a.dims)?,
    };
    let pairs = a.as_f32()?.chunks(classes).zip(b.as_f32()?.chunks(classes)).take(samples);
    let scored = |row: &[f32]| row.iter().any(|score| !score.is_nan());
    Some(pairs.filter(|(a, b)| scored(a) == scored(b) && top1(a) == top1(b)).count())
}
