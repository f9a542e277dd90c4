//! What cannot be built, and what to do about it.

use crate::names;
use fewbits_graph::GraphError;
use thiserror::Error;

/// An error of this crate.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ZooError {
    /// No architecture has this name.
    #[error("no architecture `{name}`")]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The architecture does not take images of this size.
    #[error("{architecture} takes no input of {channels}x{height}x{width}", channels = input[0], height = input[1], width = input[2])]
    Input {
        /// The architecture.
        architecture: &'static str,
        /// Channels, height, width.
        input: [usize; 3],
        /// Height and width must be multiples of it.
        multiple: usize,
    },
    /// Too few or too many classes.
    #[error("{0} classes")]
    Classes(usize),
    /// The architecture comes in one width only, or not in this one.
    #[error("{architecture} of width {width}")]
    Width {
        /// The architecture.
        architecture: &'static str,
        /// What was asked for.
        width: f32,
    },
    /// The graph cannot be computed.
    #[error("{architecture} cannot be built")]
    Graph {
        /// The architecture.
        architecture: &'static str,
        /// Why.
        #[source]
        source: GraphError,
    },
}

impl ZooError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            ZooError::Unknown { .. } => format!("the architectures are {}", names().join(", ")),
            ZooError::Input { multiple: 1, .. } => "give channels, height and width from 1 to 4096".into(),
            ZooError::Input { multiple, .. } => format!("height and width are multiples of {multiple}, up to 4096"),
            ZooError::Classes(_) => "give 1 to 65536 classes".into(),
            ZooError::Width { .. } => "mobilenet_v2 comes in widths from 0.1 to 4".into(),
            ZooError::Graph { source, .. } => return source.hint(),
        })
    }
}
