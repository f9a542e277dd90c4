//! numpy's `.npz` archives: arrays by name, read in place where they are stored plain, and written atomically.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    path::Path,
};

use fewbits_files::write_atomically;
use zip::{CompressionMethod, ZipArchive, ZipWriter, result::ZipError, write::SimpleFileOptions};

use crate::{
    DataError,
    npy::{self, Elements, NpyFile},
};

/// Name and array, or why the array cannot be read.
pub type Entry = (String, Result<NpyFile, DataError>);

/// Opens every array of an archive, in the archive's order. One that cannot be read is no obstacle to the others.
///
/// Arrays stored without compression (`numpy.savez`) are read in place; compressed ones are unpacked into an unnamed
/// temporary file first, so memory stays independent of their size either way.
pub fn open(path: &Path) -> Result<Vec<Entry>, DataError> {
    let read = |e| DataError::io(path, "read", e);
    let zip = |e: ZipError| match e {
        ZipError::Io(e) => read(e),
        e => DataError::Malformed { path: path.to_path_buf(), format: "npz", reason: e.to_string() },
    };
    let mut archive = ZipArchive::new(File::open(path).map_err(read)?).map_err(zip)?;
    let file_len = std::fs::metadata(path).map_err(read)?.len();
    let mut arrays = Vec::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(zip)?;
        let Some(name) = entry.name().strip_suffix(".npy").map(str::to_owned) else { continue };
        let label = path.join(&name);
        let array = if entry.compression() == CompressionMethod::Stored {
            let start = entry.data_start();
            let len = entry.size().min(file_len.saturating_sub(start));
            NpyFile::inside(&label, File::open(path).map_err(read)?, start, len)
        } else {
            let mut unpacked = tempfile::tempfile().map_err(|e| DataError::io(path, "unpack", e))?;
            let len = io::copy(&mut entry, &mut unpacked).map_err(|e| DataError::io(path, "unpack", e))?;
            unpacked.seek(SeekFrom::Start(0)).map_err(|e| DataError::io(path, "unpack", e))?;
            NpyFile::inside(&label, unpacked, 0, len)
        };
        arrays.push((name, array));
    }
    Ok(arrays)
}

/// Writes an `.npz` (uncompressed, like `numpy.savez`), whole or not at all; the same arrays give the same bytes.
pub fn save(path: &Path, arrays: &[(&str, &[usize], Elements<'_>)]) -> Result<(), DataError> {
    write_atomically(path, |writer| {
        let mut archive = ZipWriter::new(writer);
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(zip::DateTime::default())
            .large_file(true);
        for (name, shape, elements) in arrays {
            archive.start_file(format!("{name}.npy"), options)?;
            let mut entry = io::BufWriter::new(&mut archive);
            npy::write(&mut entry, shape, *elements)?;
            entry.flush()?;
        }
        archive.finish()?;
        Ok(())
    })
    .map_err(|e| DataError::io(path, "write", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_come_back_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let arrays: [(&str, &[usize], Elements<'_>); 3] = [
            ("x", &[2, 2], Elements::F32(&[1.0, 2.0, 3.0, 4.0])),
            ("layer/y", &[2], Elements::I64(&[7, -8])),
            ("z", &[1, 3], Elements::U8(&[1, 2, 255])),
        ];
        save(&path, &arrays).unwrap();
        let found: Vec<_> = open(&path).unwrap().into_iter().map(|(name, array)| (name, array.unwrap())).collect();
        assert_eq!(found.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["x", "layer/y", "z"]);
        assert_eq!(found[0].1.read_f32(1, 1).unwrap(), [3.0, 4.0]);
        assert_eq!(found[1].1.read_integers(0, 2).unwrap(), [7, -8]);
        assert_eq!(found[2].1.read_u8(0, 1).unwrap(), [1, 2, 255]);
        let first = std::fs::read(&path).unwrap();
        save(&path, &arrays).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first);
    }

    #[test]
    fn garbled_archives_are_errors_not_panics() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        save(&path, &[("x", &[4], Elements::F32(&[1.0, 2.0, 3.0, 4.0]))]).unwrap();
        let good = std::fs::read(&path).unwrap();
        for cut in 0..good.len() {
            std::fs::write(&path, &good[..cut]).unwrap();
            assert!(open(&path).is_err(), "cut at {cut}");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            std::fs::write(&path, &bad).unwrap();
            if let Ok(arrays) = open(&path) {
                arrays.iter().flat_map(|(_, a)| a).for_each(|array| drop(array.read_f32(0, array.rows())));
            }
        }
    }
}
