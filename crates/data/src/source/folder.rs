//! Folders of images: one sub-folder for each class, or images only.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::DataError;

/// Files with their labels (empty: none), and the class names.
pub(crate) struct Listing {
    pub files: Vec<PathBuf>,
    pub labels: Vec<usize>,
    pub class_names: Vec<String>,
}

/// Lists a folder. If it has sub-folders, they are the classes, in the order of their names, and images beside them are
/// not read; otherwise it is a folder of images without labels. Hidden entries and other files are skipped.
pub(crate) fn list(path: &Path) -> Result<Listing, DataError> {
    let entries = entries(path)?;
    let classes: Vec<PathBuf> = entries.iter().filter(|p| p.is_dir()).cloned().collect();
    let mut listing = Listing { files: Vec::new(), labels: Vec::new(), class_names: Vec::new() };
    if classes.is_empty() {
        listing.files = entries.into_iter().filter(|p| is_image(p)).collect();
    } else {
        for (label, class) in classes.iter().enumerate() {
            listing.class_names.push(class.file_name().unwrap_or_default().to_string_lossy().into_owned());
            listing.files.extend(self::entries(class)?.into_iter().filter(|p| is_image(p)));
            listing.labels.resize(listing.files.len(), label);
        }
    }
    if listing.files.is_empty() {
        let deeper = classes.into_iter().find(|class| list(class).is_ok());
        return Err(DataError::Empty { path: path.to_path_buf(), deeper });
    }
    Ok(listing)
}

/// The visible entries of a folder, sorted by name (byte order, which is Python's order of UTF-8 names).
fn entries(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let read = |e| DataError::io(path, "read", e);
    let mut entries = Vec::new();
    for entry in fs::read_dir(path).map_err(read)? {
        let entry = entry.map_err(read)?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            entries.push(entry.path());
        }
    }
    entries.sort();
    Ok(entries)
}

pub(crate) fn is_image(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default();
    ["jpg", "jpeg", "png", "webp"].iter().any(|known| extension.eq_ignore_ascii_case(known)) && !path.is_dir()
}
