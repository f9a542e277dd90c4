//! Well-known convolutional architectures as graphs, initialised for training.
//!
//! A name and [`Options`] enter; a [`Graph`](fewbits_graph::Graph) leaves: batch normalization as nodes of its own, a symbolic
//! batch dimension, weights drawn from a seed, and metadata that say how images are prepared. Layers without an
//! effect at inference (dropout, stochastic depth) are left out. This room knows no files and no training.

mod architecture;
mod count;
mod demo;
mod efficientnet_b0;
mod error;
mod inverted_residual;
mod mixnet_s;
mod mobilenet_v2;
mod net;
mod random;
mod resnet;
mod swishnet;
mod yolov3;

pub use architecture::{ARCHITECTURES, Architecture, Options, find, names};
pub use count::{macs, parameters};
pub use error::ZooError;

#[cfg(test)]
mod tests;
