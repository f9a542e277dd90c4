//! Calibration, evaluation and training data: what a user points at enters, batches of prepared tensors and scores leave.
//!
//! ```text
//! path ─ Dataset::open ─► Dataset ─ Batch::read (+ Preprocess) ─► Batch ─ (a model) ─► TopK, or detect::Decoder + coco_scores
//!                         Dataset ─ Loader::epoch (+ Preprocess, Augment, seed) ─► LabelledBatch ─ (training)
//! ```
//! Only [`Loader`] starts threads: whoever wants `Batch::read` side by side calls it in workers of its own.
//! This crate must not know models, graphs or quantization. All memory it holds is independent of the number of images
//! (beside one label and one path for each, and the loader's cache of bounded size).

mod augment;
mod batch;
mod dataset;
mod decode;
pub mod detect;
mod error;
mod framing;
mod jpeg;
mod loader;
pub mod metrics;

pub mod npy;
pub mod npz;
pub mod preprocess;
pub mod random;
mod resize;
mod source;

pub use augment::{Augment, RandomCrop};
pub use batch::Batch;
pub use dataset::{Dataset, OpenOptions, Sample};
pub use decode::{Image, decode};
pub use error::DataError;
pub use framing::Framing;
pub use loader::{Epoch, LabelledBatch, Loader, LoaderOptions};
pub use preprocess::{Channels, Prepared, Preprocess, Resize};
pub use resize::resize_bilinear;
pub use source::coco::{Annotation, Coco};
