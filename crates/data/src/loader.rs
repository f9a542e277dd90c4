//! Batches, prepared ahead of their use: a data set and sample numbers enter, tensors leave in that order.
//! It must not know what the batches are for.

use std::{
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
    thread,
};

use crate::{DataError, Dataset, Preprocess, Sample};

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

/// An iterator over batches that background threads prepare while the caller computes.
///
/// Thread `t` of `T` makes the batches `t, t + T, t + 2T …` and keeps at most one finished batch waiting; the iterator
/// takes from the threads in turn. Order and content therefore do not depend on `T`, and at most `2T` batches are in
/// memory. The first error ends the iteration.
#[derive(Debug)]
pub struct Loader {
    queues: Vec<Receiver<Result<Batch, DataError>>>,
    next: usize,
    batches: usize,
}

impl Loader {
    /// Starts `threads` threads (at least one) over `indices`; the last batch may be shorter than `batch_size`.
    pub fn new(
        dataset: Arc<Dataset>,
        preprocess: Preprocess,
        indices: Vec<usize>,
        batch_size: usize,
        threads: usize,
    ) -> Self {
        let batch_size = batch_size.max(1);
        let batches = indices.len().div_ceil(batch_size);
        let threads = threads.clamp(1, batches.max(1));
        let work = Arc::new((dataset, preprocess, indices));
        let start = |thread: usize| {
            let (sender, receiver) = sync_channel(1);
            let work = Arc::clone(&work);
            thread::spawn(move || {
                let (dataset, preprocess, indices) = &*work;
                for part in indices.chunks(batch_size).skip(thread).step_by(threads) {
                    // A closed channel means that nobody wants more.
                    if sender.send(Batch::read(dataset, preprocess, part)).is_err() {
                        break;
                    }
                }
            });
            receiver
        };
        Self { queues: (0..threads).map(start).collect(), next: 0, batches }
    }
}

impl Iterator for Loader {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next == self.batches {
            return None;
        }
        let batch = self.queues[self.next % self.queues.len()].recv().expect("a thread sends every batch of its turn");
        self.next = if batch.is_ok() { self.next + 1 } else { self.batches };
        Some(batch)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.batches - self.next;
        (if left == 0 { 0 } else { 1 }, Some(left))
    }
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
