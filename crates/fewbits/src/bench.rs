//! How fast the engine runs a network.

use crate::{Error, Model};
use fewbits_graph::{
    Tensor,
    exec::{Executor, Mode},
    passes,
};
use fewbits_kernels::Threads;
use serde::Serialize;
use std::time::Instant;

/// Times of one network in one mode.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Timing {
    /// Threads that worked on one run.
    pub threads: usize,
    /// Images per run.
    pub batch: usize,
    /// Median of the timed runs.
    pub median_seconds: f64,
    /// Fastest of the timed runs.
    pub fastest_seconds: f64,
    /// Seconds for the first run: planning and packing of weights included.
    pub first_seconds: f64,
    /// Bytes of activations and scratch memory.
    pub buffer_bytes: usize,
}

/// Runs `model` in `mode` on `batch` made-up images, `runs` times after the first. A float network is prepared first, as
/// runtimes do it: batch normalizations are folded.
///
/// # Errors
/// [`Error::Graph`] if the network cannot be computed.
pub fn time(model: &Model, mode: Mode<'_>, batch: usize, runs: usize, threads: usize) -> Result<Timing, Error> {
    let threads = Threads::new(threads);
    let mut shapes = model.example_shapes();
    if Model::fixed_batch(&model.graph).is_none()
        && let Some(n) = shapes.first_mut().and_then(|shape| shape.first_mut())
    {
        *n = batch;
    }
    let example = |dims: &Vec<usize>| {
        let count: usize = dims.iter().product();
        Tensor::f32(dims, (0..count).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0).collect())
    };
    let inputs: Vec<Tensor> = shapes.iter().map(example).collect();
    let prepared = match mode {
        Mode::Float => passes::fold(&model.graph).map_err(Error::graph(&model.path))?.0,
        Mode::FakeQuant(_) | Mode::Integer(_) => model.graph.clone(),
    };
    let mut executor = Executor::new(&prepared, mode, &threads);
    let mut timed = || -> Result<f64, Error> {
        let start = Instant::now();
        executor.run(&inputs).map_err(Error::graph(&model.path))?;
        Ok(start.elapsed().as_secs_f64())
    };
    let first_seconds = timed()?;
    let mut seconds = (0..runs.max(1)).map(|_| timed()).collect::<Result<Vec<f64>, Error>>()?;
    seconds.sort_by(f64::total_cmp);
    Ok(Timing {
        threads: threads.count(),
        batch: shapes.first().and_then(|s| s.first()).copied().unwrap_or(1),
        median_seconds: seconds[seconds.len() / 2],
        fastest_seconds: seconds[0],
        first_seconds,
        buffer_bytes: executor.buffer_bytes(),
    })
}
