//! Reverse mode over a static graph: forward in topological order, then each operator's vector-Jacobian product in reverse.

mod quantizer;

pub use quantizer::Quantizer;
