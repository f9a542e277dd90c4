//! Calibration without data: images made by the network's own BatchNormalizations, as a data set.

use crate::{Error, Model, progress::Progress};
use fewbits_data::{Dataset, Preprocess};
use fewbits_graph::passes;
use fewbits_kernels::Threads;
use fewbits_methods::zeroq_data::{Config, Pixels, draw};

/// Mean of the pixels of photographs, 0…255.
const MEAN: f32 = 115.0;
/// Their standard deviation.
const DEVIATION: f32 = 58.0;

/// Prepared images for `model`, as many as `config` says. `preprocess`, if known, says what pixels can be.
///
/// # Errors
/// [`Error::Method`] if the network has no BatchNormalization to go by; [`Error::Graph`] if it cannot be prepared.
pub fn dataset(
    model: &Model,
    preprocess: Option<&Preprocess>,
    config: &Config,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Dataset, Error> {
    let graph = passes::trainable(&model.graph, false).map_err(Error::graph(&model.path))?;
    let mut shape = model.example_shapes().into_iter().next().unwrap_or_default();
    if let Some(images) = shape.first_mut() {
        *images = 1;
    }
    let channels = shape.get(1).copied().unwrap_or_default();
    let pixels = preprocess.map_or(vec![], |preprocess| (0..channels).map(|c| pixels(preprocess, c)).collect());
    let config = Config { pixels, ..config.clone() };
    let images = draw(&graph, &shape, &config, &Threads::new(threads), progress)?;
    let rows = images.into_iter().flatten().filter_map(|image| image.as_f32().map(<[f32]>::to_vec)).collect();
    Ok(Dataset::from_tensors(shape[1..].to_vec(), rows))
}

/// What `preprocess` makes of the pixels of photographs, in a channel.
fn pixels(preprocess: &Preprocess, channel: usize) -> Pixels {
    let of = |values: &[f32], default| values.get(channel).or(values.last()).copied().unwrap_or(default);
    let (mean, std) = (of(&preprocess.mean, 0.0), of(&preprocess.std, 1.0));
    let prepared = |pixel: f32| (pixel / preprocess.scale - mean) / std;
    let deviation = (DEVIATION / preprocess.scale / std).abs();
    let [black, white] = [0.0, 255.0].map(prepared);
    Pixels { mean: prepared(MEAN), deviation, least: black.min(white), most: black.max(white) }
}
