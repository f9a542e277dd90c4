//! Data sets: a path enters, numbered samples with labels leave. What kind of data it is shows from looking at it.
//! It must not know how images are prepared or batched.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::{
    Coco, DataError, Image, decode,
    random::Random,
    source::{array, cifar, csv, folder},
};

/// What the path alone does not say.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Folder of the images of a COCO annotation file.
    pub images: Option<PathBuf>,
    /// `.npy` of labels for an `.npy` or `.npz` of images.
    pub labels: Option<PathBuf>,
    /// Whether samples are to be scored on: of a folder of CIFAR-10 batches, the test batch.
    pub held_out: bool,
}

/// One sample as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Sample {
    /// A decoded image, still to be prepared.
    Image(Image),
    /// A row of a float array: already what the network eats.
    Tensor {
        /// Shape without the batch axis.
        shape: Vec<usize>,
        /// Elements in C order.
        data: Vec<f32>,
    },
}

/// Key of the random numbers that [`Dataset::subset`] draws.
const SUBSET_KEY: u64 = 0x5b5e7;

/// Numbered samples, read on demand; may be read from several threads at once.
#[derive(Debug)]
pub struct Dataset {
    path: PathBuf,
    store: Store,
    labels: Option<Vec<usize>>,
    class_names: Vec<String>,
    coco: Option<Coco>,
}

#[derive(Debug)]
enum Store {
    Images(Vec<Image>),
    Tensors { shape: Vec<usize>, rows: Vec<Vec<f32>> },
    Files(Vec<PathBuf>),
    Array(array::Images),
    Cifar(cifar::Batches),
}

