//! How much is trained, on which network, by which recipe: what a table leaves open.

use super::table::{Row, Table, Way};
use crate::Error;
use fewbits_data::{Augment, Dataset, RandomCrop, Sample};
use fewbits_graph::Graph;
use fewbits_quant::calibrate::Policy;
use fewbits_train::{
    network::Goal,
    quantizers::{Method, Settings},
    recipe::{Fold, Phase, Recipe},
};
use fewbits_zoo::{Options, ZooError};

/// The largest side of images for which proxies are trained.
const SMALL: usize = 64;
/// Classes of the papers' data.
const IMAGENET_CLASSES: usize = 1000;
/// Bits of first and last layers.
pub const EDGE_BITS: u8 = 8;
/// Batches that moving averages only watch, if there are as many; at most a quarter of all.
const DELAY: usize = 100;

/// The network that is trained on some data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Subject {
    /// Its name in the zoo.
    pub architecture: &'static str,
    /// Channels, height and width of an image; `None` for the architecture's own.
    pub input: Option<[usize; 3]>,
    /// Classes of the data.
    pub classes: usize,
    /// Factor of the channels.
    pub width: f32,
}

impl Subject {
    /// What fits `data`: the paper's network, or for small images its proxy.
    ///
    /// # Errors
    /// Errors of the data; [`Error::Usage`] if there are no labels.
    pub fn of(table: &Table, data: &Dataset, quick: bool) -> Result<Self, Error> {
        let input = match data.read(0)? {
            Sample::Image(image) => [3, image.height, image.width],
            Sample::Tensor { shape, .. } => *shape.first_chunk().unwrap_or(&[3, 1, 1]),
        };
        let largest = (0..data.len()).filter_map(|i| data.label(i)).max().map_or(0, |label| label + 1);
        let classes = data.class_names().len().max(largest);
        if !data.has_labels() || classes == 0 {
            return Err(Error::Usage {
                what: format!("`{}` has no labels", data.path().display()),
                hint: "training needs a folder with one sub-folder per class, a csv list, or an array with labels"
                    .into(),
            });
        }
        let small = input[1].max(input[2]) <= SMALL;
        let narrow = quick && small && table.proxy == "mobilenet_v2";
        Ok(Subject {
            architecture: if small { table.proxy } else { table.architecture },
            input: small.then_some(input),
            classes,
            width: if narrow { 0.5 } else { 1.0 },
        })
    }

    /// Whether images are small.
    pub fn is_small(&self) -> bool {
        self.input.is_some()
    }

    /// Whether it is not what the paper trained.
    pub fn is_proxy(&self) -> bool {
        self.is_small() || self.classes != IMAGENET_CLASSES
    }

    /// The network with initial weights.
    ///
    /// # Errors
    /// [`Error::Usage`] if the architecture does not take such images.
    pub fn build(&self, seed: u64) -> Result<Graph, Error> {
        let misuse = |e: ZooError| Error::Usage { what: e.to_string(), hint: e.hint().unwrap_or_default() };
        let options = Options { classes: Some(self.classes), input: self.input, width: self.width, seed };
        fewbits_zoo::find(self.architecture).and_then(|a| a.build(&options)).map_err(misuse)
    }

    /// Such as `10 classes of 32x32, swishnet proxy`.
    pub fn describe(&self) -> String {
        let size = self.input.map_or(String::new(), |[_, height, width]| format!(" of {height}x{width}"));
        let width = if self.width == 1.0 { String::new() } else { format!(" {}", self.width) };
        let proxy = if self.is_proxy() { " proxy" } else { "" };
        format!("{} classes{size}, {}{width}{proxy}", self.classes, self.architecture)
    }
}

/// How much is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Epochs of each quantized training.
    pub epochs: usize,
    /// Epochs of the float training.
    pub float_epochs: usize,
    /// Runs of each row.
    pub seeds: usize,
    /// Training images; `None` for all.
    pub limit: Option<usize>,
    /// Scored images; `None` for all.
    pub validation_limit: Option<usize>,
    /// Images of a batch.
    pub batch: usize,
}

impl Effort {
    /// What `table` gets on `subject`.
    pub fn of(table: &Table, subject: &Subject, quick: bool) -> Self {
        let full = if subject.is_small() {
            Effort { epochs: 10, float_epochs: 60, seeds: table.seeds, limit: None, validation_limit: None, batch: 128 }
        } else {
            Effort { epochs: 30, float_epochs: 90, seeds: table.seeds, limit: None, validation_limit: None, batch: 64 }
        };
        if !quick {
            return full;
        }
        let small = Effort { limit: Some(3000), validation_limit: Some(500), batch: full.batch.min(64), ..full };
        Effort { epochs: 2, float_epochs: 12, seeds: table.seeds.min(2), ..small }
    }
}

/// How training images are changed.
pub fn augment(subject: &Subject, data: &Dataset) -> Augment {
    match (data.is_prepared(), subject.is_small()) {
        (true, _) => Augment::default(),
        (false, true) => Augment { crop: RandomCrop::Shift(4), flip: true, ..Augment::default() },
        (false, false) => Augment { crop: RandomCrop::Resized(224), flip: true, ..Augment::default() },
    }
}

/// Nesterov's momentum, cosine; learning rate for batches of 128 images and in proportion for others.
fn recipe(phase: Phase, learning_rate: f64, batch: usize, weight_decay: f64, seed: u64) -> Recipe {
    let learning_rate = learning_rate * batch as f64 / 128.0;
    Recipe { snap_at: 0.9, weight_decay, seed, ..Recipe::new(phase, learning_rate) }
}

/// The recipe of the float network.
pub fn float_recipe(subject: &Subject, effort: &Effort, seed: u64) -> Recipe {
    let phase = Phase { epochs: effort.float_epochs, goal: None };
    let weight_decay = if subject.is_small() { 5e-4 } else { 4e-5 };
    Recipe { warmup: 1.0, ..recipe(phase, Recipe::usual_rate(None, Fold::None), effort.batch, weight_decay, seed) }
}

/// The recipe of a row that is trained, from `images` training images; `None` for one that is not.
pub fn row_recipe(row: &Row, effort: &Effort, images: usize, seed: u64) -> Option<Recipe> {
    let Way::Train { method, settings, fold } = &row.way else { return None };
    let steps = images / effort.batch.max(1) * effort.epochs;
    let goal = Goal {
        method: *method,
        settings: Settings { delay: DELAY.min(steps / 4) as u32, ..(**settings).clone() },
        policy: Policy { per_channel: false, ..Policy::new(row.weights, row.activations, EDGE_BITS) },
        offsets_everywhere: *method == Method::LsqPlus,
    };
    let learning_rate = Recipe::usual_rate(Some(&goal), *fold);
    let phase = Phase { epochs: effort.epochs, goal: Some(goal) };
    Some(Recipe { fold: *fold, freeze_at: fold.freeze_at(), ..recipe(phase, learning_rate, effort.batch, 1e-4, seed) })
}
