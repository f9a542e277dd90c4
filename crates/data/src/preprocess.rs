//! From decoded pixels to the tensor a network eats: an RGB image enters, a prepared `[C, H, W]` tensor leaves.
//! It must not know where images come from.

mod text;

use std::{borrow::Cow, path::Path};

use serde::{Deserialize, Serialize};

pub use text::METADATA_KEY;

use crate::{DataError, Image, resize::resize_bilinear};

/// No side may be longer, in pixels.
const MAX_SIDE: usize = 1 << 16;

/// How an image is brought to size, before the crop. All resizing is Pillow's antialiased bilinear.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Resize {
    /// As it is.
    Keep,
    /// The shorter side to this length, the longer one in proportion (rounded down).
    Shorter(usize),
    /// The shorter side to this length, unless it already lies between the crop and this length: images prepared on
    /// disk are not resampled again.
    ShorterUnlessFitting(usize),
    /// To exactly this size; proportions change.
    Exact {
        /// Height in pixels.
        height: usize,
        /// Width in pixels.
        width: usize,
    },
    /// As large as fits into this size at the image's own proportions; the rest is `fill`.
    Letterbox {
        /// Height in pixels.
        height: usize,
        /// Width in pixels.
        width: usize,
        /// Value of the padding in every channel.
        fill: u8,
        /// Whether the image is in the middle, as Darknet has it, or in the top left corner, as YOLOX has it.
        #[serde(default)]
        centred: bool,
    },
}

/// Which channels, in which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channels {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red.
    Bgr,
    /// One channel of luma, `(19595·R + 38470·G + 7471·B + 2¹⁵) >> 16` (ITU-R 601, as Pillow's `L`).
    Gray,
}

impl Channels {
    /// Number of channels.
    pub fn count(self) -> usize {
        if self == Self::Gray { 1 } else { 3 }
    }
}

/// Everything done to an image before the network sees it: resize, centre crop, channel order, `(x/scale − mean)/std`.
///
/// `Display` prints it in one line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocess {
    /// Resizing, first.
    pub resize: Resize,
    /// Side of the centre crop in pixels; `None`: no crop.
    pub crop: Option<usize>,
    /// Channel order.
    pub channels: Channels,
    /// Divisor of the pixel values 0…255.
    pub scale: f32,
    /// Subtracted after the division: one value for each channel, or one for all.
    pub mean: Vec<f32>,
    /// Divisor after that: one value for each channel, or one for all.
    pub std: Vec<f32>,
}

/// A prepared image.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// `[C, H, W]`.
    pub shape: [usize; 3],
    /// Elements in that order.
    pub data: Vec<f32>,
}

impl Default for Preprocess {
    /// Pixels as they are: RGB, 0…255.
    fn default() -> Self {
        Self { resize: Resize::Keep, crop: None, channels: Channels::Rgb, scale: 1.0, mean: vec![0.0], std: vec![1.0] }
    }
}

impl Preprocess {
    /// The names that [`Preprocess::preset`] knows.
    pub const PRESETS: [&str; 6] = ["imagenet", "tf", "cifar10", "yolox", "darknet", "none"];

    /// A preset by name; `input` is the network's `(height, width)` where its graph fixes it.
    ///
    /// - `imagenet`: shorter side 256 ([`Resize::ShorterUnlessFitting`]), crop 224, /255, torchvision's mean and deviation.
    /// - `tf`: the same geometry, x/127.5 − 1.
    /// - `cifar10`: no resizing, /255, mean and deviation of CIFAR-10.
    /// - `yolox`: letterbox with 114 to the input (416 if unknown), BGR, 0…255.
    /// - `darknet`: letterbox with 128 to the input (416 if unknown), the image in the middle, RGB, /255.
    /// - `none`: RGB, 0…255.
    ///
    /// A square input other than 224 scales 256 and 224 in proportion.
    pub fn preset(name: &str, input: Option<(usize, usize)>) -> Option<Self> {
        Some(match name {
            "imagenet" => Self::torchvision(input),
            "tf" => Self { scale: 127.5, mean: vec![1.0], std: vec![1.0], ..Self::torchvision(input) },
            "cifar10" => Self {
                scale: 255.0,
                mean: vec![0.4914, 0.4822, 0.4465],
                std: vec![0.2470, 0.2435, 0.2616],
                ..Self::default()
            },
            "yolox" | "darknet" => {
                let (height, width) = input.unwrap_or((416, 416));
                let resize = |fill, centred| Resize::Letterbox { height, width, fill, centred };
                match name {
                    "yolox" => Self { resize: resize(114, false), channels: Channels::Bgr, ..Self::default() },
                    _ => Self { resize: resize(128, true), scale: 255.0, ..Self::default() },
                }
            }
            "none" => Self::default(),
            _ => return None,
        })
    }

