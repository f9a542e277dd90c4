//! From a float graph and grids to the ONNX file of a target.

use crate::{Error, Model};
use fewbits_data::{Preprocess, preprocess::METADATA_KEY};
use fewbits_graph::{Graph, Grids};
use fewbits_onnx::EmitOptions;
use fewbits_quant::target::Target;
use std::path::Path;

/// Oldest operator set with per-channel scales.
const QDQ_OPSET: i64 = 13;

/// Metadata key of the settings that a file was quantized with, as JSON.
pub const SETTINGS_KEY: &str = "fewbits.settings";

/// The QDQ graph of `graph` under `grids`, with settings and preprocessing in its metadata.
///
/// # Errors
/// [`Error::Onnx`] if the grids do not fit the graph.
pub fn qdq(
    graph: &Graph,
    grids: &Grids,
    target: &Target,
    settings: &serde_json::Value,
    preprocess: Option<&Preprocess>,
) -> Result<Graph, Error> {
    let options = EmitOptions { float_bias: target.float_bias, ..EmitOptions::default() };
    let mut qdq = fewbits_onnx::emit_qdq(graph, grids, &options)?;
    qdq.metadata.insert(SETTINGS_KEY.into(), settings.to_string());
    if let Some(preprocess) = preprocess {
        let text = serde_json::to_string(preprocess).expect("numbers and names are valid JSON");
        qdq.metadata.insert(METADATA_KEY.into(), text);
    }
    Ok(qdq)
}

/// Writes a graph as an ONNX file; the file appears only when it is complete.
///
/// # Errors
/// [`Error::Onnx`] if the file cannot be written.
pub fn write(path: &Path, qdq: &Graph) -> Result<u64, Error> {
    fewbits_onnx::write(path, qdq, qdq.opset.max(QDQ_OPSET))?;
    Ok(std::fs::metadata(path).map_err(Error::io("read back", path))?.len())
}

/// The model that the file of `qdq` would hold.
///
/// # Errors
/// [`Error::Onnx`] if it cannot be written or read.
pub fn read_back(qdq: &Graph) -> Result<Model, Error> {
    Model::from_bytes(&qdq.name, &fewbits_onnx::export(qdq, qdq.opset.max(QDQ_OPSET))?)
}
