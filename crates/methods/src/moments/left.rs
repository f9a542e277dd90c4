//! Layers that have no moments.

use super::Moments;
use crate::{Draft, Layer, MethodError, Walk};
use std::sync::{Mutex, PoisonError};

/// Weights of the layers that a method leaves as they are, since there are no moments for them.
#[derive(Debug, Default)]
pub struct Left(Mutex<Vec<String>>);

impl Left {
    /// The moments of `layer`, which is noted where there are none.
    ///
    /// # Errors
    /// Those of [`Moments::of`].
    pub fn moments(&self, walk: &Walk<'_>, draft: &Draft, layer: &Layer) -> Result<Option<Moments>, MethodError> {
        let moments = Moments::of(walk, draft, layer)?;
        if moments.is_none() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(layer.weight.clone());
        }
        Ok(moments)
    }

    /// A line that names them, if there are any.
    pub fn findings(&self) -> Vec<String> {
        let left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if left.is_empty() {
            return vec![];
        }
        let names = left.join(", ");
        vec![format!("left as they were, being no convolutions or products of a size that it takes: {names}")]
    }
}
