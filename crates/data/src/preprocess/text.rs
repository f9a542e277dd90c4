//! Preprocessing as text: what models' metadata say, and how it is shown.

use super::{Channels, Preprocess, Resize};
use crate::DataError;
use std::{collections::BTreeMap, fmt, path::Path};

/// Metadata key under which exported models carry a [`Preprocess`] as JSON.
pub const METADATA_KEY: &str = "fewbits.preprocess";

impl Resize {
    /// A letterbox of `(height, width)` from `114` (image in the top left corner) or `114:center`.
    pub fn letterbox(padding: &str, (height, width): (usize, usize)) -> Option<Self> {
        let (fill, centred) = match padding.split_once(':') {
            Some((fill, "center")) => (fill, true),
            Some(_) => return None,
            None => (padding, false),
        };
        Some(Self::Letterbox { height, width, fill: fill.parse().ok()?, centred })
    }
}

impl Preprocess {
    /// What a model's metadata say, or `None` if they say nothing.
    ///
    /// Read are [`METADATA_KEY`] (JSON, as exported models carry it), else `preprocess`: the name of a preset, `torchvision`,
    /// or a text such as `rgb/127.5-1`, `bgr`, `rgb/255, resize to 320x320`, `rgb/255, crop 224`, `bgr, letterbox 114`, `rgb/255, letterbox 128:center`. The input size
    /// comes from the graph (`input`) or from the metadata key `input` (`224` or `320x320`). A text that is there but
    /// not understood is an error: guessing would cost accuracy silently. `model` serves for messages.
    pub fn from_metadata(
        metadata: &BTreeMap<String, String>,
        input: Option<(usize, usize)>,
        model: &Path,
    ) -> Result<Option<Self>, DataError> {
        let unclear = |text: &str| DataError::PreprocessText { path: model.to_path_buf(), text: text.to_owned() };
        if let Some(text) = metadata.get(METADATA_KEY) {
            let parsed: Self = serde_json::from_str(text).map_err(|_| unclear(text))?;
            return if parsed.is_valid() { Ok(Some(parsed)) } else { Err(unclear(text)) };
        }
        let Some(text) = metadata.get("preprocess") else { return Ok(None) };
        let input = input.or_else(|| parse_size(metadata.get("input")?));
        Self::parse(text, input).map(Some).ok_or_else(|| unclear(text))
    }

    fn parse(text: &str, input: Option<(usize, usize)>) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        if text == "torchvision" {
            return Some(Self::torchvision(input));
        }
        if let Some(preset) = Self::preset(&text, input) {
            return Some(preset);
        }
        let mut parts = text.split(',').map(str::trim);
        let mut parsed = Self::torchvision(input);
        let colour = parts.next()?;
        let (name, range) = colour.split_at(colour.find(['/', '-']).unwrap_or(colour.len()));
        parsed.channels = match name.trim() {
            "rgb" => Channels::Rgb,
            "bgr" => Channels::Bgr,
            "gray" | "grey" => Channels::Gray,
            _ => return None,
        };
        let (scale, mean) = range.split_once('-').unwrap_or((range, "0"));
        parsed.scale = match scale.trim().strip_prefix('/') {
            Some(number) => number.trim().parse().ok()?,
            None => scale.trim().is_empty().then_some(1.0)?,
        };
        parsed.mean = vec![mean.trim().parse().ok()?];
        parsed.std = vec![1.0];
        for part in parts {
            if let Some(size) = part.strip_prefix("resize to ") {
                let (height, width) = parse_size(size)?;
                (parsed.resize, parsed.crop) = (Resize::Exact { height, width }, None);
            } else if let Some(side) = part.strip_prefix("crop ") {
                (parsed.resize, parsed.crop) = (Resize::Keep, Some(side.parse().ok()?));
            } else if let Some(padding) = part.strip_prefix("letterbox ") {
                (parsed.resize, parsed.crop) = (Resize::letterbox(padding, input?)?, None);
            } else {
                return None;
            }
        }
        parsed.is_valid().then_some(parsed)
    }
}

/// `320` or `320x240` (height x width).
fn parse_size(text: impl AsRef<str>) -> Option<(usize, usize)> {
    let text = text.as_ref().trim();
    let (height, width) = text.split_once('x').unwrap_or((text, text));
    Some((height.trim().parse().ok()?, width.trim().parse().ok()?))
}

