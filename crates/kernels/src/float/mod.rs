//! Float kernels (f32, NHWC).
//!
//! What enters: slices, their sizes, a [`crate::Threads`]. What leaves: filled slices, with the same bits for any number of
//! threads. Every kernel has a twin in [`mod@reference`].

pub mod activation;
pub mod batch_norm;
mod columns;
pub mod conv;
mod depthwise;
mod depthwise_backward;
mod direct;
pub mod elementwise;
pub mod fake_quant;
mod global_average;
mod input_gradient;
pub mod pool;
pub mod reference;
pub mod resize;
pub mod softmax;
mod sweep;
mod tile;
pub mod update;
pub mod vectors;
mod weight_gradient;

pub use activation::Activation;
pub use columns::add_columns;
pub use conv::{ConvPlan, Epilogue, PackedConv};
pub use depthwise_backward::DepthwiseBackward;
pub use elementwise::map;
pub use input_gradient::InputGradient;
pub use pool::{PoolGeometry, Pooling, pool};
pub use resize::{ResizeAxis, resize};
pub use softmax::softmax;
pub use weight_gradient::WeightGradient;

/// A pointer into an output slice whose tasks write disjoint parts.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: a plain address; whoever writes through it in a task shows that no other task touches those numbers.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// The address. A method, so that closures capture the `Sync` wrapper and not the pointer inside.
    fn get(self) -> *mut f32 {
        self.0
    }
}
