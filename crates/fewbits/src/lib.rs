//! Fewbits turns a trained float convolutional network into one that runs in few bits, and keeps its accuracy: ONNX in, ONNX out.
//!
//! This crate is the facade over the rooms below it, and the only stable API. Libraries here never print: progress is an argument,
//! results are values.

pub mod bench;
pub mod compare;
pub mod demo;
pub mod drawn;
pub mod error;
pub mod evaluate;
pub mod export;
pub mod inspect;
pub mod latency;
pub mod methods;
pub mod model;
pub mod observe;
pub mod partial;
pub mod plan;
pub mod quantize;
pub mod refine;
pub mod report;
pub mod repro;
pub mod search;
pub mod sqnr;
pub mod stream;
pub mod summary;
pub mod train;

pub use error::Error;
pub use fewbits_methods::progress;
pub use model::Model;
