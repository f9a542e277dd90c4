//! Random changes to training images: decoded pixels enter, pixels of the network's input size leave, still 8 bits deep.
//! What happens is a function of the stream of random numbers alone. It must not know batches.

use std::{borrow::Cow, fmt, path::Path, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{DataError, Image, Preprocess, preprocess::luma, random::Random, resize::resize_bilinear};

/// Sides longer than this, in pixels, are typing errors.
const MAX_SIDE: usize = 1 << 16;

/// Share of the image's area that a random resized crop takes.
const CROP_AREA: (f64, f64) = (0.08, 1.0);

/// Width over height of a random resized crop.
const CROP_RATIO: (f64, f64) = (3.0 / 4.0, 4.0 / 3.0);

/// What is cut out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RandomCrop {
    /// The preprocessing's own frame.
    #[default]
    Keep,
    /// The frame, moved by up to this many pixels each way; black comes in (before normalisation, as in torchvision's
    /// `RandomCrop(side, padding)`).
    Shift(usize),
    /// A box of 8–100 % of the whole image's area and a ratio of 3:4 to 4:3, resized to a square of this side
    /// (torchvision's `RandomResizedCrop`); it takes the place of the preprocessing's resize and crop.
    Resized(usize),
}

/// Random crop, horizontal flip with probability 1/2, and colour jitter, in this order.
///
/// Written as `none`, or as a list of `crop4` ([`RandomCrop::Shift`]), `rrc224` ([`RandomCrop::Resized`]), `flip` and
/// `jitter0.4`. Brightness, contrast and saturation each get a factor uniform in `[max(0, 1 − j), 1 + j]`, applied in
/// random order with the arithmetic of Pillow's `ImageEnhance`, as torchvision's `ColorJitter(j, j, j)` does on images
/// (test `colours_equal_torchvision`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// What is cut out.
    pub crop: RandomCrop,
    /// Whether half of the images are mirrored.
    pub flip: bool,
    /// Strength of the colour jitter, 0 for none.
    pub jitter: f64,
}

impl Augment {
    /// No change at all.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The part of the work that is the same every time: the preprocessing's frame, or the whole image if boxes are
    /// cut out of it. `path` serves for messages.
    pub(crate) fn fixed<'a>(
        &self,
        image: &'a Image,
        preprocess: &Preprocess,
        path: &Path,
    ) -> Result<Cow<'a, Image>, DataError> {
        match self.crop {
            RandomCrop::Resized(_) => Ok(Cow::Borrowed(image)),
            RandomCrop::Keep | RandomCrop::Shift(_) => preprocess.frame(image, path),
        }
    }

    /// The random part, on what [`Augment::fixed`] gave.
    pub(crate) fn vary<'a>(&self, image: &'a Image, random: &mut Random) -> Cow<'a, Image> {
        let mut image = match self.crop {
            RandomCrop::Keep => Cow::Borrowed(image),
            RandomCrop::Shift(padding) => {
                let (right, down) = (random.below(2 * padding + 1), random.below(2 * padding + 1));
                Cow::Owned(shift(image, right as isize - padding as isize, down as isize - padding as isize))
            }
            RandomCrop::Resized(side) => {
                let [left, top, width, height] = random_box(image.width, image.height, random);
                Cow::Owned(resize_bilinear(&image.window(left, top, width, height), side, side))
            }
        };
        if self.flip && random.next_u64() >> 63 == 1 {
            mirror(image.to_mut());
        }
        if self.jitter > 0.0 {
            jitter(image.to_mut(), self.jitter, random);
        }
        image
    }
}

/// Pixel `(x, y)` of the result is pixel `(x + right, y + down)` of the image, black outside.
fn shift(image: &Image, right: isize, down: isize) -> Image {
    let row_len = image.width * 3;
    let mut rgb = vec![0; image.rgb.len()];
    // The overlap of `0..n` and `0..n` moved by `by`: where it starts in the source and in the result, and its length.
    let overlap = |n: usize, by: isize| {
        let (from, to) = (by.max(0) as usize, (-by).max(0) as usize);
        (from, to, n.saturating_sub(by.unsigned_abs()))
    };
    let (from_x, to_x, columns) = overlap(image.width, right);
    let (from_y, to_y, rows) = overlap(image.height, down);
    if columns > 0 && rows > 0 {
        let sources = image.rgb.chunks_exact(row_len).skip(from_y).take(rows);
        for (to, from) in rgb.chunks_exact_mut(row_len).skip(to_y).zip(sources) {
            to[to_x * 3..(to_x + columns) * 3].copy_from_slice(&from[from_x * 3..(from_x + columns) * 3]);
        }
    }
    Image { rgb, ..*image }
}

