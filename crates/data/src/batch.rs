//! Samples prepared for a network: a data set and sample numbers enter, one tensor leaves, in that order.
//! It must not know what the batches are for.

use crate::{DataError, Dataset, Preprocess, Sample};
use std::path::Path;

/// Prepared samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Elements of `shape`, in C order.
    pub data: Vec<f32>,
    /// `[N, C, H, W]` for images, `[N, …]` for float arrays.
    pub shape: Vec<usize>,
    /// The number of each sample in the data set.
    pub indices: Vec<usize>,
    /// The class of each sample, where the data say it.
    pub labels: Vec<Option<usize>>,
    /// `(width, height)` of each image as stored, before preprocessing; `(0, 0)` for float arrays.
    pub original_sizes: Vec<(usize, usize)>,
}

impl Batch {
    /// Reads and prepares samples in the calling thread.
    pub fn read(dataset: &Dataset, preprocess: &Preprocess, indices: &[usize]) -> Result<Self, DataError> {
        let mut batch = Self {
            data: Vec::new(),
            shape: Vec::new(),
            indices: indices.to_vec(),
            labels: indices.iter().map(|&i| dataset.label(i)).collect(),
            original_sizes: Vec::with_capacity(indices.len()),
        };
        for &index in indices {
            let name = dataset.name(index);
            let (shape, data) = match dataset.read(index)? {
                Sample::Tensor { shape, data } => {
                    batch.original_sizes.push((0, 0));
                    (shape, data)
                }
                Sample::Image(image) => {
                    let prepared = preprocess.apply(&image, &name)?;
                    batch.original_sizes.push((image.width, image.height));
                    (prepared.shape.to_vec(), prepared.data)
                }
            };
            batch.push(&name, &shape, data, indices.len())?;
        }
        Ok(batch)
    }

    fn push(&mut self, name: &Path, shape: &[usize], data: Vec<f32>, count: usize) -> Result<(), DataError> {
        if self.shape.is_empty() {
            self.shape = std::iter::once(count).chain(shape.iter().copied()).collect();
            self.data.reserve_exact(data.len() * count);
        } else if self.shape[1..] != *shape {
            let expected = self.shape[1..].to_vec();
            return Err(DataError::MixedShapes { path: name.to_path_buf(), found: shape.to_vec(), expected });
        }
        self.data.extend(data);
        Ok(())
    }
}
