//! Images in arrays: `.npy` and `.npz`, u8 images or f32 tensors that are already prepared.

use std::path::Path;

use crate::{
    DataError, Image, Sample,
    npy::{Dtype, NpyFile},
    npz,
};

/// An array of images along its first axis.
#[derive(Debug)]
pub(crate) struct Images {
    array: NpyFile,
    layout: Layout,
}

/// How a row of the array is an image.
#[derive(Debug, Clone, Copy)]
enum Layout {
    /// f32: a tensor of the row's shape, taken as it is.
    Tensor,
    /// u8 `[N, H, W, C]` with `C` 1 or 3.
    Interleaved { channels: usize },
    /// u8 `[N, C, H, W]` with `C` 1 or 3, or `[N, H, W]`.
    Planar { channels: usize },
}

impl Images {
    fn new(path: &Path, array: NpyFile) -> Result<Self, DataError> {
        let shape_error =
            |wanted| DataError::ArrayShape { path: path.to_path_buf(), shape: array.shape.clone(), wanted };
        let layout = match (array.dtype, array.shape.as_slice()) {
            (Dtype::F32, [_, _, ..]) => Layout::Tensor,
            (Dtype::F32, _) => return Err(shape_error("[N, C, H, W]")),
            (Dtype::U8, &[_, _, _, channels @ (1 | 3)]) => Layout::Interleaved { channels },
            (Dtype::U8, &[_, channels @ (1 | 3), _, _]) => Layout::Planar { channels },
            (Dtype::U8, [_, _, _]) => Layout::Planar { channels: 1 },
            (Dtype::U8, _) => return Err(shape_error("[N, H, W, 3], [N, 3, H, W] or [N, H, W]")),
            (Dtype::I32 | Dtype::I64, _) => {
                return Err(DataError::Dtype {
                    path: path.to_path_buf(),
                    found: if array.dtype == Dtype::I64 { "<i8" } else { "<i4" }.into(),
                    wanted: "float32 or uint8",
                });
            }
        };
        if array.shape.contains(&0) {
            return Err(DataError::Empty { path: path.to_path_buf(), deeper: None });
        }
        Ok(Self { array, layout })
    }

    pub fn len(&self) -> usize {
        self.array.rows()
    }

    pub fn is_prepared(&self) -> bool {
        matches!(self.layout, Layout::Tensor)
    }

    pub fn read(&self, index: usize) -> Result<Sample, DataError> {
        let shape = &self.array.shape[1..];
        let (channels, planar, height, width) = match (self.layout, shape) {
            (Layout::Interleaved { channels }, &[h, w, _]) => (channels, false, h, w),
            (Layout::Planar { channels }, &[.., h, w]) => (channels, true, h, w),
            _ => return Ok(Sample::Tensor { shape: shape.to_vec(), data: self.array.read_f32(index, 1)? }),
        };
        let bytes = self.array.read_u8(index, 1)?;
        let (pixel_step, channel_step) = if planar { (1, height * width) } else { (channels, 1) };
        let at = |pixel: usize, channel: usize| bytes[pixel * pixel_step + channel.min(channels - 1) * channel_step];
        let rgb = (0..height * width).flat_map(|p| [at(p, 0), at(p, 1), at(p, 2)]).collect();
        Ok(Sample::Image(Image { width, height, rgb }))
    }
}

/// Opens `.npy` images, with labels from another `.npy` if there is one.
pub(crate) fn open_npy(path: &Path, labels: Option<&Path>) -> Result<(Images, Option<Vec<usize>>), DataError> {
    let images = Images::new(path, NpyFile::open(path)?)?;
    let labels = labels.map(|path| read_labels(path, &NpyFile::open(path)?)).transpose()?;
    Ok((images, labels))
}

/// Opens an `.npz`: images are `x`, `images` or `data`, else the first array of 4 dimensions; labels are `y` or `labels`, unless another
/// `.npy` holds them.
pub(crate) fn open_npz(path: &Path, labels: Option<&Path>) -> Result<(Images, Option<Vec<usize>>), DataError> {
    let mut arrays = npz::open(path)?;
    let named = |names: &[&str], arrays: &[npz::Entry]| {
        names.iter().find_map(|name| arrays.iter().position(|(n, _)| n.eq_ignore_ascii_case(name)))
    };
    let own_labels = named(&["y", "labels", "label"], &arrays).map(|i| arrays.swap_remove(i));
    let is_batch = |array: &Result<NpyFile, DataError>| array.as_ref().is_ok_and(|a| a.shape.len() == 4);
    let images = named(&["x", "images", "data"], &arrays)
        .or_else(|| arrays.iter().position(|(_, array)| is_batch(array)))
        .ok_or_else(|| DataError::NoImageArray {
            path: path.to_path_buf(),
            found: arrays.iter().map(|(n, _)| n.clone()).collect(),
        })?;
    let (name, images) = arrays.swap_remove(images);
    let images = Images::new(&path.join(name), images?)?;
    let labels = match (labels, own_labels) {
        (Some(path), _) => Some(read_labels(path, &NpyFile::open(path)?)?),
        (None, Some((name, array))) => Some(read_labels(&path.join(name), &array?)?),
        (None, None) => None,
    };
    Ok((images, labels))
}

fn read_labels(path: &Path, array: &NpyFile) -> Result<Vec<usize>, DataError> {
    if array.row_len() != 1 {
        let (path, shape) = (path.to_path_buf(), array.shape.clone());
        return Err(DataError::ArrayShape { path, shape, wanted: "[N]" });
    }
    let values = array.read_integers(0, array.rows())?;
    let label = |(index, label): (usize, i64)| {
        usize::try_from(label).map_err(|_| DataError::Label { path: path.to_path_buf(), index, label })
    };
    values.into_iter().enumerate().map(label).collect()
}