/// `[left, top, width, height]`: ten tries at an area and a ratio (uniform in its logarithm) that fit, else the largest
/// box of an allowed ratio in the middle.
fn random_box(width: usize, height: usize, random: &mut Random) -> [usize; 4] {
    for _ in 0..10 {
        let area = (width * height) as f64 * random.between(CROP_AREA.0, CROP_AREA.1);
        let ratio = random.between(CROP_RATIO.0.ln(), CROP_RATIO.1.ln()).exp();
        let (w, h) = ((area * ratio).sqrt().round() as usize, (area / ratio).sqrt().round() as usize);
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            return [random.below(width - w + 1), random.below(height - h + 1), w, h];
        }
    }
    let w = width.min((height as f64 * CROP_RATIO.1).round() as usize).max(1);
    let h = height.min((width as f64 / CROP_RATIO.0).round() as usize).max(1);
    [(width - w) / 2, (height - h) / 2, w, h]
}

fn mirror(image: &mut Image) {
    for row in image.rgb.chunks_exact_mut(image.width * 3) {
        row.as_chunks_mut::<3>().0.reverse();
    }
}

fn jitter(image: &mut Image, strength: f64, random: &mut Random) {
    let mut changes: [fn(&mut Image, f32); 3] = [brightness, contrast, saturation];
    random.shuffle(&mut changes);
    for change in changes {
        change(image, random.between((1.0 - strength).max(0.0), 1.0 + strength) as f32);
    }
}

/// Towards black.
fn brightness(image: &mut Image, factor: f32) {
    image.rgb.iter_mut().for_each(|value| *value = blend(0, *value, factor));
}

/// Towards the mean luma.
fn contrast(image: &mut Image, factor: f32) {
    let pixels = image.rgb.as_chunks::<3>().0;
    let sum: u64 = pixels.iter().map(|pixel| u64::from(luma(pixel))).sum();
    let mean = (sum as f64 / pixels.len().max(1) as f64 + 0.5) as u8;
    image.rgb.iter_mut().for_each(|value| *value = blend(mean, *value, factor));
}

/// Towards each pixel's luma.
fn saturation(image: &mut Image, factor: f32) {
    for pixel in image.rgb.as_chunks_mut::<3>().0 {
        let grey = luma(pixel);
        *pixel = pixel.map(|value| blend(grey, value, factor));
    }
}

/// `from + factor · (to − from)` in f32, cut off to 8 bits.
fn blend(from: u8, to: u8, factor: f32) -> u8 {
    (f32::from(from) + factor * (f32::from(to) - f32::from(from))) as u8
}

impl FromStr for Augment {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        let unclear = || DataError::AugmentText { text: text.to_owned() };
        let mut augment = Self::default();
        if text.trim() == "none" {
            return Ok(augment);
        }
        for part in text.split(',').map(str::trim) {
            let (name, number) = part.split_at(part.find(|c: char| c.is_ascii_digit()).unwrap_or(part.len()));
            let side = || number.parse().ok().filter(|side| (1..=MAX_SIDE).contains(side)).ok_or_else(unclear);
            match name {
                "crop" if augment.crop == RandomCrop::Keep => augment.crop = RandomCrop::Shift(side()?),
                "rrc" if augment.crop == RandomCrop::Keep => augment.crop = RandomCrop::Resized(side()?),
                "flip" if number.is_empty() => augment.flip = true,
                "jitter" => {
                    let strength = number.parse().ok().filter(|strength| (0.0..=10.0).contains(strength));
                    augment.jitter = strength.ok_or_else(unclear)?;
                }
                _ => return Err(unclear()),
            }
        }
        Ok(augment)
    }
}

