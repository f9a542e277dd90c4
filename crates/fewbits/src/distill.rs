//! Calibration without data: images made by the network's own BatchNormalizations, as a data set.

use crate::{Error, Model, progress::Progress};
use fewbits_data::Dataset;
use fewbits_graph::passes;
use fewbits_kernels::Threads;
use fewbits_methods::zeroq_data::{Config, distill};

/// Prepared images for `model`, as many as `config` says.
///
/// # Errors
/// [`Error::Method`] if the network has no BatchNormalization to go by; [`Error::Graph`] if it cannot be prepared.
pub fn dataset(model: &Model, config: &Config, threads: usize, progress: &dyn Progress) -> Result<Dataset, Error> {
    let graph = passes::trainable(&model.graph, false).map_err(Error::graph(&model.path))?;
    let mut shape = model.example_shapes().into_iter().next().unwrap_or_default();
    if let Some(images) = shape.first_mut() {
        *images = 1;
    }
    let images = distill(&graph, &shape, config, &Threads::new(threads), progress)?;
    let rows = images.into_iter().flatten().filter_map(|image| image.as_f32().map(<[f32]>::to_vec)).collect();
    Ok(Dataset::from_tensors(shape[1..].to_vec(), rows))
}
