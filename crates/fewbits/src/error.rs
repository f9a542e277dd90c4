//! Every error a command can end with: what happened, to which file and node, and what to do about it.

use fewbits_data::DataError;
use fewbits_graph::GraphError;
use fewbits_methods::MethodError;
use fewbits_onnx::OnnxError;
use fewbits_quant::QuantError;
use fewbits_search::SearchError;
use fewbits_train::TrainError;
use std::{
    io,
    path::{Path, PathBuf},
};
use thiserror::Error;

/// An error of the facade.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A model file.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// Calibration or evaluation data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Ranges, plans, placement.
    #[error(transparent)]
    Quant(#[from] QuantError),
    /// A post-training method.
    #[error(transparent)]
    Method(#[from] MethodError),
    /// A search for bits.
    #[error(transparent)]
    Search(#[from] SearchError),
    /// Training.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// A network that cannot be computed.
    #[error("model `{}`", path.display())]
    Graph {
        /// The model file.
        path: PathBuf,
        /// Why.
        #[source]
        source: GraphError,
    },
    /// A network that refused a sample.
    #[error("sample `{}`", sample.display())]
    Sample {
        /// The sample.
        sample: PathBuf,
        /// Why.
        #[source]
        source: GraphError,
    },
    /// A file that cannot be written or read.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The model does not fit what is asked.
    #[error("model `{}`: {what}", path.display())]
    Model {
        /// The model file.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// A training would wipe out the state of one that was interrupted.
    #[error("`{}` holds a training that is not finished", folder.display())]
    Unfinished {
        /// The run folder.
        folder: PathBuf,
    },
    /// The flags do not fit together.
    #[error("{what}")]
    Usage {
        /// What is wrong.
        what: String,
        /// What to do.
        hint: String,
    },
}

impl Error {
    /// A graph error of the model at `path`.
    pub fn graph(path: &Path) -> impl Fn(GraphError) -> Error + '_ {
        move |source| Error::Graph { path: path.into(), source }
    }

    /// A file-system error at `path`.
    pub fn io<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Error + 'a {
        move |source| Error::Io { action, path: path.into(), source }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Onnx(e) => e.hint(),
            Error::Data(e) => e.hint(),
            Error::Quant(e) => e.hint(),
            Error::Method(MethodError::Sample { source, .. }) => source.downcast_ref::<Error>().and_then(Error::hint),
            Error::Method(e) => e.hint(),
            Error::Search(e) => e.hint(),
            Error::Train(e) => e.hint(),
            Error::Graph { source, .. } => source.hint(),
            Error::Sample { source: GraphError::Input { .. }, .. } => Some(
                "the prepared sample does not have the shape the network expects; see --resize, --resize-to, --crop and --letterbox"
                    .into(),
            ),
            Error::Sample { source, .. } => source.hint(),
            Error::Model { hint, .. } => Some((*hint).into()),
            Error::Unfinished { .. } => Some("add --resume to go on, or --overwrite to begin anew".into()),
            Error::Usage { hint, .. } => Some(hint.clone()).filter(|h| !h.is_empty()),
            Error::Io { .. } => None,
        }
    }
}