impl Dataset {
    /// Opens a folder with one sub-folder per class, a folder of images, a `.csv` list (`file,class_index`), an `.npy` or
    /// `.npz`, CIFAR-10 binary batches (a file, or a folder: its training batches if it has any, or with [`OpenOptions::held_out`] its
    /// test batch), or a COCO `.json`.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, DataError> {
        let kind = std::fs::metadata(path).map_err(|e| DataError::io(path, "read", e))?;
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let mut dataset = Self {
            path: path.to_path_buf(),
            store: Store::Files(Vec::new()),
            labels: None,
            class_names: Vec::new(),
            coco: None,
        };
        if let Some(labels) = options.labels.as_ref().filter(|_| extension != "npy" && extension != "npz") {
            return Err(DataError::UnusedLabels { path: path.to_path_buf(), labels: labels.clone() });
        }
        if kind.is_dir() {
            let batches = cifar::batches(path, options.held_out);
            if batches.is_empty() {
                let listing = folder::list(path)?;
                dataset.store = Store::Files(listing.files);
                dataset.labels = (!listing.class_names.is_empty()).then_some(listing.labels);
                dataset.class_names = listing.class_names;
            } else {
                dataset.open_cifar(&batches)?;
            }
        } else if cifar::is_batch(path) {
            dataset.open_cifar(&[path.to_path_buf()])?;
        } else if extension == "csv" {
            let (files, labels) = csv::list(path)?;
            dataset.store = Store::Files(files);
            dataset.labels = Some(labels);
        } else if extension == "npy" || extension == "npz" {
            let (images, labels) = match extension.as_str() {
                "npy" => array::open_npy(path, options.labels.as_deref())?,
                _ => array::open_npz(path, options.labels.as_deref())?,
            };
            dataset.store = Store::Array(images);
            dataset.labels = labels;
        } else if extension == "json" {
            let coco = Coco::read(path)?;
            dataset.store = Store::Files(coco.files(path, options.images.as_deref())?);
            dataset.class_names = coco.category_names.clone();
            dataset.coco = Some(coco);
        } else if folder::is_image(path) {
            dataset.store = Store::Files(vec![path.to_path_buf()]);
        } else {
            return Err(DataError::Unrecognised { path: path.to_path_buf() });
        }
        match &dataset.labels {
            Some(labels) if labels.len() != dataset.len() => {
                Err(DataError::LabelCount { path: dataset.path, images: dataset.store.len(), labels: labels.len() })
            }
            _ => Ok(dataset),
        }
    }

    /// Labelled images that are in memory already. `labels` are as many as `images`.
    pub fn from_images(images: Vec<Image>, labels: Vec<usize>, class_names: Vec<String>) -> Self {
        assert_eq!(images.len(), labels.len(), "every image has a label");
        Self {
            path: PathBuf::from("images in memory"),
            store: Store::Images(images),
            labels: Some(labels),
            class_names,
            coco: None,
        }
    }

    /// Prepared samples that are in memory already, each of the shape `shape` (without the batch axis).
    pub fn from_tensors(shape: Vec<usize>, rows: Vec<Vec<f32>>) -> Self {
        Self {
            path: PathBuf::from("samples in memory"),
            store: Store::Tensors { shape, rows },
            labels: None,
            class_names: Vec::new(),
            coco: None,
        }
    }

    fn open_cifar(&mut self, paths: &[PathBuf]) -> Result<(), DataError> {
        let (batches, labels) = cifar::Batches::open(paths)?;
        self.store = Store::Cifar(batches);
        self.labels = Some(labels);
        self.class_names = cifar::CLASS_NAMES.map(str::to_owned).to_vec();
        Ok(())
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of samples, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "an empty data set is an error when it is opened")]
    pub fn len(&self) -> usize {
        self.store.len()
    }

    /// The class of sample `index`, where the data say it.
    pub fn label(&self, index: usize) -> Option<usize> {
        self.labels.as_ref()?.get(index).copied()
    }

    /// Whether there are labels.
    pub fn has_labels(&self) -> bool {
        self.labels.is_some()
    }

    /// Names of the classes, where the data say them.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// The annotations, if this is a COCO data set.
    pub fn coco(&self) -> Option<&Coco> {
        self.coco.as_ref()
    }

    /// Whether samples are already tensors, so that preprocessing does not touch them.
    pub fn is_prepared(&self) -> bool {
        match &self.store {
            Store::Array(images) => images.is_prepared(),
            Store::Tensors { .. } => true,
            Store::Images(_) | Store::Files(_) | Store::Cifar(_) => false,
        }
    }

    /// The file of a sample, with its position where a file holds many: for messages.
    pub fn name(&self, index: usize) -> PathBuf {
        let within = |path: &Path, index| PathBuf::from(format!("{}[{index}]", path.display()));
        match &self.store {
            Store::Files(files) => files.get(index).cloned().unwrap_or_default(),
            Store::Array(_) | Store::Images(_) | Store::Tensors { .. } => within(&self.path, index),
            Store::Cifar(batches) => {
                let (path, index) = batches.locate(index);
                within(path, index)
            }
        }
    }

    /// Reads one sample. Panics if `index` is not below [`Dataset::len`].
    pub fn read(&self, index: usize) -> Result<Sample, DataError> {
        assert!(index < self.len(), "sample {index} of {}", self.len());
        let sample = match &self.store {
            Store::Files(files) => {
                let path = &files[index];
                let bytes = std::fs::read(path).map_err(|e| DataError::io(path, "read", e))?;
                Sample::Image(decode(&bytes, path)?)
            }
            Store::Images(images) => Sample::Image(images[index].clone()),
            Store::Tensors { shape, rows } => Sample::Tensor { shape: shape.clone(), data: rows[index].clone() },
            Store::Array(images) => images.read(index)?,
            Store::Cifar(batches) => Sample::Image(batches.read(index)?),
        };
        match &sample {
            Sample::Tensor { data, .. } if !data.iter().all(|x| x.is_finite()) => {
                Err(DataError::NotFinite { path: self.path.clone(), sample: index })
            }
            _ => Ok(sample),
        }
    }

    /// `count` sample numbers spread evenly, `⌊i · len / count⌋`; all of them if there are no more. They come in an order in which the first
    /// few are spread evenly, too, and so is every n-th: data often are sorted by class. For calibration.
    pub fn spread(&self, count: usize) -> Vec<usize> {
        let count = count.min(self.len());
        // Multiples of the golden ratio fall into the largest gaps between those before; these are their ranks.
        let place = |i: usize| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut by_place: Vec<usize> = (0..count).collect();
        by_place.sort_by_key(|&i| place(i));
        let mut numbers = vec![0; count];
        for (rank, i) in by_place.into_iter().enumerate() {
            numbers[i] = (rank as u128 * self.len() as u128 / count as u128) as usize;
        }
        numbers
    }

    /// `count` sample numbers in ascending order, drawn at random but always the same ones; all of them if there are no more. For
    /// training on less: whatever the order of the classes, all have about their share.
    pub fn subset(&self, count: usize) -> Vec<usize> {
        let mut numbers: Vec<usize> = (0..self.len()).collect();
        if count < numbers.len() {
            Random::keyed(&[SUBSET_KEY]).shuffle(&mut numbers);
            numbers.truncate(count);
            numbers.sort_unstable();
        }
        numbers
    }

    /// The first `limit` sample numbers, or all. For evaluation.
    pub fn first(&self, limit: Option<usize>) -> Vec<usize> {
        (0..limit.unwrap_or(usize::MAX).min(self.len())).collect()
    }
}

impl Store {
    fn len(&self) -> usize {
        match self {
            Self::Images(images) => images.len(),
            Self::Files(files) => files.len(),
            Self::Array(images) => images.len(),
            Self::Tensors { rows, .. } => rows.len(),
            Self::Cifar(batches) => batches.len(),
        }
    }
}

impl fmt::Display for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} samples in {}", self.len(), self.path.display())?;
        match (self.class_names.len(), self.has_labels()) {
            (0, true) => write!(f, ", labelled"),
            (0, false) => write!(f, ", no labels"),
            (classes, _) => write!(f, ", {classes} classes"),
        }
    }
}
