//! What training lays over a tensor: a function of each element with parameters that are learned.
//!
//! The tape calls it and owns the parameters; the methods that implement it live elsewhere.

use std::fmt::Debug;

/// A quantizer: every element of a tensor (or of one channel of it) is rounded to a grid, and gradients pass through by a
/// rule of its own.
///
/// `parameters` are the [`Quantizer::learned`] numbers that an optimizer changes, then the [`Quantizer::derived`] ones.
pub trait Quantizer: Debug + Send + Sync {
    /// How many numbers are learned for each group (a tensor, or a channel of a weight).
    fn learned(&self) -> usize;

    /// How many numbers are computed anew from the whole group at each step (weights only).
    fn derived(&self) -> usize {
        0
    }

    /// Computes the derived numbers of a group.
    fn derive(&self, _x: &[f32], _derived: &mut [f32]) {}

    /// `y = Q(x)`
    fn forward(&self, parameters: &[f32], x: &[f32], y: &mut [f32]);

    /// `dx = ∂L/∂x` from `dy = ∂L/∂y`, and `sums[i] += ∂L/∂parameters[i]` for the learned ones, gradient scale included.
    fn backward(&self, parameters: &[f32], x: &[f32], dy: &[f32], dx: &mut [f32], sums: &mut [f64]);

    /// Whether the smallest and largest element of each batch are wanted for [`Quantizer::follow`].
    fn follows_range(&self) -> bool {
        false
    }

    /// Moves learned numbers towards the range of a batch.
    fn follow(&self, _parameters: &mut [f32], _range: [f32; 2]) {}

    /// Brings the learned numbers back to where the quantizer is defined (a positive scale), after an optimizer's step.
    fn project(&self, _parameters: &mut [f32]) {}
}
