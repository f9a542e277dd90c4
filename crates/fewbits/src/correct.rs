//! Gathers what bias correction needs, for several choices of grids at once.

use crate::{
    Error, Model,
    progress::Progress,
    stream::{Run, Source, stream},
};
use fewbits_graph::{
    Graph, Grids, Tensor,
    exec::{Mode, Tapped, infer},
    op::Slice,
    ops::codes,
};
use fewbits_kernels::int::quantize::fake_quantize;
use fewbits_methods::bias_correction::{ChannelMeans, corrections, inputs};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Replacement constants by name.
pub type Patches = BTreeMap<String, Arc<Tensor>>;

/// Corrected biases of `graph` for each of `choices`, from one float pass over `source`.
///
/// # Errors
/// As [`stream`].
pub fn correct_biases(
    model: &Model,
    graph: &Graph,
    choices: &[Grids],
    source: &Source<'_>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Vec<Patches>, Error> {
    let observed: BTreeSet<String> = choices.iter().flat_map(|grids| inputs(graph, grids)).collect();
    let run = Run { graph, mode: Mode::Float, observed: observed.into_iter().collect() };
    let mut sums: Vec<BTreeMap<String, ChannelMeans>> = vec![BTreeMap::new(); choices.len()];
    progress.begin("correcting biases", source.indices.len());
    stream(
        &run,
        source,
        threads,
        progress,
        |_| Vec::new(),
        |seen: &mut Vec<(String, Vec<ChannelMeans>)>, tensor: Tapped<'_>| {
            seen.push((tensor.name.to_string(), means(&tensor, choices)));
        },
        |seen, _| Ok(seen),
        |seen| {
            for (name, means) in seen {
                for (sums, mean) in sums.iter_mut().zip(&means) {
                    sums.entry(name.clone()).or_default().add(mean);
                }
            }
            Ok(())
        },
    )?;
    progress.end();
    let facts = infer(graph, &model.example_shapes()).map_err(Error::graph(&model.path))?;
    let patches = choices.iter().zip(&sums).map(|(grids, sums)| {
        let means = sums.iter().map(|(name, sums)| (name.clone(), sums.means())).collect();
        corrections(graph, grids, &facts, &means)
    });
    Ok(patches.collect())
}

/// Channel means of an observed tensor under each choice of grids.
fn means(tensor: &Tapped<'_>, choices: &[Grids]) -> Vec<ChannelMeans> {
    let Slice::F32(values) = tensor.values else { return vec![ChannelMeans::default(); choices.len()] };
    let dims = tensor.fact.physical_dims();
    let plain;
    // Means want the channels last; a plain image (a graph input) is small enough to be reordered here.
    let (channels, values) = match (tensor.fact.layout, &dims[..]) {
        (fewbits_graph::op::Layout::Plain, &[n, c, h, w]) => {
            let mut moved = vec![0.0; values.len()];
            let order = fewbits_kernels::movement::Transpose::new(&[n, c, h * w], &[0, 2, 1]);
            order.run(&fewbits_kernels::Threads::new(1), values, &mut moved);
            plain = moved;
            (c, &plain[..])
        }
        (_, dims) => (dims.last().copied().unwrap_or(1), values),
    };
    let mut rounded = vec![0.0; values.len()];
    let means = choices.iter().map(|grids| match grids.params(tensor.name).and_then(codes::stored) {
        Some(grid) => {
            fake_quantize(values, &grid, &mut rounded);
            ChannelMeans::of(channels, values, &rounded)
        }
        None => ChannelMeans::of(channels, values, values),
    });
    means.collect()
}
