//! Errors of this crate: a cheap [`OpError`] made inside an operator, wrapped once with the node it happened in.

use crate::{graph::Node, op::Fact, tensor::DType};
use thiserror::Error;

/// What an operator can say about its inputs and attributes.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum OpError {
    /// A required input is absent.
    #[error("input {index} is missing")]
    MissingInput {
        /// Position of the input.
        index: usize,
    },
    /// An input that must be known before the run is not.
    #[error("input {index} must be a constant")]
    NotConstant {
        /// Position of the input.
        index: usize,
    },
    /// Wrong element type.
    #[error("input {index} is {found}, expected {expected}")]
    DType {
        /// Position of the input.
        index: usize,
        /// What it should be.
        expected: DType,
        /// What it is.
        found: DType,
    },
    /// Wrong number of axes.
    #[error("input {index} has rank {found}, expected {expected}")]
    Rank {
        /// Position of the input.
        index: usize,
        /// What it should be.
        expected: usize,
        /// What it is.
        found: usize,
    },
    /// Shapes that do not fit one another.
    #[error("{what}: {left:?} does not fit {right:?}")]
    Shapes {
        /// What was compared.
        what: &'static str,
        /// One shape.
        left: Vec<usize>,
        /// The other.
        right: Vec<usize>,
    },
    /// An attribute of the wrong type or out of range.
    #[error("attribute `{name}`: {reason}")]
    Attribute {
        /// Its name.
        name: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Something valid that Fewbits does not compute.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// The operator is unknown: it is carried through, but cannot run.
    #[error("operator `{0}` is unknown to Fewbits and cannot be run")]
    Unknown(String),
}

/// An error of a graph, located.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GraphError {
    /// An operator refused its inputs.
    #[error("node `{node}` ({op}) with inputs [{inputs}]")]
    Node {
        /// Node name.
        node: String,
        /// Operator type.
        op: String,
        /// Names, types and shapes of the inputs.
        inputs: String,
        /// Why.
        #[source]
        source: Box<OpError>,
    },
    /// A tensor that nothing produces.
    #[error("tensor `{tensor}`, read by node `{node}`, is produced by no node and is no input")]
    Dangling {
        /// Tensor name.
        tensor: String,
        /// Its reader.
        node: String,
    },
    /// The nodes form a cycle.
    #[error("the graph has a cycle through node `{node}`")]
    Cycle {
        /// A node on the cycle.
        node: String,
    },
    /// Two producers of one tensor.
    #[error("tensor `{tensor}` is produced twice")]
    Duplicate {
        /// Tensor name.
        tensor: String,
    },
    /// A graph input was not given or does not fit.
    #[error("input `{name}` expects {expected}, got {found}")]
    Input {
        /// Input name.
        name: String,
        /// Declared type and shape.
        expected: String,
        /// Given type and shape.
        found: String,
    },
    /// A network that cannot be trained on batches of images.
    #[error("network `{name}` does not compute the images of a batch apart: {reason}")]
    Batch {
        /// Graph name.
        name: String,
        /// What does not.
        reason: String,
    },
    /// A name that is not in the graph.
    #[error("the graph has no tensor `{0}`")]
    NoTensor(String),
}

impl GraphError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            GraphError::Node { node, source, .. } if matches!(**source, OpError::Unknown(_)) => {
                Some(format!("cut the model before `{node}`, or run it in ONNX Runtime"))
            }
            GraphError::Batch { .. } => {
                Some("export the model with a dynamic batch axis in front of every tensor".into())
            }
            GraphError::Input { .. } => Some("`fewbits inspect` prints the inputs of a model".into()),
            _ => None,
        }
    }
}

impl GraphError {
    /// What the operator of `node` says; `fact`: what is known of a tensor.
    pub(crate) fn at<'f>(node: &Node, fact: impl Fn(&str) -> Option<&'f Fact>, source: OpError) -> Self {
        let describe = |name: &String| match (name.as_str(), fact(name)) {
            ("", _) => "none".into(),
            (name, Some(fact)) => format!("{name}: {} {:?}", fact.dtype, fact.dims),
            (name, None) => name.into(),
        };
        let inputs = node.inputs.iter().map(describe).collect::<Vec<_>>().join(", ");
        GraphError::Node { node: node.name.clone(), op: node.op.name().into(), inputs, source: source.into() }
    }
}