    fn torchvision(input: Option<(usize, usize)>) -> Self {
        let (resize, crop) = match input {
            Some((height, width)) if height != width => (Resize::Exact { height, width }, None),
            Some((side, _)) => (Resize::ShorterUnlessFitting((side * 256 + 112) / 224), Some(side)),
            None => (Resize::ShorterUnlessFitting(256), Some(224)),
        };
        Self {
            resize,
            crop,
            channels: Channels::Rgb,
            scale: 255.0,
            mean: vec![0.485, 0.456, 0.406],
            std: vec![0.229, 0.224, 0.225],
        }
    }

    /// Whether the numbers make sense: one or `C` means and deviations, finite, no division by zero, no empty size.
    pub fn is_valid(&self) -> bool {
        let per_channel = |v: &[f32]| v.len() == 1 || v.len() == self.channels.count();
        let divides = |x: f32| x.is_finite() && x != 0.0;
        let side = |n: usize| (1..=MAX_SIDE).contains(&n);
        let sized = match self.resize {
            Resize::Keep => true,
            Resize::Shorter(n) | Resize::ShorterUnlessFitting(n) => side(n),
            Resize::Exact { height, width } | Resize::Letterbox { height, width, .. } => side(height) && side(width),
        };
        per_channel(&self.mean)
            && per_channel(&self.std)
            && self.mean.iter().all(|m| m.is_finite())
            && self.std.iter().all(|&s| divides(s))
            && divides(self.scale)
            && self.crop.is_none_or(side)
            && sized
    }

    /// The `(height, width)` that every prepared image has; `None` if it depends on the image.
    pub fn output_size(&self) -> Option<(usize, usize)> {
        match (self.crop, self.resize) {
            (Some(side), _) => Some((side, side)),
            (None, Resize::Exact { height, width } | Resize::Letterbox { height, width, .. }) => Some((height, width)),
            _ => None,
        }
    }

    /// Prepares one image. `path` serves for messages.
    ///
    /// The arithmetic is f32: `(x / scale − mean) / std` for each of the 256 values, as numpy does it on arrays.
    pub fn apply(&self, image: &Image, path: &Path) -> Result<Prepared, DataError> {
        let image = self.frame(image, path)?;
        let shape = [self.channels.count(), image.height, image.width];
        let mut data = vec![0.0; shape.iter().product()];
        self.write(&image, &mut data);
        Ok(Prepared { shape, data })
    }

    /// The pixels that the network sees: resized and cropped.
    pub(crate) fn frame<'a>(&self, image: &'a Image, path: &Path) -> Result<Cow<'a, Image>, DataError> {
        let mut frame = self.resized(image).map_or(Cow::Borrowed(image), Cow::Owned);
        if let Resize::Letterbox { height, width, fill, centred } = self.resize {
            frame = Cow::Owned(letterbox(&frame, (width, height), fill, centred));
        }
        let (width, height) = (frame.width, frame.height);
        match self.crop {
            None => Ok(frame),
            Some(crop) if crop <= width && crop <= height => {
                let (left, top) = (half_to_even(width - crop), half_to_even(height - crop));
                Ok(Cow::Owned(frame.window(left, top, crop, crop)))
            }
            Some(crop) => Err(DataError::SmallerThanCrop { path: path.to_path_buf(), width, height, crop }),
        }
    }

    /// Writes the tensor of a framed image: `data` is `[C, H, W]`.
    pub(crate) fn write(&self, image: &Image, data: &mut [f32]) {
        let pixels = image.rgb.as_chunks::<3>().0;
        for (channel, plane) in data.chunks_exact_mut(pixels.len().max(1)).enumerate() {
            let table = self.table(channel);
            let pick: fn(&[u8; 3]) -> u8 = match (self.channels, channel) {
                (Channels::Gray, _) => luma,
                (Channels::Rgb, 0) | (Channels::Bgr, 2) => |p| p[0],
                (_, 1) => |p| p[1],
                _ => |p| p[2],
            };
            for (value, pixel) in plane.iter_mut().zip(pixels) {
                *value = table[usize::from(pick(pixel))];
            }
        }
    }

    /// The image in its new size; `None` if it keeps its size.
    fn resized(&self, image: &Image) -> Option<Image> {
        let size = (image.width, image.height);
        let (width, height) = self.resized_size(size);
        ((width, height) != size).then(|| resize_bilinear(image, width, height))
    }

    /// `(width, height)` of an image of `(w, h)` behind the resizing, without padding.
    pub(crate) fn resized_size(&self, (w, h): (usize, usize)) -> (usize, usize) {
        let shorter = |side: usize| if w < h { (side, side * h / w) } else { (side * w / h, side) };
        match self.resize {
            Resize::Keep => (w, h),
            Resize::ShorterUnlessFitting(side) if (self.crop.unwrap_or(side)..=side).contains(&w.min(h)) => (w, h),
            Resize::Shorter(side) | Resize::ShorterUnlessFitting(side) => shorter(side),
            Resize::Exact { height, width } => (width, height),
            Resize::Letterbox { height, width, .. } => {
                let ratio = letterbox_ratio((w, h), (width, height));
                (((w as f64 * ratio) as usize).max(1), ((h as f64 * ratio) as usize).max(1))
            }
        }
    }

    /// What each of the 256 pixel values becomes in a channel.
    fn table(&self, channel: usize) -> [f32; 256] {
        let of = |v: &[f32], default| v.get(channel).or(v.first()).copied().unwrap_or(default);
        let (mean, std) = (of(&self.mean, 0.0), of(&self.std, 1.0));
        std::array::from_fn(|x| (x as f32 / self.scale - mean) / std)
    }
}

