//! Batches for training, made ahead in the background: a data set, preprocessing and augmentation enter, labelled batches
//! leave in an order that the seed and the epoch fix. It must not know what the batches are for.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, sync_channel},
    },
    thread::{self, JoinHandle},
};

use crate::{Augment, DataError, Dataset, Image, Preprocess, Sample, random::Random};

/// Decoded pixels are kept up to this many bytes; what does not fit is decoded in every epoch.
const CACHE_BYTES: usize = 1 << 30;

/// Finished batches that wait for each worker, beside the one it works on.
const AHEAD: usize = 2;

/// How the samples of an epoch become batches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoaderOptions {
    /// Samples in a batch, at least 1.
    pub batch: usize,
    /// The key of everything random.
    pub seed: u64,
    /// Whether each epoch has an order of its own; else samples come as they are numbered.
    pub shuffle: bool,
    /// Whether a last batch that is not full is left out.
    pub drop_last: bool,
    /// How many samples ([`Dataset::subset`]); `None` for all.
    pub limit: Option<usize>,
    /// Background threads, at least 1. They do not change the batches.
    pub workers: usize,
}

/// Prepared samples and their classes. When it is dropped, its memory is used for a later batch.
#[derive(Debug)]
pub struct LabelledBatch {
    /// Elements of `shape`, in C order.
    pub data: Vec<f32>,
    /// `[N, C, H, W]` for images, `[N, …]` for float arrays.
    pub shape: Vec<usize>,
    /// The class of each sample.
    pub labels: Vec<usize>,
    source: Arc<Source>,
}

/// Makes epochs of batches. Cheap to clone; clones share the cache.
///
/// Sample `i` in epoch `e` is augmented by the stream of `(seed, e, i)`, so a batch depends on nothing but its number: any
/// number of workers gives the same ones, and so does an epoch that starts in the middle.
#[derive(Debug, Clone)]
pub struct Loader {
    source: Arc<Source>,
}

#[derive(Debug)]
struct Source {
    dataset: Arc<Dataset>,
    preprocess: Preprocess,
    augment: Augment,
    options: LoaderOptions,
    /// Decoded images in the state in which augmentation starts.
    cache: Vec<OnceLock<Image>>,
    cached_bytes: AtomicUsize,
    /// Memory of dropped batches.
    spare: Mutex<Vec<Vec<f32>>>,
}

/// The batches of one epoch, in order. Dropping it stops its threads.
#[derive(Debug)]
pub struct Epoch {
    /// Worker `w` of `W` makes every `W`-th batch, beginning with the `w`-th.
    workers: Vec<Worker>,
    next: usize,
    end: usize,
}

type Made = Result<LabelledBatch, DataError>;

#[derive(Debug)]
struct Worker {
    /// `None` when the worker is being stopped.
    batches: Option<Receiver<Made>>,
    thread: Option<JoinHandle<()>>,
}

impl Loader {
    /// Fails if samples have no labels, or if tensors are to be augmented.
    pub fn new(
        dataset: impl Into<Arc<Dataset>>,
        preprocess: Preprocess,
        augment: Augment,
        options: LoaderOptions,
    ) -> Result<Self, DataError> {
        let dataset = dataset.into();
        let path = || dataset.path().to_path_buf();
        if !dataset.has_labels() {
            return Err(DataError::NoLabels { path: path() });
        }
        if dataset.is_prepared() && !augment.is_none() {
            return Err(DataError::AugmentTensors { path: path() });
        }
        let cache = (0..dataset.len()).map(|_| OnceLock::new()).collect();
        let (cached_bytes, spare) = (AtomicUsize::new(0), Mutex::default());
        let source = Source { dataset, preprocess, augment, options, cache, cached_bytes, spare };
        Ok(Self { source: Arc::new(source) })
    }

    /// The samples.
    pub fn dataset(&self) -> &Dataset {
        &self.source.dataset
    }

    /// The number and the class of each sample that takes part.
    pub fn labels(&self) -> impl Iterator<Item = (usize, usize)> {
        let dataset = self.dataset();
        let indices = dataset.subset(self.source.samples()).into_iter();
        indices.map(|i| (i, dataset.label(i).expect("`Loader::new` checks for labels")))
    }

    /// What decides the batches, beside the samples, in words.
    pub fn settings(&self) -> String {
        let Source { preprocess, augment, options, .. } = &*self.source;
        // Workers decide nothing.
        let options = LoaderOptions { workers: 1, ..options.clone() };
        format!("{preprocess:?} {augment:?} {options:?}")
    }

    /// Batches in an epoch.
    pub fn batches(&self) -> usize {
        let (samples, batch) = (self.source.samples(), self.source.options.batch.max(1));
        if self.source.options.drop_last { samples / batch } else { samples.div_ceil(batch) }
    }

