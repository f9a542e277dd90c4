//! What can go wrong with data: one enum, every variant names the file, and `hint` says what to do about it.

use crate::Preprocess;
use std::{io, path::PathBuf};

/// An error about a data file; [`DataError::hint`] may add advice.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// `read`, `write` …
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// There is no such file or folder.
    #[error("{} does not exist", path.display())]
    NotFound {
        /// The file.
        path: PathBuf,
    },
    /// A csv list names an image that does not exist.
    #[error("{}, line {line}: {} does not exist", path.display(), image.display())]
    ListedImageMissing {
        /// The list.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// The image, as looked for.
        image: PathBuf,
    },
    /// The path is none of the known kinds of data.
    #[error("{} is not a data set that is understood", path.display())]
    Unrecognised {
        /// The file.
        path: PathBuf,
    },
    /// A data set without a single image.
    #[error("{} holds no images", path.display())]
    Empty {
        /// The folder or file.
        path: PathBuf,
        /// Whether the images may lie one folder deeper (the name of one such folder).
        deeper: Option<PathBuf>,
    },
    /// The first line of a csv list lacks `file` or `class_index`.
    #[error("{}: the first line is `{found}`, it must name the columns `file` and `class_index`", path.display())]
    CsvHeader {
        /// The list.
        path: PathBuf,
        /// The first line.
        found: String,
    },
    /// A line of a csv list cannot be read.
    #[error("{}, line {line}: `{text}` has no file name and class index where the header puts them", path.display())]
    CsvRow {
        /// The list.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// An image that does not decode.
    #[error("cannot decode {}: {reason}", path.display())]
    Decode {
        /// The image.
        path: PathBuf,
        /// What the decoder says.
        reason: String,
    },
    /// A file that is not what its name says.
    #[error("{} is not a valid {format} file: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// `npy`, `npz`, `CIFAR-10` …
        format: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Elements of a type that has no meaning here.
    #[error("{} holds elements of type `{found}`, {wanted} is needed", path.display())]
    Dtype {
        /// The array.
        path: PathBuf,
        /// numpy's name of the type.
        found: String,
        /// What would do.
        wanted: &'static str,
    },
    /// An array whose shape has no meaning here.
    #[error("{} has shape {shape:?}, {wanted} is needed", path.display())]
    ArrayShape {
        /// The array.
        path: PathBuf,
        /// Its shape.
        shape: Vec<usize>,
        /// What would do.
        wanted: &'static str,
    },
    /// A file that ends too early.
    #[error("{} ends too early: {needed} bytes are needed, {found} are there", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes that the header promises.
        needed: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// An archive without images.
    #[error("{} holds no array of images (arrays: {})", path.display(), found.join(", "))]
    NoImageArray {
        /// The archive.
        path: PathBuf,
        /// What it holds.
        found: Vec<String>,
    },
    /// An array with an element that no image has.
    #[error("{}: sample {sample} has elements that are infinite or not a number", path.display())]
    NotFinite {
        /// The array.
        path: PathBuf,
        /// Which sample, counted from 0.
        sample: usize,
    },
    /// As many labels as images are needed.
    #[error("{}: {images} images, but {labels} labels", path.display())]
    LabelCount {
        /// The data set.
        path: PathBuf,
        /// Number of images.
        images: usize,
        /// Number of labels.
        labels: usize,
    },
    /// A label that is not a class index.
    #[error("{}: label {label} of image {index} is not a class index", path.display())]
    Label {
        /// The labels.
        path: PathBuf,
        /// Which image, counted from 0.
        index: usize,
        /// The label.
        label: i64,
    },
    /// JSON that does not parse, or lacks a field.
    #[error("{} is not a COCO annotation file", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// An annotation of an image or a category that the file does not list.
    #[error("{}: annotation {annotation} refers to {what} {id}, which the file does not list", path.display())]
    CocoReference {
        /// The file.
        path: PathBuf,
        /// Position of the annotation in the file.
        annotation: usize,
        /// `image` or `category`.
        what: &'static str,
        /// The unknown id.
        id: u64,
    },
    /// Annotations without a folder of images.
    #[error("{} lists images, but not where they are", path.display())]
    ImagesFolder {
        /// The annotation file.
        path: PathBuf,
    },
    /// An image smaller than the crop.
    #[error("{} is {width}x{height} before the crop, smaller than the crop of {crop}x{crop}", path.display())]
    SmallerThanCrop {
        /// The image.
        path: PathBuf,
        /// Width after resizing.
        width: usize,
        /// Height after resizing.
        height: usize,
        /// The crop.
        crop: usize,
    },
    /// Images of one batch must agree in size.
    #[error("{} has shape {found:?} after preprocessing, the images before it have {expected:?}", path.display())]
    MixedShapes {
        /// The image.
        path: PathBuf,
        /// Its shape.
        found: Vec<usize>,
        /// The shape of the first image in the batch.
        expected: Vec<usize>,
    },
    /// A preprocessing description that is not understood.
    #[error("preprocessing `{text}` of {} is not understood", path.display())]
    PreprocessText {
        /// Where the text stands (`--preprocess`, a model's metadata).
        path: PathBuf,
        /// The text.
        text: String,
    },
    /// An augmentation that is not understood.
    #[error("augmentation `{text}` is not understood")]
    AugmentText {
        /// The text.
        text: String,
    },
    /// Float arrays are prepared already; there are no pixels to augment.
    #[error("{} holds tensors, which cannot be augmented", path.display())]
    AugmentTensors {
        /// The array.
        path: PathBuf,
    },
    /// Labels beside data that have their own.
    #[error("{} takes no labels from {}", path.display(), labels.display())]
    UnusedLabels {
        /// The data set.
        path: PathBuf,
        /// The labels.
        labels: PathBuf,
    },
    /// Training needs the class of every sample.
    #[error("{} has no labels", path.display())]
    NoLabels {
        /// The data set.
        path: PathBuf,
    },
}

