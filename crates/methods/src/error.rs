//! What can go wrong in a method.

use fewbits_graph::GraphError;
use std::{error::Error, io};
use thiserror::Error;

/// An error of a method.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MethodError {
    /// A network that cannot be computed.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A sample that cannot be read.
    #[error("sample {sample} of the calibration data")]
    Sample {
        /// Its number.
        sample: usize,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The disk space for tensors that do not fit into memory.
    #[error("cannot {action} the temporary file that holds tensors of {samples} samples")]
    Spill {
        /// What was tried.
        action: &'static str,
        /// How many samples.
        samples: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The method cannot do this network, or not with these settings.
    #[error("{method}: {what}")]
    Unsupported {
        /// The method.
        method: &'static str,
        /// What it cannot do.
        what: String,
        /// What to do.
        hint: &'static str,
    },
}

impl MethodError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            MethodError::Graph(source) => source.hint(),
            MethodError::Spill { .. } => {
                Some("free some space in the folder for temporary files (TMPDIR), or use fewer --samples".into())
            }
            MethodError::Unsupported { hint, .. } => Some((*hint).into()),
            MethodError::Sample { .. } => None,
        }
    }
}
