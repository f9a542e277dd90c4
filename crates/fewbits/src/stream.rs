//! Samples of a data set through a network, one after the other for the caller, side by side on the cores.
//!
//! Each worker decodes, prepares and computes whole samples by itself, so that decoding overlaps computing, nothing waits inside a
//! layer, and memory is one set of activations per worker however many samples there are. Results are handed over in sample order:
//! nothing depends on the number of workers.

use crate::{Error, model::Model, progress::Progress};
use fewbits_data::{Batch, DataError, Dataset, Preprocess};
use fewbits_graph::{
    Graph, Tensor,
    exec::{Executor, Mode, Tap, Tapped},
};
use fewbits_kernels::Threads;
use std::{
    collections::BTreeMap,
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
};

/// A data set with the way it is prepared and the samples chosen from it.
#[derive(Debug)]
pub struct Source<'a> {
    /// Where samples come from.
    pub dataset: &'a Dataset,
    /// What is done to images.
    pub preprocess: &'a Preprocess,
    /// Which samples, in order.
    pub indices: Vec<usize>,
}

impl Source<'_> {
    /// What files made from these samples state of their preprocessing: nothing if the images came prepared.
    pub fn stated(&self) -> Option<&Preprocess> {
        (!self.dataset.is_prepared()).then_some(self.preprocess)
    }

    /// The samples `indices` as an input of batch size `size`, and what was read. A network with a fixed batch size gets missing samples
    /// as zeros.
    ///
    /// # Errors
    /// Errors of the data.
    pub fn tensor(&self, indices: &[usize], size: usize) -> Result<(Tensor, Batch), DataError> {
        let batch = Batch::read(self.dataset, self.preprocess, indices)?;
        let (mut shape, mut data) = (batch.shape.clone(), batch.data.clone());
        if shape.first().is_some_and(|&n| n < size) {
            data.resize(data.len() / shape[0] * size, 0.0);
            shape[0] = size;
        }
        Ok((Tensor::f32(&shape, data), batch))
    }
}

/// One graph in one mode, and the tensors to look at.
#[derive(Clone, Debug)]
pub struct Run<'a> {
    /// The network.
    pub graph: &'a Graph,
    /// How it is computed.
    pub mode: Mode<'a>,
    /// Tensors shown to the tap.
    pub observed: Vec<String>,
}

/// What a worker sees of one chunk of samples.
#[derive(Debug)]
pub struct Seen {
    /// The prepared samples and their labels.
    pub batch: Batch,
    /// The outputs of the network, in graph order.
    pub outputs: Vec<Tensor>,
}

/// Runs every chunk of samples of `source` and calls in the worker: `start` with the position of the chunk's first sample,
/// `look` for each observed tensor, `finish` when the chunk is through; and in the caller's thread, in sample order, `sink`.
///
/// Chunks hold as many samples as the network's batch size if that is fixed, else one.
///
/// # Errors
/// The first error in sample order: of the data, of the network, or of `sink`.
#[expect(clippy::too_many_arguments, reason = "one worker's life in four closures")]
pub fn stream<S, R: Send>(
    run: &Run<'_>,
    source: &Source<'_>,
    threads: usize,
    progress: &dyn Progress,
    start: impl Fn(usize) -> S + Sync,
    look: impl Fn(&mut S, Tapped<'_>) + Sync,
    finish: impl Fn(S, Seen) -> Result<R, Error> + Sync,
    mut sink: impl FnMut(R) -> Result<(), Error>,
) -> Result<(), Error> {
    let size = Model::fixed_batch(run.graph).unwrap_or(1);
    let chunks: Vec<&[usize]> = source.indices.chunks(size).collect();
    let workers = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let workers = workers.clamp(1, chunks.len().max(1));
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (sender, receiver) = sync_channel(workers);
    let work = |sender: SyncSender<(usize, Result<R, Error>)>| {
        let one = Threads::new(1);
        let mut executor = Executor::new(run.graph, run.mode, &one).observing(run.observed.iter().cloned());
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(indices) = chunks.get(i).filter(|_| !stop.load(Ordering::Relaxed)) else { break };
            let mut state = start(i * size);
            let seen = compute(
                &mut executor,
                run.graph,
                source,
                indices,
                size,
                &mut Collect { state: &mut state, look: &look },
            );
            let result = seen.and_then(|seen| finish(state, seen));
            if sender.send((i, result)).is_err() {
                break;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..workers {
            let sender = sender.clone();
            let work = &work;
            scope.spawn(move || work(sender));
        }
        // The workers hold the channel open now.
        drop(sender);
        let mut waiting = BTreeMap::new();
        for wanted in 0..chunks.len() {
            let result = loop {
                if let Some(result) = waiting.remove(&wanted) {
                    break result;
                }
                let (i, result) = receiver.recv().expect("every chunk is sent by a worker");
                waiting.insert(i, result);
            };
            if let Err(error) = result.and_then(&mut sink) {
                stop.store(true, Ordering::Relaxed);
                drop(receiver);
                return Err(error);
            }
            progress.step();
        }
        Ok(())
    })
}

/// Runs every chunk of samples of `source` through `graph` and calls `sink` with its outputs, in sample order.
///
/// # Errors
/// As [`stream`].
pub fn outputs(
    graph: &Graph,
    mode: Mode<'_>,
    source: &Source<'_>,
    threads: usize,
    progress: &dyn Progress,
    sink: impl FnMut(Seen) -> Result<(), Error>,
) -> Result<(), Error> {
    let run = Run { graph, mode, observed: vec![] };
    stream(&run, source, threads, progress, |_| (), |(), _| {}, |(), seen| Ok(seen), sink)
}

fn compute(
    executor: &mut Executor<'_>,
    graph: &Graph,
    source: &Source<'_>,
    indices: &[usize],
    size: usize,
    tap: &mut dyn Tap,
) -> Result<Seen, Error> {
    Model::input(graph)?;
    let (input, batch) = source.tensor(indices, size)?;
    let sample_error = |source_error| Error::Sample { sample: source.dataset.name(indices[0]), source: source_error };
    let outputs = executor.run_tapped(&[input], tap).map_err(sample_error)?;
    Ok(Seen { batch, outputs })
}

struct Collect<'a, S, F> {
    state: &'a mut S,
    look: &'a F,
}

impl<S, F: Fn(&mut S, Tapped<'_>)> Tap for Collect<'_, S, F> {
    fn observe(&mut self, tensor: Tapped<'_>) {
        (self.look)(self.state, tensor);
    }
}
