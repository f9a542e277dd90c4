//! Errors of this crate: what is wrong, in which tensor or node, in which file, and what the user can do about it.

use fewbits_graph::{GraphError, OpError};
use std::{io, path::PathBuf};
use thiserror::Error;

/// Why a tensor cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TensorError {
    /// A type that is unknown or has no fixed element size.
    #[error("data type {0} is not supported")]
    DataType(i32),
    /// A negative dimension, or more elements than memory could hold.
    #[error("dimensions {0:?} are negative or too large")]
    Dims(Vec<i64>),
    /// Dimensions and data disagree.
    #[error("dimensions {dims:?} need {expected} {unit}, the data holds {found}")]
    Length {
        /// Declared dimensions.
        dims: Vec<usize>,
        /// What they ask for.
        expected: usize,
        /// What there is.
        found: usize,
        /// What was counted.
        unit: &'static str,
    },
    /// A value outside its type.
    #[error("value {0} does not fit its element type")]
    Value(i32),
    /// An unusable reference to another file.
    #[error("external data `{location}`: {reason}")]
    External {
        /// The file as the model names it.
        location: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The other file cannot be read.
    #[error("external data `{}`", path.display())]
    ExternalRead {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why a model cannot be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// Something wrong in a file.
    #[error("model `{}`", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        #[source]
        source: Box<OnnxError>,
    },
    /// The file system refused.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not a protobuf message.
    #[error("not an ONNX model")]
    Decode(#[source] prost::DecodeError),
    /// Some other kind of file.
    #[error("not an ONNX model: {found}")]
    NotOnnx {
        /// What it looks like.
        found: &'static str,
        /// What the user can do.
        hint: &'static str,
    },
    /// An operator-set version outside 7–25.
    #[error("operator set version {0} is outside {MIN_OPSET} to {MAX_OPSET}")]
    Opset(i64),
    /// A valid model that uses something Fewbits does not read.
    #[error("{what} is not supported")]
    Unsupported {
        /// The feature.
        what: String,
        /// What the user can do.
        hint: &'static str,
    },
    /// A bad initializer or attribute tensor.
    #[error("tensor `{tensor}`")]
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong.
        #[source]
        source: TensorError,
    },
    /// A bad node.
    #[error("node `{node}` ({op_type})")]
    Node {
        /// Its name.
        node: String,
        /// Its operator.
        op_type: String,
        /// What is wrong.
        #[source]
        source: OpError,
    },
    /// A graph that is not well formed.
    #[error("malformed graph")]
    Graph(#[source] Box<GraphError>),
    /// A grid that does not fit the tensor it is laid over.
    #[error("quantization of tensor `{tensor}`: {reason}")]
    Grid {
        /// Its name.
        tensor: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A message beyond what protobuf can hold.
    #[error("the model takes {0} bytes, more than one protobuf message can hold")]
    TooLarge(usize),
}

/// Oldest operator set that is read.
pub const MIN_OPSET: i64 = 7;
/// Newest operator set that is read and written.
pub const MAX_OPSET: i64 = 25;

impl OnnxError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            OnnxError::File { source, .. } => return source.hint(),
            OnnxError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => "check the path".into(),
            OnnxError::Decode(_) => "the file may be truncated or of another format; export the model again".into(),
            OnnxError::NotOnnx { hint, .. } | OnnxError::Unsupported { hint, .. } => (*hint).into(),
            OnnxError::Opset(v) if *v < MIN_OPSET => {
                "convert the model with onnx.version_converter.convert_version(model, 13)".into()
            }
            OnnxError::Opset(_) => format!("export the model with operator set {MAX_OPSET} or older"),
            OnnxError::Tensor { source, .. } => match source {
                TensorError::ExternalRead { .. } => "the file with the weights must lie beside the model".into(),
                TensorError::Length { .. } => "the file may be damaged; export the model again".into(),
                _ => return None,
            },
            OnnxError::Graph(source) => return source.hint(),
            OnnxError::TooLarge(_) => "write it to a file: large weights then go to a second file beside it".into(),
            _ => return None,
        })
    }

    /// Wraps what a graph found wrong with itself.
    pub(crate) fn graph(source: GraphError) -> Self {
        OnnxError::Graph(Box::new(source))
    }

    /// Wraps an error with the name of the tensor it happened in.
    pub(crate) fn tensor(tensor: &str) -> impl FnOnce(TensorError) -> Self + use<> {
        let tensor = tensor.to_string();
        move |source| OnnxError::Tensor { tensor, source }
    }
}
