//! Graphs of operators, and the executor that runs them.
//!
//! What enters: nodes over named tensors, and the grids laid over them. What leaves: output tensors, and a stream of any
//! tensor that a tap asks for. This room knows no protobuf, no files and no methods.

pub mod attrs;
pub mod error;
pub mod exec;
pub mod graph;
pub mod grid;
mod kernel;
mod layout;
pub mod op;
pub mod ops;
pub mod passes;
pub mod tape;
pub mod tensor;

pub use attrs::{Attr, Attrs};
pub use error::{GraphError, OpError};
pub use graph::{Dim, Graph, Node, ValueInfo};
pub use grid::{Granularity, Grid, Grids, QuantParams, TensorQuant};
pub use op::Op;
pub use tensor::{DType, Data, Tensor};
