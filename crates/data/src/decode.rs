//! Image files: bytes enter, 8-bit RGB leaves, with the pixels that Pillow's `Image.open(..).convert("RGB")` gives.

use std::path::Path;

use image::ColorType;

use crate::{DataError, jpeg};

/// An 8-bit RGB image, rows from the top, interleaved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Pixels per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height · width · 3` bytes.
    pub rgb: Vec<u8>,
}

impl Image {
    /// A rectangle of the image; it must lie within.
    pub(crate) fn window(&self, left: usize, top: usize, width: usize, height: usize) -> Self {
        let rows = self.rgb.chunks_exact(self.width * 3).skip(top).take(height);
        let mut rgb = Vec::with_capacity(width * height * 3);
        rows.for_each(|row| rgb.extend_from_slice(&row[left * 3..(left + width) * 3]));
        Self { width, height, rgb }
    }
}

/// Decodes JPEG, PNG or WebP, whichever the content is; `path` serves for messages only.
///
/// Transparency is dropped, grey is repeated, and an orientation tag is ignored, as `convert("RGB")` does. Of 16 bits the upper 8 are
/// taken; of grey ones, too, which Pillow clips.
pub fn decode(bytes: &[u8], path: &Path) -> Result<Image, DataError> {
    let failed = |reason: String| DataError::Decode { path: path.to_path_buf(), reason };
    if bytes.is_empty() {
        return Err(failed("the file is empty".into()));
    }
    if bytes.starts_with(&[0xff, 0xd8])
        && let Some(image) = jpeg::decode(bytes).map_err(|e| failed(e.to_string()))?
    {
        return Ok(image);
    }
    let decoded = image::load_from_memory(bytes).map_err(|e| failed(e.to_string()))?;
    let (width, height) = (decoded.width() as usize, decoded.height() as usize);
    let wide = matches!(decoded.color(), ColorType::L16 | ColorType::La16 | ColorType::Rgb16 | ColorType::Rgba16);
    let rgb = match wide {
        // The high byte, as Pillow takes it; the library would round.
        true => decoded.into_rgb16().into_raw().into_iter().map(|value| (value >> 8) as u8).collect(),
        false => decoded.into_rgb8().into_raw(),
    };
    Ok(Image { width, height, rgb })
}