impl fmt::Display for Preprocess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.resize {
            Resize::Keep => write!(f, "no resize")?,
            Resize::Shorter(side) => write!(f, "shorter side to {side}")?,
            Resize::ShorterUnlessFitting(side) => match self.crop {
                Some(crop) => write!(f, "shorter side to {side} (left alone from {crop} to {side})")?,
                None => write!(f, "shorter side to {side}")?,
            },
            Resize::Exact { height, width } => write!(f, "resize to {height}x{width}")?,
            Resize::Letterbox { height, width, fill, centred } => {
                let place = if centred { ", image in the middle" } else { "" };
                write!(f, "letterbox to {height}x{width} with {fill}{place}")?;
            }
        }
        if let Some(crop) = self.crop {
            write!(f, ", centre crop {crop}")?;
        }
        let name = match self.channels {
            Channels::Rgb => "rgb",
            Channels::Bgr => "bgr",
            Channels::Gray => "gray",
        };
        write!(f, ", {name}")?;
        let list = |v: &[f32]| match v {
            [one] => one.to_string(),
            many => format!("[{}]", many.iter().map(f32::to_string).collect::<Vec<_>>().join(", ")),
        };
        let mut value = "x".to_owned();
        if self.scale != 1.0 {
            value = format!("{value}/{}", self.scale);
        }
        if self.mean.iter().any(|&m| m != 0.0) {
            value = format!("{value} - {}", list(&self.mean));
        }
        if self.std.iter().any(|&s| s != 1.0) {
            value = if value == "x" { value } else { format!("({value})") };
            value = format!("{value} / {}", list(&self.std));
        }
        if value == "x" { write!(f, ", 0..255") } else { write!(f, ", {value}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    fn from(pairs: &[(&str, &str)], input: Option<(usize, usize)>) -> Result<Option<Preprocess>, DataError> {
        Preprocess::from_metadata(&metadata(pairs), input, Path::new("m.onnx"))
    }

    #[test]
    fn metadata_of_known_models() {
        let cases = [
            (
                &[("preprocess", "torchvision"), ("input", "224")][..],
                "shorter side to 256 (left alone from 224 to 256), \
              centre crop 224, rgb, (x/255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]",
            ),
            (
                &[("preprocess", "torchvision"), ("input", "32")],
                "shorter side to 37 (left alone from 32 to 37), \
              centre crop 32, rgb, (x/255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]",
            ),
            (
                &[("preprocess", "rgb/127.5-1"), ("input", "224")],
                "shorter side to 256 (left alone from 224 to 256), \
              centre crop 224, rgb, x/127.5 - 1",
            ),
            (&[("preprocess", "rgb/255, resize to 320x320"), ("input", "320")], "resize to 320x320, rgb, x/255"),
            (&[("preprocess", "bgr, letterbox 114"), ("input", "416")], "letterbox to 416x416 with 114, bgr, 0..255"),
            (&[("preprocess", "yolox"), ("input", "416")], "letterbox to 416x416 with 114, bgr, 0..255"),
            (
                &[("preprocess", "rgb/255, letterbox 128:center"), ("input", "416")],
                "letterbox to 416x416 with 128, image in the middle, rgb, x/255",
            ),
            (&[("preprocess", "darknet")], "letterbox to 416x416 with 128, image in the middle, rgb, x/255"),
            (&[("preprocess", "none")], "no resize, rgb, 0..255"),
        ];
        for (pairs, expected) in cases {
            let preprocess = from(pairs, None).unwrap().unwrap();
            assert_eq!(preprocess.to_string(), expected);
            let json = serde_json::to_string(&preprocess).unwrap();
            assert_eq!(from(&[(METADATA_KEY, &json)], None).unwrap(), Some(preprocess));
        }
        assert_eq!(from(&[("source", "x")], Some((224, 224))).unwrap(), None);
        for text in ["rgb/0", "rgb/x", "lab/255", "rgb/255, mirror", "", "rgb/255, resize to 0x5", "bgr, letterbox 114"]
        {
            assert!(from(&[("preprocess", text)], None).is_err(), "`{text}`");
        }
        assert!(from(&[(METADATA_KEY, "{}")], None).is_err());
        for padding in ["", "256", "114:left", ":center"] {
            assert_eq!(Resize::letterbox(padding, (4, 4)), None, "`{padding}`");
        }
        // As files carried it before there was a choice.
        let old = r#"{"letterbox":{"height":2,"width":3,"fill":9}}"#;
        let expected = Resize::Letterbox { height: 2, width: 3, fill: 9, centred: false };
        assert_eq!(serde_json::from_str::<Resize>(old).unwrap(), expected);
    }
}