impl fmt::Display for Augment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let crop = match self.crop {
            RandomCrop::Keep => None,
            RandomCrop::Shift(padding) => Some(format!("crop{padding}")),
            RandomCrop::Resized(side) => Some(format!("rrc{side}")),
        };
        let flip = self.flip.then(|| "flip".to_owned());
        let jitter = (self.jitter > 0.0).then(|| format!("jitter{}", self.jitter));
        let parts: Vec<String> = [crop, flip, jitter].into_iter().flatten().collect();
        f.write_str(if self.is_none() { "none".to_owned() } else { parts.join(",") }.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A grey image from its values.
    fn grey(width: usize, values: &[u8]) -> Image {
        let rgb = values.iter().flat_map(|&v| [v; 3]).collect();
        Image { width, height: values.len() / width, rgb }
    }

    #[test]
    fn shifted_pixels_by_hand() {
        let image = grey(3, &[1, 2, 3, 4, 5, 6]);
        assert_eq!(shift(&image, 0, 0), image);
        assert_eq!(shift(&image, 1, 0), grey(3, &[2, 3, 0, 5, 6, 0]));
        assert_eq!(shift(&image, -2, 1), grey(3, &[0, 0, 4, 0, 0, 0]));
        assert_eq!(shift(&image, 2, -1), grey(3, &[0, 0, 0, 3, 0, 0]));
        assert_eq!(shift(&image, 3, 0), grey(3, &[0; 6]));
        assert_eq!(shift(&image, 0, -5), grey(3, &[0; 6]));
    }

    #[test]
    fn mirrored_pixels_by_hand() {
        let mut image = Image { width: 2, height: 2, rgb: (0..12).collect() };
        mirror(&mut image);
        assert_eq!(image.rgb, [3, 4, 5, 0, 1, 2, 9, 10, 11, 6, 7, 8]);
    }

    #[test]
    fn every_shift_and_both_sides_come_up() {
        let augment: Augment = "crop1,flip".parse().unwrap();
        let image = grey(3, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        let mut counts = std::collections::BTreeMap::new();
        for sample in 0..3600 {
            *counts.entry(augment.vary(&image, &mut Random::keyed(&[sample])).rgb.clone()).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 18);
        // Mean 200, standard deviation 14.
        assert!(counts.values().all(|&count| (130..270).contains(&count)), "{counts:?}");
    }

    #[test]
    fn boxes_lie_inside_with_the_right_area_and_ratio() {
        let (width, height) = (200, 150);
        let mut random = Random::new(5);
        let (mut area, mut log_ratio, mut corner) = (0.0, 0.0, 0.0);
        let n = 5000;
        for _ in 0..n {
            let [left, top, w, h] = random_box(width, height, &mut random);
            assert!(left + w <= width && top + h <= height);
            let (share, ratio) = ((w * h) as f64 / (width * height) as f64, w as f64 / h as f64);
            // Sides are rounded: at a side of 43 pixels by a little over one per cent.
            assert!((0.08 * 0.98..=1.0).contains(&share), "{share}");
            assert!((0.75 * 0.97..=4.0 / 3.0 * 1.03).contains(&ratio), "{ratio}");
            area += share / f64::from(n);
            log_ratio += ratio.ln() / f64::from(n);
            corner += left as f64 / f64::from(n);
        }
        // Means of 30000 boxes of torchvision's RandomResizedCrop.get_params for this size; within five standard errors.
        assert!((area - 0.4356).abs() < 0.018, "{area}");
        assert!((log_ratio - 0.0317).abs() < 0.013, "{log_ratio}");
        assert!((corner - 43.77).abs() < 2.7, "{corner}");
        // Nothing of an allowed ratio and 8 % of the area fits into a sliver.
        assert_eq!(random_box(1000, 3, &mut random), [498, 0, 4, 3]);
        assert_eq!(random_box(1, 1, &mut random), [0, 0, 1, 1]);
    }

    #[test]
    fn resized_crops_have_the_size_asked_for() {
        let augment: Augment = "rrc7".parse().unwrap();
        let image = grey(20, &[50; 300]);
        let preprocess = Preprocess { crop: Some(9), ..Default::default() };
        let whole = augment.fixed(&image, &preprocess, Path::new("a")).unwrap();
        assert_eq!(*augment.vary(&whole, &mut Random::new(1)), grey(7, &[50; 49]));
    }

    #[test]
    fn colours_equal_torchvision() {
        // torchvision.transforms.functional.adjust_*(PIL.Image.fromarray(rgb), factor), torchvision 0.29.
        let rgb = vec![0, 255, 17, 200, 3, 90, 128, 64, 32, 250, 251, 252, 9, 99, 199, 77, 78, 79];
        type Change = fn(&mut Image, f32);
        let cases: [(Change, f32, [u8; 18]); 6] = [
            (brightness, 0.6, [0, 153, 10, 120, 1, 54, 76, 38, 19, 150, 150, 151, 5, 59, 119, 46, 46, 47]),
            (brightness, 1.37, [0, 255, 23, 255, 4, 123, 175, 87, 43, 255, 255, 255, 12, 135, 255, 105, 106, 108]),
            (contrast, 0.6, [47, 200, 57, 167, 49, 101, 124, 86, 66, 197, 198, 198, 53, 107, 167, 93, 94, 95]),
            (contrast, 1.37, [0, 255, 0, 229, 0, 79, 131, 43, 0, 255, 255, 255, 0, 91, 228, 61, 62, 64]),
            (saturation, 0.6, [60, 213, 71, 148, 30, 82, 108, 70, 50, 250, 251, 251, 38, 92, 152, 77, 78, 78]),
            (saturation, 1.37, [0, 255, 0, 247, 0, 96, 146, 58, 14, 249, 251, 252, 0, 104, 241, 76, 78, 79]),
        ];
        for (change, factor, expected) in cases {
            let mut image = Image { width: 2, height: 3, rgb: rgb.clone() };
            change(&mut image, factor);
            assert_eq!(image.rgb, expected, "{factor}");
        }
    }

    #[test]
    fn texts_there_and_back() {
        let augment: Augment = "rrc224, flip,jitter0.4".parse().unwrap();
        assert_eq!(augment, Augment { crop: RandomCrop::Resized(224), flip: true, jitter: 0.4 });
        for text in ["none", "flip", "crop4,flip", "rrc224,flip,jitter0.4"] {
            assert_eq!(text.parse::<Augment>().unwrap().to_string(), text);
        }
        for text in
            ["", "crop", "crop0", "crop-4", "crop4,rrc8", "flip2", "jitter", "jitter-1", "jitter1e9", "blur", "flip,"]
        {
            let error = text.parse::<Augment>().unwrap_err();
            assert!(error.to_string().contains(text) && error.hint().is_some(), "`{text}`");
        }
    }
}
