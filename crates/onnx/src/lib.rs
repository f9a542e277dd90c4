//! ONNX files ⇄ graphs.
//!
//! What enters: bytes of a model. What leaves: a [`Graph`](fewbits_graph::Graph) in canonical forms, and bytes again. Also
//! here: lifting QuantizeLinear / DequantizeLinear pairs into grids laid over a float graph, and emitting them. This is the
//! only room that sees protobuf. It knows no methods.

mod attribute;
mod codes;
mod compound;
mod emit;
mod error;
mod export;
mod guard;
mod import;
mod lift;
mod movement;
mod proto;
mod qlinear;
mod raise;
mod tensor;
mod versions;

pub use emit::{BITS_KEY, EmitOptions, emit_qdq};
pub use error::{MAX_OPSET, MIN_OPSET, OnnxError, TensorError};
pub use export::{export, write};
pub use import::{import, import_bytes};
pub use lift::{Kept, Lifted, lift};
pub use tensor::tensor_from_proto_bytes;
pub use versions::{MIN_EXPORT_OPSET, required_opset};
