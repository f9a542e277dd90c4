//! How fast the engine runs a network.

use crate::{Error, Model};
use fewbits_graph::{
    Node, Tensor,
    exec::{Executor, Mode, Tapped},
    passes,
};
use fewbits_kernels::Threads;
use fewbits_search::LatencyTable;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

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

/// Made-up images, `batch` of them if the network leaves that open.
fn made_up(model: &Model, batch: usize) -> Vec<Tensor> {
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
    shapes.iter().map(example).collect()
}

/// Runs `model` in `mode` on `batch` made-up images, `runs` times after the first. A float network is prepared first, as
/// runtimes do it: batch normalizations are folded.
///
/// # Errors
/// [`Error::Graph`] if the network cannot be computed.
pub fn time(model: &Model, mode: Mode<'_>, batch: usize, runs: usize, threads: usize) -> Result<Timing, Error> {
    let threads = Threads::new(threads);
    let inputs = made_up(model, batch);
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
        batch: inputs.first().and_then(|input| input.dims.first()).copied().unwrap_or(1),
        median_seconds: seconds[seconds.len() / 2],
        fastest_seconds: seconds[0],
        first_seconds,
        buffer_bytes: executor.buffer_bytes(),
    })
}

/// Times of the layers of a quantized model for one image: the median over `runs` runs of the time until the tensor that a layer leads to is
/// there. Integer kernels take the same time for all widths up to 8 bits, so that each row stands for 8 bits and serves all.
///
/// # Errors
/// [`Error::Usage`] if the model is not quantized, [`Error::Graph`] if it cannot be computed.
pub fn latency_table(model: &Model, runs: usize, threads: usize) -> Result<LatencyTable, Error> {
    let Some(grids) = &model.grids else {
        return Err(Error::Usage {
            what: format!("`{}` is not quantized", model.path.display()),
            hint: "times are those of integer kernels: give the file that `fewbits quantize` wrote".into(),
        });
    };
    let graph = &model.graph;
    let watched: BTreeSet<&str> =
        graph.nodes.iter().map(Node::output).filter(|name| grids.0.contains_key(*name)).collect();
    let threads = Threads::new(threads);
    let mut executor =
        Executor::new(graph, Mode::Integer(grids), &threads).observing(watched.iter().map(|name| name.to_string()));
    let inputs = made_up(model, 1);
    let images = Model::fixed_batch(graph).unwrap_or(1) as u64;
    let mut times: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut totals = vec![];
    // The first run plans and packs.
    for run in 0..=runs.max(1) {
        let begun = Instant::now();
        let mut last = begun;
        let mut look = |seen: Tapped<'_>| {
            if run > 0 {
                times.entry(seen.name.to_string()).or_default().push(last.elapsed().as_nanos() as u64 / images);
            }
            last = Instant::now();
        };
        executor.run_tapped(&inputs, &mut look).map_err(Error::graph(&model.path))?;
        if run > 0 {
            totals.push(begun.elapsed().as_nanos() as u64 / images);
        }
    }
    let mut table = LatencyTable::default();
    for (i, node) in graph.nodes.iter().enumerate() {
        let has_grid = |input: usize| node.input(input).is_some_and(|name| grids.params(name).is_some());
        let is_weight = node.input(1).is_some_and(|name| graph.constant(name).is_some());
        if !(is_weight && has_grid(0) && has_grid(1)) {
            continue;
        }
        let leads_to = graph.nodes[i..].iter().map(Node::output).find(|name| watched.contains(name));
        let time = leads_to.and_then(|name| times.get_mut(name)).map_or(0, |times| median(times));
        table.layers.insert(node.name.clone(), BTreeMap::from([("8/8".to_string(), time)]));
    }
    let of_layers: u64 = table.layers.values().flat_map(BTreeMap::values).sum();
    table.rest = median(&mut totals).saturating_sub(of_layers);
    Ok(table)
}

fn median(times: &mut [u64]) -> u64 {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or(0)
}
