//! Data movement: the same elements in other places. No arithmetic on the elements, so everything is generic over `T: Copy`.
//!
//! What enters: slices in row-major order and plain dimensions. What leaves: filled slices. Index arithmetic is done once, when
//! a [`Take`] or a [`Transpose`] is made; running one is loops over copies. An axis here is an axis in memory.

mod join;
mod tables;
mod take;
mod transpose;

pub use join::{concat, concat_with, split};
pub use tables::{PadMode, pad, slice};
pub use take::{FILL, Take};
pub use transpose::Transpose;
