//! CIFAR-10 binary batches: records of one label byte and 3 · 1024 bytes of red, green and blue planes of 32×32.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Mutex,
};

use crate::{DataError, Image};

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;
const RECORD: usize = 1 + 3 * PLANE;

/// The names of the classes, where no `batches.meta.txt` says otherwise.
pub(crate) const CLASS_NAMES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// Whether a file is named like a batch.
pub(crate) fn is_batch(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(".bin") && (name.starts_with("data_batch") || name.starts_with("test_batch"))
}

/// The training batches of a folder, or, to be `held_out`, its test batch; the others if it has none of these.
pub(crate) fn batches(folder: &Path, held_out: bool) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let mut found: Vec<PathBuf> = entries.filter(|p| is_batch(p)).collect();
    found.sort();
    let is_wanted = |p: &PathBuf| {
        let is_training = p.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"data"));
        is_training != held_out
    };
    if found.iter().any(is_wanted) {
        found.retain(is_wanted);
    }
    found
}

/// Batches of which records are read on demand.
#[derive(Debug)]
pub(crate) struct Batches {
    files: Vec<(PathBuf, Mutex<File>, usize)>,
}

impl Batches {
    /// Opens the files and reads their labels.
    pub fn open(paths: &[PathBuf]) -> Result<(Self, Vec<usize>), DataError> {
        let (mut files, mut labels) = (Vec::new(), Vec::new());
        for path in paths {
            let read = |e| DataError::io(path, "read", e);
            let mut file = File::open(path).map_err(read)?;
            let len = file.metadata().map_err(read)?.len();
            let records = (len / RECORD as u64) as usize;
            if records == 0 || len % RECORD as u64 != 0 {
                let needed = (records as u64 + 1) * RECORD as u64;
                return Err(DataError::Truncated { path: path.clone(), needed, found: len });
            }
            let mut record = [0u8; RECORD];
            for index in 0..records {
                file.read_exact(&mut record).map_err(read)?;
                if usize::from(record[0]) >= CLASS_NAMES.len() {
                    return Err(DataError::Label { path: path.clone(), index, label: record[0].into() });
                }
                labels.push(record[0].into());
            }
            files.push((path.clone(), Mutex::new(file), records));
        }
        Ok((Self { files }, labels))
    }

    pub fn len(&self) -> usize {
        self.files.iter().map(|(_, _, records)| records).sum()
    }

    /// The file that holds image `index` (counted through all files), and its position there.
    fn find(&self, mut index: usize) -> Option<(&Path, &Mutex<File>, usize)> {
        for (path, file, records) in &self.files {
            if index < *records {
                return Some((path, file, index));
            }
            index -= records;
        }
        None
    }

    /// The name of the file of image `index`, and its position there.
    pub fn locate(&self, index: usize) -> (&Path, usize) {
        self.find(index).map_or((Path::new(""), index), |(path, _, index)| (path, index))
    }

    /// Reads image `index`; it must be below [`Batches::len`].
    pub fn read(&self, index: usize) -> Result<Image, DataError> {
        let (path, file, index) = self.find(index).expect("the data set checks the index");
        let mut record = [0u8; RECORD];
        let mut file = file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let read = file.seek(SeekFrom::Start((index * RECORD) as u64)).and_then(|_| file.read_exact(&mut record));
        read.map_err(|e| DataError::io(path, "read", e))?;
        let planes = &record[1..];
        let rgb = (0..PLANE).flat_map(|i| [planes[i], planes[PLANE + i], planes[2 * PLANE + i]]).collect();
        Ok(Image { width: SIDE, height: SIDE, rgb })
    }
}
