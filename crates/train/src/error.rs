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
    /// A normalization that ships in the weight of the layer behind it, which is rounded without it in training.
    #[error("BatchNormalization `{norm}` would be folded into the layer `{layer}` behind it")]
    NormBefore {
        /// Its node.
        norm: String,
        /// The layer's.
        layer: String,
    },
    /// An output that says nothing of classes.
    #[error("the first output has the shape {dims:?}; training needs one score for each class")]
    NoClassifier {
        /// Its shape, for one image.
        dims: Vec<usize>,
    },
    /// The teacher cannot be computed on the network's images.
    #[error("the teacher does not take the images that the network is trained on")]
    Teacher(#[source] GraphError),
    /// A quantizer cannot be run in integers.
    #[error("the quantizer of `{tensor}` has no integer form")]
    NotDeployable {
        /// Tensor name.
        tensor: String,
        /// Why.
        #[source]
        source: NotDeployable,
    },
    /// Ranges would be watched until the training is over.
    #[error("a phase has {batches} batches, and qat watches {delay} before it rounds activations")]
    Delay {
        /// Of the phase.
        batches: usize,
        /// Batches that are watched.
        delay: u32,
    },
    /// There are fewer images than a step takes.
    #[error("there are fewer training images than a step takes")]
    NoBatch,
    /// A class that the network does not have.
    #[error("`{}` has class {label}, the network has {classes} classes", sample.display())]
    Label {
        /// The sample.
        sample: PathBuf,
        /// Its class.
        label: usize,
        /// Length of the network's output.
        classes: usize,
    },
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
    /// A checkpoint of another run.
    #[error("the run that is to go on has {what}")]
    OtherRun {
        /// What differs.
        what: &'static str,
    },
    /// A checkpoint that cannot be read or written.
    #[error("checkpoint {}: {what}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// The log of the training.
    #[error("cannot write `{}`", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
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
            TrainError::Teacher(_) | TrainError::Loss { source: LossError::Teacher { .. }, .. } => {
                Some("--distill needs a network with the same input and classes, for any batch size".into())
            }
            TrainError::State(_) | TrainError::OtherRun { .. } | TrainError::Checkpoint { .. } => Some(
                "name another --out folder; `train` begins anew in this one with --overwrite in place of --resume"
                    .into(),
            ),
            TrainError::Quantizer(QuantizerError::Bits { .. }) => {
                Some("sawb has weights of 2 to 5 and 8 bits, the others have 2 to 8".into())
            }
            TrainError::Quantizer(QuantizerError::ZeroPoints { .. }) => {
                Some("take lsq, lsq+ or lsq-bn, or another --target".into())
            }
            TrainError::NoClassifier { .. } => Some("classifiers alone can be trained, [N, classes]".into()),
            TrainError::Lost { .. } | TrainError::NormBefore { .. } => {
                Some("take --fold merged, which folds normalizations before training, or --method float".into())
            }
            TrainError::Delay { .. } => Some("give a smaller --delay, or more --epochs".into()),
            TrainError::NoBatch => Some("give a smaller --batch, or fewer batches to --accumulate".into()),
            TrainError::Label { .. } => {
                Some("class indices count from 0; `fewbits zoo ARCH --classes N` makes a network for N classes".into())
            }
            TrainError::Data(e) => e.hint(),
            _ => None,
        }
    }
}
