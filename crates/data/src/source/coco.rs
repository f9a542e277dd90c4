//! COCO annotations: `instances_*.json` enters, images and boxes leave.

use std::{
    collections::HashMap,
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::DataError;

/// What a COCO file says about its images: names, categories, and the boxes that are truly there.
#[derive(Debug, Clone)]
pub struct Coco {
    /// COCO's own id of each image, in the order of the file.
    pub image_ids: Vec<u64>,
    /// File name of each image.
    pub file_names: Vec<PathBuf>,
    /// The ids of the categories, ascending: a network's class `k` is category `category_ids[k]`.
    pub category_ids: Vec<u64>,
    /// Their names.
    pub category_names: Vec<String>,
    /// The boxes, in the order of the file.
    pub annotations: Vec<Annotation>,
}

/// A box that is truly there.
#[derive(Debug, Clone, PartialEq)]
pub struct Annotation {
    /// Index into [`Coco::image_ids`].
    pub image: usize,
    /// Index into [`Coco::category_ids`].
    pub class: usize,
    /// Left, top, width, height in pixels.
    pub bbox: [f64; 4],
    /// Area of the object (not of the box) in square pixels: decides small, medium and large.
    pub area: f64,
    /// A region of many objects: detections in it are neither right nor wrong.
    pub crowd: bool,
}

#[derive(Deserialize)]
struct Content {
    images: Vec<ImageEntry>,
    annotations: Vec<AnnotationEntry>,
    categories: Vec<CategoryEntry>,
}

#[derive(Deserialize)]
struct ImageEntry {
    id: u64,
    file_name: PathBuf,
}

#[derive(Deserialize)]
struct AnnotationEntry {
    image_id: u64,
    category_id: u64,
    bbox: [f64; 4],
    area: Option<f64>,
    #[serde(default)]
    iscrowd: u8,
}

#[derive(Deserialize)]
struct CategoryEntry {
    id: u64,
    name: String,
}

impl Coco {
    /// Reads an annotation file; the images themselves are not looked at.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(|e| DataError::io(path, "read", e))?;
        let Content { images, annotations, mut categories } = serde_json::from_reader(BufReader::new(file))
            .map_err(|source| DataError::Json { path: path.to_path_buf(), source })?;
        categories.sort_by_key(|c| c.id);
        let image_of: HashMap<u64, usize> = images.iter().enumerate().map(|(i, e)| (e.id, i)).collect();
        let class_of: HashMap<u64, usize> = categories.iter().enumerate().map(|(i, e)| (e.id, i)).collect();
        let annotation = |(index, entry): (usize, AnnotationEntry)| {
            let unknown = |what, id| DataError::CocoReference { path: path.to_path_buf(), annotation: index, what, id };
            Ok(Annotation {
                image: *image_of.get(&entry.image_id).ok_or_else(|| unknown("image", entry.image_id))?,
                class: *class_of.get(&entry.category_id).ok_or_else(|| unknown("category", entry.category_id))?,
                bbox: entry.bbox,
                area: entry.area.unwrap_or(entry.bbox[2] * entry.bbox[3]),
                crowd: entry.iscrowd != 0,
            })
        };
        Ok(Self {
            annotations: annotations.into_iter().enumerate().map(annotation).collect::<Result<_, _>>()?,
            image_ids: images.iter().map(|i| i.id).collect(),
            file_names: images.into_iter().map(|i| i.file_name).collect(),
            category_ids: categories.iter().map(|c| c.id).collect(),
            category_names: categories.into_iter().map(|c| c.name).collect(),
        })
    }

    /// The image files: in `folder`, or beside the annotation file `path` if no folder is given and they are there.
    pub(crate) fn files(&self, path: &Path, folder: Option<&Path>) -> Result<Vec<PathBuf>, DataError> {
        let Some(first) = self.file_names.first() else {
            return Err(DataError::Empty { path: path.to_path_buf(), deeper: None });
        };
        let beside = path.parent().unwrap_or(Path::new(""));
        let folder = match folder {
            Some(folder) => folder,
            None if beside.join(first).is_file() => beside,
            None => return Err(DataError::ImagesFolder { path: path.to_path_buf() }),
        };
        let files: Vec<PathBuf> = self.file_names.iter().map(|name| folder.join(name)).collect();
        match files.iter().find(|f| !f.is_file()) {
            Some(missing) => Err(DataError::NotFound { path: missing.clone() }),
            None => Ok(files),
        }
    }
}
