//! Training: quantizers with learned parameters, losses, optimizers, schedules, checkpoints and the loop that joins them.
//!
//! What enters: a float graph, quantizers laid over it by tensor name, batches of labelled images. What leaves: the values of
//! parameters and a log. It knows no files but checkpoints, and no command line.

pub mod checkpoint;
pub mod ema;
mod error;
pub mod loss;
pub mod network;
pub mod optimizer;
pub mod quantizers;
pub mod recipe;
pub mod schedule;
pub mod trainer;

pub use error::TrainError;
pub use fewbits_data::random;
