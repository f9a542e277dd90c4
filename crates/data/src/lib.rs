//! Calibration and evaluation data: what a user points at enters, batches of prepared tensors and scores leave.
//!
//! ```text
//! path ─ Dataset::open ─► Dataset ─ Loader (+ Preprocess) ─► Batch ─ (a model) ─► metrics::TopK, detect + metrics::CocoEval
//! ```
//! This crate must not know models, graphs or quantization. All memory it holds is independent of the number of images
//! (beside one label and one path for each).

pub mod atomic;
mod dataset;
mod decode;
pub mod detect;

mod error;
mod jpeg;
mod loader;
pub mod metrics;

pub mod npy;
pub mod npz;
pub mod preprocess;
mod resize;
mod source;

pub use dataset::{Dataset, OpenOptions, Sample};
pub use decode::{Image, decode};
pub use error::DataError;
pub use loader::{Batch, Loader};
pub use preprocess::{Channels, Prepared, Preprocess, Resize};
pub use resize::resize_bilinear;
pub use source::coco::{Annotation, Coco};
