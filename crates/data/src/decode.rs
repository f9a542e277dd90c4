//! Image files: bytes enter, 8-bit RGB leaves, with the pixels that Pillow's `Image.open(..).convert("RGB")` gives.

use std::path::Path;

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
/// Transparency is dropped, grey is repeated, and an orientation tag is ignored, as `convert("RGB")` does.
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
    let decoded = image::load_from_memory(bytes).map_err(|e| failed(e.to_string()))?.into_rgb8();
    let (width, height) = (decoded.width() as usize, decoded.height() as usize);
    Ok(Image { width, height, rgb: decoded.into_raw() })
}