    /// Starts the workers on an epoch, from batch `first` on.
    pub fn epoch(&self, epoch: u64, first: usize) -> Epoch {
        let end = self.batches();
        let order = Arc::new(self.source.order(epoch));
        let count = self.source.options.workers.clamp(1, end.saturating_sub(first).max(1));
        let workers = (0..count).map(|worker| {
            let (sender, batches) = sync_channel(AHEAD);
            let (source, order) = (Arc::clone(&self.source), Arc::clone(&order));
            let thread = thread::spawn(move || {
                for number in (first + worker..end).step_by(count) {
                    let batch = source.options.batch.max(1);
                    let samples = &order[number * batch..order.len().min((number + 1) * batch)];
                    if sender.send(source.batch(epoch, samples)).is_err() {
                        return; // The epoch was dropped.
                    }
                }
            });
            Worker { batches: Some(batches), thread: Some(thread) }
        });
        Epoch { workers: workers.collect(), next: 0, end: end.saturating_sub(first) }
    }
}

impl Iterator for Epoch {
    type Item = Made;

    fn next(&mut self) -> Option<Made> {
        if self.next == self.end {
            return None;
        }
        let count = self.workers.len();
        let worker = &mut self.workers[self.next % count];
        self.next += 1;
        match worker.batches.as_ref()?.recv() {
            Ok(batch) => Some(batch),
            Err(_) => {
                if let Some(Err(panic)) = worker.thread.take().map(JoinHandle::join) {
                    std::panic::resume_unwind(panic);
                }
                None
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.end - self.next, Some(self.end - self.next))
    }
}

impl ExactSizeIterator for Epoch {}

impl Drop for Epoch {
    fn drop(&mut self) {
        // All receivers go before any thread is waited for, so that the threads stop side by side.
        self.workers.iter_mut().for_each(|worker| worker.batches = None);
        for thread in self.workers.iter_mut().filter_map(|worker| worker.thread.take()) {
            // A panic of a batch that nobody waited for is nobody's.
            let _ = thread.join();
        }
    }
}

impl Drop for LabelledBatch {
    fn drop(&mut self) {
        self.source.spare.lock().unwrap_or_else(PoisonError::into_inner).push(std::mem::take(&mut self.data));
    }
}

impl Source {
    fn samples(&self) -> usize {
        self.options.limit.unwrap_or(usize::MAX).min(self.dataset.len())
    }

    /// The sample numbers of an epoch.
    fn order(&self, epoch: u64) -> Vec<usize> {
        let mut order = self.dataset.subset(self.samples());
        if self.options.shuffle {
            Random::keyed(&[self.options.seed, epoch]).shuffle(&mut order);
        }
        order
    }

    fn batch(self: &Arc<Self>, epoch: u64, samples: &[usize]) -> Made {
        let data = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        let labels = samples.iter().map(|&i| self.dataset.label(i).expect("`Loader::new` checks for labels")).collect();
        let mut batch = LabelledBatch { data, shape: Vec::new(), labels, source: Arc::clone(self) };
        for (position, &index) in samples.iter().enumerate() {
            if let Some(image) = self.cache[index].get() {
                self.write(&mut batch, position, epoch, index, image)?;
                continue;
            }
            match self.dataset.read(index)? {
                Sample::Tensor { shape, data } => {
                    batch.slot(position, &shape, || self.dataset.name(index))?.copy_from_slice(&data);
                }
                Sample::Image(image) => {
                    let image = self.augment.fixed(&image, &self.preprocess, &self.dataset.name(index))?;
                    self.write(&mut batch, position, epoch, index, &image)?;
                    self.keep(index, image.into_owned());
                }
            }
        }
        Ok(batch)
    }

    /// Augments an image and writes its tensor.
    fn write(
        &self,
        batch: &mut LabelledBatch,
        position: usize,
        epoch: u64,
        index: usize,
        image: &Image,
    ) -> Result<(), DataError> {
        let mut random = Random::keyed(&[self.options.seed, epoch, index as u64]);
        let image = self.augment.vary(image, &mut random);
        let shape = [self.preprocess.channels.count(), image.height, image.width];
        self.preprocess.write(&image, batch.slot(position, &shape, || self.dataset.name(index))?);
        Ok(())
    }

    fn keep(&self, index: usize, image: Image) {
        let bytes = image.rgb.len();
        if self.cached_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= CACHE_BYTES {
            // A sample is read once in an epoch; should two epochs run at once, either copy will do.
            let _ = self.cache[index].set(image);
        } else {
            self.cached_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

impl LabelledBatch {
    /// The elements of the sample at `position`; the first sample decides the shape of all.
    fn slot(
        &mut self,
        position: usize,
        shape: &[usize],
        name: impl FnOnce() -> PathBuf,
    ) -> Result<&mut [f32], DataError> {
        let len: usize = shape.iter().product();
        if self.shape.is_empty() {
            self.shape = std::iter::once(self.labels.len()).chain(shape.iter().copied()).collect();
            self.data.resize(self.labels.len() * len, 0.0);
        } else if self.shape[1..] != *shape {
            let expected = self.shape[1..].to_vec();
            return Err(DataError::MixedShapes { path: name(), found: shape.to_vec(), expected });
        }
        Ok(&mut self.data[position * len..(position + 1) * len])
    }
}