impl DataError {
    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotFound { .. } => "check the path; it is relative to the current folder".into(),
            Self::ListedImageMissing { .. } => "file names in a csv list are relative to the folder of the list".into(),
            Self::Unrecognised { .. } => {
                "give a folder with one sub-folder per class, a folder of images, a .csv list with the header \
                 `file,class_index`, an .npy or .npz array, CIFAR-10 binary batches, or a COCO instances_*.json"
                    .into()
            }
            Self::Empty { deeper: Some(deeper), .. } => {
                format!("there are images further down; did you mean {}?", deeper.display())
            }
            Self::Empty { .. } => "jpg, jpeg, png and webp files are read".into(),
            Self::CsvHeader { .. } => "put `file,class_index` in the first line".into(),
            Self::CsvRow { .. } => {
                "a line looks like `val/0001.jpg,281`; a class index is a whole number from 0".into()
            }
            Self::Decode { .. } => "remove the image, or save it again as jpeg or png".into(),
            Self::Dtype { .. } => {
                "convert it in numpy: `numpy.save(path, array.astype(numpy.float32))`, labels to numpy.int64".into()
            }
            Self::UnusedLabels { .. } => "labels of folders and lists are their own; leave out --labels".into(),
            Self::NoImageArray { .. } => "name the images `images` (or `x`) and the labels `labels` (or `y`)".into(),
            Self::NotFinite { .. } => "leave the sample out: ranges, codes and losses of it would mean nothing".into(),
            Self::Label { .. } => "class indices are counted from 0".into(),
            Self::ImagesFolder { .. } => "add `--images DIR`".into(),
            Self::SmallerThanCrop { crop, .. } => format!("add `--resize {crop}` (or more), or a smaller `--crop`"),
            Self::MixedShapes { .. } => {
                "bring all images to one size with `--crop`, `--resize-to` or `--letterbox`".into()
            }
            Self::PreprocessText { .. } => format!(
                "presets are {}; or use --resize, --resize-to, --crop, --scale, --mean, --std, --channels, --letterbox",
                Preprocess::PRESETS.join(", ")
            ),
            Self::AugmentText { .. } => {
                "write `none`, or a list such as `crop4,flip` or `rrc224,flip,jitter0.4`".into()
            }
            Self::AugmentTensors { .. } => "use `--augment none`, or give images of type uint8".into(),
            Self::NoLabels { .. } => {
                "give a folder with one sub-folder per class, a .csv list with the column `class_index`, or labels \
                 beside the array"
                    .into()
            }
            Self::Truncated { .. } => "the file was cut off while it was written or copied; make it again".into(),
            _ => return None,
        })
    }

    /// Wraps an operating-system error; a missing file becomes [`DataError::NotFound`].
    pub(crate) fn io(path: &std::path::Path, action: &'static str, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::NotFound if action == "read" => Self::NotFound { path },
            _ => Self::Io { path, action, source },
        }
    }
}
