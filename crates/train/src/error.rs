//! What can go wrong while training.

use crate::{
    loss::LossError,
    optimizer::StateMismatch,
    quantizers::{NotDeployable, QuantizerError},
};
use fewbits_data::DataError;
use fewbits_graph::GraphError;
use std::path::PathBuf;
use thiserror::Error;

/// An error of training.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The network cannot be computed or has no gradient.
    #[error("the network cannot be trained")]
    Graph(#[from] GraphError),
    /// A batch cannot be made.
    #[error("a batch could not be made")]
    Data(#[from] DataError),
    /// The method cannot do what is asked.
    #[error(transparent)]
    Quantizer(#[from] QuantizerError),
    /// A tensor with a grid has no counterpart in the graph that is trained.
    #[error("tensor `{tensor}` exists after folding only")]
    Lost {
        /// Tensor name.
        tensor: String,
    },
    /// A quantizer cannot be run in integers.
    #[error("the quantizer of `{tensor}` has no integer form")]
    NotDeployable {
        /// Tensor name.
        tensor: String,
        /// Why.
        #[source]
        source: NotDeployable,
    },
    /// There are fewer images than a batch has.
    #[error("the data make no whole batch")]
    NoBatch,
    /// The loss cannot be computed.
    #[error("step {step}: no loss")]
    Loss {
        /// Step, counted from 0.
        step: usize,
        /// Why.
        #[source]
        source: LossError,
    },
    /// Training has diverged.
    #[error("step {step}: {what} of `{tensor}` is not finite")]
    NotFinite {
        /// Step, counted from 0.
        step: usize,
        /// Gradient or value.
        what: &'static str,
        /// Leaf name.
        tensor: String,
    },
    /// A checkpoint that cannot be read or written.
    #[error("checkpoint {}: {what}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// A checkpoint of another network or optimizer.
    #[error("the checkpoint belongs to another run")]
    State(#[from] StateMismatch),
}

impl TrainError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            TrainError::Graph(e) => e.hint(),
            TrainError::NotFinite { .. } | TrainError::Loss { source: LossError::NotFinite { .. }, .. } => {
                Some("lower --learning-rate, or clip gradients with --clip-norm 1".into())
            }
            TrainError::NotDeployable { .. } => {
                Some("evaluate it with fake quantization (`fewbits repro` does), or take lsq, lsq+ or lsq-bn".into())
            }
            TrainError::State(_) | TrainError::Checkpoint { .. } => {
                Some("start again without --resume, or in another --out folder".into())
            }
            _ => None,
        }
    }
}
