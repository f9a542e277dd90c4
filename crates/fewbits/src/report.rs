//! The report of a quantization.

use crate::{
    Error, Model,
    evaluate::Scores,
    progress::Progress,
    quantize::{Quantized, Settings},
    stream::Source,
    summary::Summary,
};
use std::path::Path;

pub fn write(
    _path: &Path,
    _model: &Model,
    _quantized: &Quantized,
    _settings: &Settings,
    _source: &Source<'_>,
    _summary: &Summary,
    _scores: &[(&str, &Scores)],
    _threads: usize,
    _progress: &dyn Progress,
) -> Result<(), Error> {
    Ok(())
}
