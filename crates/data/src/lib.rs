//! Calibration and evaluation data: what a user points at enters, batches of prepared tensors and scores leave.
//!
//! ```text
//! path ─ Dataset::open ─► Dataset ─ Batch::read (+ Preprocess) ─► Batch ─ (a model) ─► TopK, or detect::Decoder + coco_scores
//! ```
//! Nothing here starts a thread: whoever wants batches side by side calls `Batch::read` in workers of its own.
//! This crate must not know models, graphs or quantization. All memory it holds is independent of the number of images
//! (beside one label and one path for each).

pub mod atomic;
mod batch;
mod dataset;
mod decode;
pub mod detect;

mod error;
mod jpeg;
pub mod metrics;

pub mod npy;
pub mod npz;
pub mod preprocess;
mod resize;
mod source;

pub use batch::Batch;
pub use dataset::{Dataset, OpenOptions, Sample};
pub use decode::{Image, decode};
pub use error::DataError;
pub use preprocess::{Channels, Prepared, Preprocess, Resize};
pub use resize::resize_bilinear;
pub use source::coco::{Annotation, Coco};