/// Factor by which a letterboxed image of `(width, height)` was scaled: `min(W/w, H/h)`, in f64.
pub fn letterbox_ratio(image: (usize, usize), target: (usize, usize)) -> f64 {
    (target.0 as f64 / image.0 as f64).min(target.1 as f64 / image.1 as f64)
}

/// Columns and rows of padding before an image of `(width, height)` in the middle of `target`.
pub(crate) fn letterbox_margins(image: (usize, usize), target: (usize, usize)) -> (usize, usize) {
    (target.0.saturating_sub(image.0) / 2, target.1.saturating_sub(image.1) / 2)
}

/// Pastes `image` into an image of `(width, height)`; the conversions of a degenerate image (a side of 0 counts as 1) stay inside.
fn letterbox(image: &Image, (width, height): (usize, usize), fill: u8, centred: bool) -> Image {
    let mut rgb = vec![fill; height * width * 3];
    let size = (image.width, image.height);
    let (left, top) = if centred { letterbox_margins(size, (width, height)) } else { (0, 0) };
    let columns = image.width.min(width) * 3;
    for (to, from) in rgb.chunks_exact_mut(width * 3).skip(top).zip(image.rgb.chunks_exact(image.width * 3)) {
        to[left * 3..][..columns].copy_from_slice(&from[..columns]);
    }
    Image { width, height, rgb }
}

/// `n / 2` rounded half to even, as Python's `round`.
pub(crate) fn half_to_even(n: usize) -> usize {
    n / 2 + usize::from(n % 4 == 3)
}

/// ITU-R 601 luma in fixed point, as Pillow's `L`.
pub(crate) fn luma(p: &[u8; 3]) -> u8 {
    ((19595 * u32::from(p[0]) + 38470 * u32::from(p[1]) + 7471 * u32::from(p[2]) + 0x8000) >> 16) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crop_rounds_half_to_even() {
        // Python: [int(round(n / 2.)) for n in range(8)]
        assert_eq!((0..8).map(half_to_even).collect::<Vec<_>>(), [0, 0, 1, 2, 2, 2, 3, 4]);
    }

    #[test]
    fn crop_channels_and_arithmetic() {
        let image = Image { width: 3, height: 3, rgb: (0..27).collect() };
        let path = Path::new("a.png");
        let preprocess = Preprocess {
            crop: Some(1),
            channels: Channels::Bgr,
            scale: 2.0,
            mean: vec![1.0, 2.0, 3.0],
            std: vec![0.5],
            ..Default::default()
        };
        let prepared = preprocess.apply(&image, path).unwrap();
        // The middle pixel is (12, 13, 14); blue first.
        assert_eq!(prepared, Prepared { shape: [3, 1, 1], data: vec![12.0, 9.0, 6.0] });
        let error = Preprocess { crop: Some(4), ..Default::default() }.apply(&image, path).unwrap_err();
        assert!(error.to_string().contains("a.png is 3x3") && error.hint().is_some(), "{error}");
    }

    #[test]
    fn letterbox_keeps_proportions_and_fills() {
        let image = Image { width: 4, height: 2, rgb: vec![200; 24] };
        let letterbox = |side, centred| Preprocess {
            resize: Resize::Letterbox { height: side, width: side, fill: 114, centred },
            ..Default::default()
        };
        let middle = letterbox(4, true).apply(&image, Path::new("a")).unwrap();
        assert_eq!(middle.data[..16], [[114.0; 4], [200.0; 4], [200.0; 4], [114.0; 4]].concat());
        let preprocess = letterbox(2, false);
        let prepared = preprocess.apply(&image, Path::new("a")).unwrap();
        assert_eq!(prepared.data[..4], [200.0, 200.0, 114.0, 114.0]);
        let sliver = Image { width: 1000, height: 1, rgb: vec![9; 3000] };
        assert_eq!(preprocess.apply(&sliver, Path::new("a")).unwrap().shape, [3, 2, 2]);
    }
}
