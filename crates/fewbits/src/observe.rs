//! The calibration pass: float samples through the network once, statistics of every placed tensor and the float outputs of the
//! first samples out.

use crate::{
    Error, Model,
    progress::Progress,
    stream::{Run, Source, stream},
};
use fewbits_graph::{
    Graph, Tensor,
    exec::{Mode, Tapped},
    op::{Fact, Layout, Slice},
};
use fewbits_quant::{
    Stats, TensorStats,
    stats::{ChannelStats, ImageStats},
};
use std::collections::BTreeMap;

/// Samples from which statistics by channel are taken.
const CHANNEL_SAMPLES: u64 = 32;

/// What the calibration pass leaves.
#[derive(Debug, Default)]
pub struct Observation {
    /// Statistics by tensor name.
    pub stats: Stats,
    /// Outputs of the float network for the first samples, one list per chunk of samples.
    pub references: Vec<Vec<Tensor>>,
}

/// Runs `source` through the float `graph` and gathers statistics of `tensors`, weighted by `weights` per channel too; keeps the outputs of the first `references`
/// chunks of samples.
///
/// # Errors
/// As [`stream`].
pub fn observe(
    graph: &Graph,
    tensors: Vec<String>,
    source: &Source<'_>,
    weights: &BTreeMap<String, Vec<u32>>,
    references: usize,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Observation, Error> {
    let size = Model::fixed_batch(graph).unwrap_or(1);
    let run = Run { graph, mode: Mode::Float, observed: tensors };
    let mut seen = Observation::default();
    progress.begin("calibrating", source.indices.len());
    stream(
        &run,
        source,
        threads,
        progress,
        |first| (first as u64, Vec::new()),
        |(first, images): &mut (u64, Vec<(String, Vec<ImageStats>)>), tensor: Tapped<'_>| {
            let Slice::F32(values) = tensor.values else { return };
            // Where axis 0 is not the batch, the whole tensor belongs to one sample.
            let count = if tensor.fact.dims.first() == Some(&size) { size } else { 1 };
            // Samples stand one behind the other in either memory order.
            let samples = values.chunks((values.len() / count).max(1)).zip(*first..);
            // Weights are per channel, so the channels must be the fastest axis.
            let by_channel = tensor.fact.layout == Layout::ChannelsLast || tensor.fact.dims.len() == 2;
            let weights = weights.get(tensor.name).filter(|_| by_channel).map_or(&[][..], Vec::as_slice);
            let stats = samples.map(|(values, image)| {
                let channels = (image < CHANNEL_SAMPLES).then(|| by_channels(values, tensor.fact, by_channel));
                ImageStats::of(values, image, weights).with_channels(channels)
            });
            let stats = stats.collect();
            images.push((tensor.name.to_string(), stats));
        },
        |(_, images), chunk| Ok((images, chunk)),
        |(images, chunk)| {
            let samples = chunk.batch.indices.len();
            for (name, stats) in images {
                let tensor = seen.stats.0.entry(name).or_insert_with(TensorStats::new);
                stats.iter().take(samples).for_each(|image| tensor.add(image));
            }
            if seen.references.len() < references {
                seen.references.push(chunk.outputs);
            }
            Ok(())
        },
    )?;
    progress.end();
    Ok(seen)
}

/// Statistics by channel of one sample.
fn by_channels(values: &[f32], fact: &Fact, fastest: bool) -> ChannelStats {
    let channels = fact.dims.get(1).copied().unwrap_or(1);
    if fastest { ChannelStats::of(values, channels) } else { ChannelStats::of_planes(values, channels) }
}
