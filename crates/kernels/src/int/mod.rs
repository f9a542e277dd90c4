//! Integer kernels: u8 activations, i8 weights, i32 sums, results equal to ONNX Runtime's CPU kernels on every element.
//!
//! What enters: NHWC slices of `u8` with a scale and a zero point. What leaves: filled slices. Signed 8-bit activations are
//! held as `q + 128` with zero point `z + 128`, the same rewriting that ONNX Runtime does on x64.

pub mod conv;
mod dense;
mod depthwise;
pub mod elementwise;
pub mod isa;
pub mod lookup;
pub mod pool;
pub mod quantize;
pub mod reference;
pub mod softmax;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use conv::{PackedQConv, Requantize};
pub use isa::Isa;
pub use quantize::GridParams;
