//! Flags that say where data is and how images are prepared.

use super::output::Output;
use clap::Args;
use fewbits::{Error, Model};
use fewbits_data::{Channels, Dataset, OpenOptions, Preprocess, Resize, detect::Decoder};
use fewbits_graph::Dim;
use std::path::{Path, PathBuf};

/// How images are prepared. Without any of these flags, the model's metadata decide.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Preprocessing")]
pub struct PreprocessArgs {
    /// A preset: imagenet, tf, cifar10, yolox, darknet or none
    #[arg(long, value_name = "PRESET")]
    pub preprocess: Option<String>,
    /// Resize the shorter side to this many pixels; 0 keeps the image as it is
    #[arg(long, value_name = "PIXELS")]
    pub resize: Option<usize>,
    /// Resize to exactly this size, e.g. 320x320 (height x width)
    #[arg(long, value_name = "HxW", conflicts_with = "resize")]
    pub resize_to: Option<String>,
    /// Side of the centre crop in pixels; 0 crops nothing
    #[arg(long, value_name = "PIXELS")]
    pub crop: Option<usize>,
    /// Divisor of the pixel values 0..255
    #[arg(long, value_name = "X")]
    pub scale: Option<f32>,
    /// Subtracted after scaling: one value or one per channel
    #[arg(long, value_name = "M,M,M", value_delimiter = ',', allow_hyphen_values = true)]
    pub mean: Option<Vec<f32>>,
    /// Divisor after that: one value or one per channel
    #[arg(long, value_name = "S,S,S", value_delimiter = ',')]
    pub std: Option<Vec<f32>>,
    /// Channel order: rgb, bgr or gray
    #[arg(long, value_name = "ORDER")]
    pub channels: Option<String>,
    /// Fit into the network's input at the image's proportions and pad with this value: 114 puts the image into the top left corner,
    /// 114:center into the middle
    #[arg(long, value_name = "FILL[:center]", conflicts_with_all = ["resize", "resize_to"])]
    pub letterbox: Option<String>,
    /// Folder of the images of a COCO annotation file
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// Labels of an .npy or .npz file of images
    #[arg(long, value_name = "FILE.npy")]
    pub labels: Option<PathBuf>,
}

impl PreprocessArgs {
    /// Opens the data set at `path`.
    pub fn open(&self, path: &Path) -> Result<Dataset, Error> {
        self.opened(path, false)
    }

    /// Opens the data set at `path` to score on.
    pub fn open_held_out(&self, path: &Path) -> Result<Dataset, Error> {
        self.opened(path, true)
    }

    fn opened(&self, path: &Path, held_out: bool) -> Result<Dataset, Error> {
        let (images, labels) = (self.images.clone(), self.labels.clone());
        Ok(Dataset::open(path, &OpenOptions { images, labels, held_out })?)
    }

    /// What these flags, or else the model's metadata, say; prints it.
    pub fn resolve(&self, model: &Model, dataset: &Dataset, out: &Output) -> Result<Preprocess, Error> {
        let chosen = match self.stated(model) {
            // Nothing is prepared, so that nobody needs to understand what the metadata say.
            Err(_) if dataset.is_prepared() && self.preprocess.is_none() && self.says_nothing() => None,
            stated => stated?,
        };
        let chosen = match chosen {
            Some(chosen) => chosen,
            None if dataset.is_prepared() => Preprocess::default(),
            None => return Err(unknown(model)),
        };
        if dataset.is_prepared() {
            out.detail("preprocessing: none, the data are prepared arrays");
        } else {
            if self.is_guessed(model)? {
                out.note(
                    "the output has the shape of YOLOX's: preprocessing as for YOLOX (--preprocess says otherwise)",
                );
            }
            out.note(&format!("preprocessing: {chosen}"));
        }
        Ok(chosen)
    }

