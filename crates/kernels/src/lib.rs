//! Pure functions on slices: convolution, matrix product, pooling, elementwise maths and quantization.
//!
//! What enters: slices of `f32` / `u8` / `i32` in NHWC order and plain numbers. What leaves: filled slices.
//! This room knows no graph, no tensor type and no file. It is the only room with `unsafe`. Every fast kernel has a plain
//! `reference` twin and a test that holds the two together.

pub mod broadcast;
pub mod chunks;
pub mod conv_transpose;
pub mod float;
pub mod geometry;
pub mod int;
pub mod interpolate;
pub mod max_indices;
pub mod mix;
pub mod moments;
pub mod movement;
pub mod reduce;
pub mod simd;
pub mod threads;

pub use geometry::ConvGeometry;
pub use threads::Threads;
