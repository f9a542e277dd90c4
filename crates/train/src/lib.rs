//! Training: quantizers with learned parameters, losses, optimizers, schedules, checkpoints and the loop that joins them.
//!
//! What enters: a float graph, quantizers laid over it by tensor name, batches of labelled images. What leaves: the values of
//! parameters and a log. It knows no files but checkpoints, and no command line.

pub mod quantizers;