    /// The same, if anything is said, without printing.
    pub fn stated(&self, model: &Model) -> Result<Option<Preprocess>, Error> {
        let mut chosen = match &self.preprocess {
            Some(name) => Preprocess::preset(name, model.input_size()).ok_or_else(|| Error::Usage {
                what: format!("no preset `{name}`"),
                hint: format!("presets are {}", Preprocess::PRESETS.join(", ")),
            })?,
            None => match model.preprocess()? {
                Some(stated) => stated,
                None if self.is_guessed(model)? => Preprocess::preset("yolox", model.input_size()).unwrap_or_default(),
                None if self.says_nothing() => return Ok(None),
                None => Preprocess::default(),
            },
        };
        self.refine(&mut chosen, model)?;
        Ok(Some(chosen))
    }

    /// Whether the only thing to go by is the shape of the output.
    fn is_guessed(&self, model: &Model) -> Result<bool, Error> {
        Ok(self.preprocess.is_none() && self.says_nothing() && model.preprocess()?.is_none() && is_yolox(model))
    }

    fn says_nothing(&self) -> bool {
        self.resize.is_none()
            && self.resize_to.is_none()
            && self.crop.is_none()
            && self.scale.is_none()
            && self.mean.is_none()
            && self.std.is_none()
            && self.channels.is_none()
            && self.letterbox.is_none()
    }

    fn refine(&self, chosen: &mut Preprocess, model: &Model) -> Result<(), Error> {
        let usage = |what: String| Error::Usage { what, hint: "`fewbits help quantize` describes the flags".into() };
        match self.resize {
            Some(0) => chosen.resize = Resize::Keep,
            Some(side) => chosen.resize = Resize::Shorter(side),
            None => {}
        }
        if let Some(size) = &self.resize_to {
            let sides = size.split_once('x').and_then(|(h, w)| Some((h.parse().ok()?, w.parse().ok()?)));
            let (height, width) = sides.ok_or_else(|| usage(format!("`{size}` is no size like 320x320")))?;
            chosen.resize = Resize::Exact { height, width };
        }
        if let Some(padding) = &self.letterbox {
            let size = model.input_size().or(chosen.output_size());
            let size = size.ok_or_else(|| usage("--letterbox needs a model that says its input size".into()))?;
            let letterbox = Resize::letterbox(padding, size);
            chosen.resize =
                letterbox.ok_or_else(|| usage(format!("`{padding}` is no padding like 114 or 114:center")))?;
        }
        match self.crop {
            Some(0) => chosen.crop = None,
            Some(side) => chosen.crop = Some(side),
            None => {}
        }
        if let Some(scale) = self.scale {
            chosen.scale = scale;
        }
        if let Some(mean) = &self.mean {
            chosen.mean.clone_from(mean);
        }
        if let Some(std) = &self.std {
            chosen.std.clone_from(std);
        }
        if let Some(order) = &self.channels {
            chosen.channels = match order.as_str() {
                "rgb" => Channels::Rgb,
                "bgr" => Channels::Bgr,
                "gray" => Channels::Gray,
                _ => return Err(usage(format!("`{order}` is no channel order (rgb, bgr, gray)"))),
            };
        }
        if chosen.is_valid() { Ok(()) } else { Err(usage(format!("preprocessing makes no sense: {chosen}"))) }
    }
}

/// Whether the single output is `[N, cells, 5 + classes]` with the cells of YOLOX's three grids over the input.
fn is_yolox(model: &Model) -> bool {
    let dims = match &model.graph.outputs[..] {
        [output] => output.dims.as_deref().unwrap_or_default(),
        _ => return false,
    };
    let (Some(input), [_, Dim::Fixed(cells), Dim::Fixed(values)]) = (model.input_size(), dims) else { return false };
    Decoder::guess(&[&[1, *cells, *values]], &model.graph.metadata, input)
        .is_ok_and(|d| matches!(d, Decoder::YoloX { .. }))
}

fn unknown(model: &Model) -> Error {
    Error::Usage {
        what: format!("`{}` does not say how its images are prepared", model.path.display()),
        hint:
            "say it with --preprocess imagenet|tf|cifar10|yolox|darknet|none or with --resize, --crop, --scale, --mean, --std"
                .into(),
    }
}
